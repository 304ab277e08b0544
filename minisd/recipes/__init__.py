"""Recipes: all that decides a picture, as one value; reading and writing it in pictures."""

from minisd.recipes.metadata import read_recipe
from minisd.recipes.recipe import DIALECTS, Job, Recipe, prepare

__all__ = ["DIALECTS", "Job", "Recipe", "prepare", "read_recipe"]
