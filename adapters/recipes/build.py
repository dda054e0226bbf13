"""From `recipe.name` to a recipe."""

from collections.abc import Callable

from adapters.networks.multi_resolution import weigh_detail
from adapters.recipes.bn_statistics import BnStatistics
from adapters.recipes.cotta import Cotta
from adapters.recipes.dacs import Dacs
from adapters.recipes.daformer import Daformer
from adapters.recipes.hrda import Hrda
from adapters.recipes.mic import Mic
from adapters.recipes.recipe import Recipe, RecipeInputs
from adapters.recipes.tent import Tent

RECIPES: dict[str, Callable[[RecipeInputs], Recipe]] = {
    "dacs": Dacs,
    "daformer": Daformer,
    "hrda": Hrda,
    "mic": Mic,
    "bn_statistics": BnStatistics,
    "tent": Tent,
    "cotta": Cotta,
}


def build_recipe(inputs: RecipeInputs) -> Recipe:
    """The recipe `inputs.recipe.name`. Raises AdapterError when its network or its data do not fit."""
    weigh_detail(inputs.student, inputs.recipe.detail_loss_weight)
    return RECIPES[inputs.recipe.name](inputs)
