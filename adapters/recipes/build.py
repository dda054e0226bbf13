"""Build a recipe from `recipe.name`."""

from collections.abc import Callable
from typing import Any

from adapters.recipes.bn_statistics import BnStatistics
from adapters.recipes.cotta import Cotta
from adapters.recipes.published import dacs, daformer, hrda, mic
from adapters.recipes.recipe import Recipe, RecipeInputs
from adapters.recipes.tent import Tent
from configs.recipe import RecipeBase

RECIPES: dict[str, Callable[[RecipeInputs[Any]], Recipe[RecipeBase]]] = {
    "dacs": dacs,
    "daformer": daformer,
    "hrda": hrda,
    "mic": mic,
    "bn_statistics": BnStatistics,
    "tent": Tent,
    "cotta": Cotta,
}


def build_recipe(inputs: RecipeInputs[RecipeBase]) -> Recipe[RecipeBase]:
    """Build the recipe `inputs.recipe.name`. Raises AdapterError when its network or its data do not fit."""
    return RECIPES[inputs.recipe.name](inputs)
