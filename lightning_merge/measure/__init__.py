"""Measuring: networks on test data, what they cost, sweeps beside the table, several tasks."""
