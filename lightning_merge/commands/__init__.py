"""Our own commands: each parses its options, calls the library, and prints the results."""
