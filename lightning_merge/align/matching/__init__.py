"""Ways to find which units of two networks correspond."""
