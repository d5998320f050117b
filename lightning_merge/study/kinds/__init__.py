"""The kinds of work, one family a file; each registers a function of work, store and session."""
