"""Recipes: how the checkpoints of known families of models become trees of JAX parameters.

    recipe = safejax.recipes.of("path/to/folder")        # reads its config.json
    rules = recipe.rules(mesh, {"heads": "model", "mlp": "model", "vocab": "model"})
    params = safejax.load("path/to/folder", transform=recipe.transform, sharding=rules)
    safejax.save(params, "exported", transform=recipe.transform.inverse)

A recipe is a table of correspondences, which `print(recipe)` shows. docs/recipes.md says which
families there are, what their trees look like, and how to write a recipe of one's own.
"""

from typing import Final

from safejax._src.recipes.families import FAMILIES
from safejax._src.recipes.recipe import Recipe, of

MODEL_TYPES: Final = tuple(FAMILIES)
"""The families that have a recipe, as the `model_type` of a `config.json` names them."""

__all__ = ["MODEL_TYPES", "Recipe", "of"]
