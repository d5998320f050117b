"""The commands of our own: each parses its words, hands over, and prints."""
