"""Executors, one a file; each registers a class under the name that `--executor` takes."""
