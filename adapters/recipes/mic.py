"""MIC: DAFormer or, on a multi-resolution network, HRDA, with masked-image consistency; with or without MFM on top.

Hoyer et al., "MIC: Masked Image Consistency for Context-Enhanced Domain Adaptation" (CVPR 2023, arXiv 2212.01322).
"""

from adapters.recipes.recipe import RecipeInputs
from adapters.recipes.self_training import SelfTraining
from adapters.recipes.terms import recipe_terms


class Mic(SelfTraining):
    """Source cross-entropy with feature distance, cross-entropy on the ClassMix image and on the masked target, MFM."""

    def __init__(self, inputs: RecipeInputs) -> None:
        """Raises NetworkMismatch when feature distance has nothing to compare with."""
        super().__init__(inputs, recipe_terms(inputs))
