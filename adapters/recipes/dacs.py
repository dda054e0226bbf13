"""DACS: self-training on images mixed across domains, with or without MFM on top.

Tranheden et al., "DACS: Domain Adaptation via Cross-domain Mixed Sampling" (2021); order and constants of a step as in
the DAFormer code base (arXiv 2111.14887), the MFM branch as in arXiv 2509.13801.
"""

from adapters.recipes.recipe import RecipeInputs
from adapters.recipes.self_training import SelfTraining
from adapters.recipes.terms import recipe_terms


class Dacs(SelfTraining):
    """Source cross-entropy, cross-entropy on the ClassMix image, MFM; other losses where their weights are set."""

    def __init__(self, inputs: RecipeInputs) -> None:
        super().__init__(inputs, recipe_terms(inputs))
