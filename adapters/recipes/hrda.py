"""HRDA: DAFormer's losses on a multi-resolution network, with or without MFM on top.

Hoyer et al., "HRDA: Context-Aware High-Resolution Domain-Adaptive Semantic Segmentation" (ECCV 2022, arXiv 2204.13132).
What is HRDA about it lies in the network (`adapters.networks.multi_resolution`): each training pass sees context and
detail, and the teacher's pseudo-labels come from overlapped detail windows. MFM rebuilds the maps of each scale with
one shared Rebuilder.
"""

from adapters.errors import NetworkMismatch
from adapters.networks.multi_resolution import MultiResolutionNetwork
from adapters.recipes.recipe import RecipeInputs
from adapters.recipes.self_training import SelfTraining
from adapters.recipes.terms import recipe_terms


class Hrda(SelfTraining):
    """Source cross-entropy with feature distance of the context, cross-entropy on the ClassMix image, MFM; each over
    context and detail."""

    def __init__(self, inputs: RecipeInputs) -> None:
        """Raises NetworkMismatch for a network that sees one scale only."""
        _check(inputs)
        super().__init__(inputs, recipe_terms(inputs))


def _check(inputs: RecipeInputs) -> None:
    if not isinstance(inputs.student, MultiResolutionNetwork):
        raise NetworkMismatch(
            "recipe.name: 'hrda' trains networks that see context and detail, and the serving version sees one scale; "
            "set network.multi_resolution: true, train such a version with `mfmd pretrain` and let it serve "
            "(`mfmd promote VERSION`), or set recipe.name: daformer"
        )
