"""One file for each data set; the engine around them imports none of it."""
