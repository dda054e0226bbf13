"""The terms that settings add to any recipe with a teacher: those of `recipe.advanced`, then MFM."""

from adapters.recipes.blda import Blda
from adapters.recipes.class_confidence import ClassConfidence
from adapters.recipes.complementary import complementary_term
from adapters.recipes.dida import Dida
from adapters.recipes.recipe import RecipeInputs
from adapters.recipes.self_training import Term
from adapters.recipes.terms import with_mfm
from adapters.recipes.translation import Translated
from configs.recipe import SelfTrainingSettings


def with_added(inputs: RecipeInputs[SelfTrainingSettings], terms: list[Term]) -> list[Term]:
    """Return the recipe's `terms`, followed by those that are switched on in `recipe.advanced`, then those of MFM.

    Alignment of translations comes before the recipe's terms, as published.
    """
    advanced, added = inputs.recipe.advanced, list[Term]()
    if advanced.translation.enabled:
        translated = Translated(inputs)
        first = [translated.alignment] if advanced.translation.alignment_weight > 0.0 else []
        last = [translated.loss] if advanced.translation.weight > 0.0 else []
        terms = [*first, *terms, *last]
    if advanced.class_confidence.enabled:
        added.append(ClassConfidence(inputs))
    if advanced.complementary.enabled:
        added.append(complementary_term)
    if advanced.blda.enabled:
        added.append(Blda(inputs))
    if advanced.foundation.enabled:  # behind BLDA, which replaces the comparison that this one adds to
        from adapters.recipes.foundation import FoundationDistance  # loads transformers for seconds

        added.append(FoundationDistance(inputs))
    if advanced.dida.enabled:
        dida = Dida(inputs)
        added += [dida.source, dida]
    return with_mfm(inputs, [*terms, *added])
