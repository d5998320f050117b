"""Studies: what is to be done, each piece of work by itself, and the store of results."""
