"""ZipIt!: units of two networks matched across and within networks, and merged."""
