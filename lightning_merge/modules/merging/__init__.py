"""`MergeModule`, `AdaMergingModule` and their private parts."""
