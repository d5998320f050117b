"""The selections that a recipe can name, one a file."""

from lightning_merge.recipe.selections.determinantal import DPP

__all__ = ["DPP"]
