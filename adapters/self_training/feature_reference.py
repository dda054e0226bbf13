"""The frozen network that feature distance measures against (DAFormer, arXiv 2111.14887)."""

import torch

from adapters.errors import NetworkMismatch
from adapters.networks.build import build_network
from adapters.networks.network import SegmentationNetwork
from configs.network import Architecture
from configs.recipe import RareClassSettings
from configs.settings import Settings
from storage.registry.manifest import Manifest


def reference_network(
    settings: Settings, incumbent: Manifest, released: SegmentationNetwork | None, device: torch.device
) -> SegmentationNetwork | None:
    """Return `released`, or the incumbent's architecture with the weights of `network.pretrained`, on `device`.

    Only its `encode` is meaningful. It is frozen and in eval mode. None when the recipe has no feature distance. Raises
    NetworkMismatch when those weights belong to another encoder than the incumbent's, UnsupportedModel when they cannot
    be read.
    """
    recipe = settings.recipe
    if not isinstance(recipe, RareClassSettings) or recipe.feature_distance_weight == 0.0:
        return None
    if recipe.advanced.feature_distance_from == "released":
        return released
    architecture = Architecture.model_validate(incumbent.network)
    if architecture.name == "huggingface":
        raise NetworkMismatch(
            "recipe.advanced.feature_distance_from: 'pretrained' is not possible with an imported network, whose "
            "encoder has no weights of its own at network.pretrained; set it to 'released'"
        )
    architecture = architecture.model_copy(update={"pretrained": settings.network.pretrained})
    return build_network(architecture, len(incumbent.classes)).requires_grad_(False).to(device).eval()
