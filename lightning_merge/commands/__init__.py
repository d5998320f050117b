"""Our own commands: each parses its options, calls the library, and prints the results.

A command is a function of its own name, of the words that follow that on the command line. It
raises a `MergeError` for any error that the user can fix.
"""
