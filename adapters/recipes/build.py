"""Build a recipe from `recipe.name`; DACS, DAFormer, HRDA, MIC, OMUDA, MFM-DA are lists of losses.

- DACS: Tranheden et al., "DACS: Domain Adaptation via Cross-domain Mixed Sampling" (WACV 2021, arXiv 2007.08702).
- DAFormer: Hoyer et al., "DAFormer: Improving Network Architectures and Training Strategies for Domain-Adaptive
  Semantic Segmentation" (CVPR 2022, arXiv 2111.14887): DACS with rare-class sampling, margins and feature distance.
- HRDA: Hoyer et al., "HRDA: Context-Aware High-Resolution Domain-Adaptive Semantic Segmentation" (ECCV 2022):
  DAFormer's losses on a network that sees context and detail.
- MIC: Hoyer et al., "MIC: Masked Image Consistency for Context-Enhanced Domain Adaptation" (CVPR 2023): DAFormer, or
  HRDA on such a network, with masked-image consistency.
- OMUDA: Ou et al. (arXiv 2512.12303), of which only the abstract is public: a reading of it.
- MFM-DA: Jiang et al. (arXiv 2503.00802), its second stage: `adapters.recipes.mfm_da`.

Order and constants of a step are those of the DAFormer code base. Rare-class sampling and margins lie in the streams of
crops (`rare_class` and `margins` of `adapters.sampling`); HRDA's context and detail lie in the network
(`adapters.networks.multi_resolution`).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from adapters.errors import AdapterError, NetworkMismatch
from adapters.networks.multi_resolution import MultiResolutionNetwork
from adapters.recipes.added import with_added
from adapters.recipes.bn_statistics import BnStatistics
from adapters.recipes.cotta import Cotta
from adapters.recipes.feature_distance import FeatureDistance
from adapters.recipes.gold import Gold
from adapters.recipes.masked_tokens import MaskedTokens
from adapters.recipes.mfm_da import mfm_da
from adapters.recipes.recipe import Recipe, RecipeInputs
from adapters.recipes.self_training import SelfTraining, Term
from adapters.recipes.tent import Tent
from adapters.recipes.terms import masked_image_term, mix_term, source_term
from configs.plugins import RECIPES as PLUGINS
from configs.plugins import load_plugin
from configs.recipe import (
    DacsSettings,
    GoldSettings,
    MicSettings,
    OmudaSettings,
    PluginSettings,
    RareClassSettings,
    RecipeBase,
)


def dacs(inputs: RecipeInputs[DacsSettings]) -> SelfTraining:
    """Build DACS: source cross-entropy, cross-entropy on the ClassMix image, MFM."""
    return SelfTraining(inputs, with_added(inputs, [source_term, mix_term]))


def daformer(inputs: RecipeInputs[RareClassSettings]) -> SelfTraining:
    """Build DAFormer: source cross-entropy with feature distance, cross-entropy on the ClassMix image, MFM.

    Raises NetworkMismatch when feature distance has nothing to compare with.
    """
    return SelfTraining(inputs, with_added(inputs, _with_distance(inputs)))


def hrda(inputs: RecipeInputs[RareClassSettings]) -> SelfTraining:
    """Build HRDA: DAFormer's losses over context and detail; feature distance over the context.

    Raises NetworkMismatch for a network that sees one scale only.
    """
    if not isinstance(inputs.student, MultiResolutionNetwork):
        raise NetworkMismatch(
            "recipe.name: 'hrda' trains networks that see context and detail, and the serving version sees one scale; "
            "set network.multi_resolution: true, train such a version with `mfmd pretrain` and let it serve "
            "(`mfmd promote VERSION`), or set recipe.name: daformer"
        )
    return daformer(inputs)


def mic(inputs: RecipeInputs[MicSettings]) -> SelfTraining:
    """Build MIC: DAFormer's losses, and cross-entropy on the masked target before MFM (none at weight 0).

    Raises NetworkMismatch when tokens must be masked and the encoder is no plain ViT.
    """
    masked: list[Term] = [_masked(inputs)] if inputs.recipe.masked_image_weight > 0.0 else []
    return SelfTraining(inputs, with_added(inputs, [*_with_distance(inputs), *masked]))


def _masked(inputs: RecipeInputs[MicSettings]) -> Term:
    return MaskedTokens(inputs) if inputs.recipe.advanced.masked_tokens else masked_image_term


def omuda(inputs: RecipeInputs[OmudaSettings]) -> SelfTraining:
    """Build a reading of OMUDA's abstract: DAFormer's losses, and the terms that its settings switch on.

    Levels: context (complementary masks by region), class (class confidence), and, if a directory is set, feature
    (foundation distance).
    """
    return daformer(inputs)


def _with_distance(inputs: RecipeInputs[RareClassSettings]) -> list[Term]:
    if inputs.recipe.feature_distance_weight == 0.0 or inputs.reference is None:
        return [source_term, mix_term]
    return [partial(source_term, distance=FeatureDistance(inputs, inputs.reference)), mix_term]


def gold(inputs: RecipeInputs[GoldSettings]) -> Gold:
    """Build GOLD's directions with the losses of DACS, MFM."""
    return Gold(inputs, with_added(inputs, [source_term, mix_term]))


RECIPES: dict[str, Callable[[RecipeInputs[Any]], Recipe[RecipeBase]]] = {
    "dacs": dacs,
    "daformer": daformer,
    "hrda": hrda,
    "mic": mic,
    "omuda": omuda,
    "mfm_da": mfm_da,
    "bn_statistics": BnStatistics,
    "tent": Tent,
    "cotta": Cotta,
    "gold": gold,
}


def build_recipe(inputs: RecipeInputs[RecipeBase]) -> Recipe[RecipeBase]:
    """Build the recipe `inputs.recipe.name`, or the plug-in that it names.

    Raises AdapterError when its network or its data do not fit, ConfigError for a plug-in that cannot be imported.
    """
    if isinstance(inputs.recipe, PluginSettings):
        return _plugin(inputs, inputs.recipe.advanced.plugin)
    return RECIPES[inputs.recipe.name](inputs)


def _plugin(inputs: RecipeInputs[RecipeBase], name: str) -> Recipe[RecipeBase]:
    recipe = load_plugin(name, PLUGINS, "recipe.advanced.plugin")(inputs)
    if not isinstance(recipe, Recipe):
        raise AdapterError(
            f"recipe.advanced.plugin: {name!r} returned a {type(recipe).__name__}, expected a Recipe; see "
            "docs/how-to/plug-ins.md"
        )
    return recipe
