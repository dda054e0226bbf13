"""MFM-DA: few target images, a frozen foundation model, source images and their translations.

Jiang et al., "MFM-DA: Instance-Aware Adaptor and Hierarchical Alignment for Efficient Domain Adaptation in Medical
Foundation Models" (arXiv 2503.00802), second stage, constants of its published code. MFM means "medical foundation
model" there; Masked Feature Modeling is a term that this recipe takes like any other. A cycle of steps: maps of an
image and of its translation are aligned; the source is learnt; the translation is learnt with the same labels. The
paper's network is `unet` on `dinov2_tokens_*`; every other one works too.
"""

from adapters.errors import AdapterError
from adapters.recipes.added import with_added
from adapters.recipes.recipe import RecipeInputs
from adapters.recipes.self_training import SelfTraining
from adapters.recipes.terms import source_term
from configs.recipe import MfmDaSettings


def mfm_da(inputs: RecipeInputs[MfmDaSettings]) -> SelfTraining:
    """Build it: alignment, source, translation, what settings add, MFM.

    Raises AdapterError without source images, or when the round has fewer target images than it needs.
    """
    if inputs.source_free:
        raise AdapterError("recipe.name: 'mfm_da' learns from labelled source images; set `source`, or take dacs")
    needed = inputs.recipe.least_frames()
    if inputs.target_images is not None and inputs.target_images < needed:
        raise AdapterError(
            f"recipe.name: 'mfm_da' needs {needed} target images (recipe.advanced.target_images), and the round has "
            f"{inputs.target_images}; drop more images, or set it lower"
        )
    return SelfTraining(inputs, with_added(inputs, [source_term]))
