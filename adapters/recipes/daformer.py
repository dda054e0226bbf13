"""DAFormer: DACS that remembers things and looks for rare classes, with or without MFM on top.

Hoyer et al., "DAFormer: Improving Network Architectures and Training Strategies for Domain-Adaptive Semantic
Segmentation" (CVPR 2022, arXiv 2111.14887).
"""

from adapters.recipes.recipe import RecipeInputs
from adapters.recipes.self_training import SelfTraining
from adapters.recipes.terms import recipe_terms


class Daformer(SelfTraining):
    """Source cross-entropy with feature distance, cross-entropy on the ClassMix image, MFM.

    Rare-class sampling and margins lie in the streams of crops (`rare_class` and `margins` of `adapters.sampling`).
    With its extras off it is DACS with a slower teacher.
    """

    def __init__(self, inputs: RecipeInputs) -> None:
        """Raises NetworkMismatch when feature distance has nothing to compare with."""
        super().__init__(inputs, recipe_terms(inputs))
