"""Recipes: how ingredients are aligned, selected, aggregated and recalibrated."""
