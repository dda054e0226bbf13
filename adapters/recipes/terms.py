"""The losses that DACS, DAFormer, HRDA and MIC are made of, in the order in which they are published."""

from adapters.recipes.masked_image_term import MaskedImageTerm
from adapters.recipes.mfm_term import with_mfm
from adapters.recipes.mix_term import MixTerm
from adapters.recipes.recipe import RecipeInputs
from adapters.recipes.self_training import Term
from adapters.recipes.source_term import SourceTerm


def recipe_terms(inputs: RecipeInputs) -> list[Term]:
    """Source (with feature distance), mix, masked image, MFM; a loss whose weight is 0 is not there."""
    terms: list[Term] = [SourceTerm(inputs), MixTerm(inputs)]
    if inputs.recipe.masked_image_weight > 0.0:
        terms.append(MaskedImageTerm(inputs))
    return with_mfm(inputs, terms)
