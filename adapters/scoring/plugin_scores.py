"""Scores that plug-ins give the frames of a round: recorded and shown, never a vote of the gate."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from adapters.networks.network import SegmentationNetwork, normalise
from adapters.scoring.scores.frames import enlarged
from configs.plugins import SCORES, load_plugin
from configs.round import RoundSettings

Score = Callable[[SegmentationNetwork, Tensor, Tensor], float]
"""Of a network in eval mode, a normalised image [1, 3, h, w] and its class map uint8 [h, w]."""

log = logging.getLogger(__name__)


def load_scores(settings: RoundSettings) -> dict[str, Score]:
    """Import the plug-ins of `round.advanced.scores`. Raises ConfigError for one that cannot be imported."""
    return {name: load_plugin(name, SCORES, "round.advanced.scores") for name in settings.advanced.scores}


def plugin_scores(
    scores: Mapping[str, Score], network: SegmentationNetwork, frames: Sequence[Tensor], maps: Sequence[Tensor]
) -> dict[str, list[float]]:
    """Return the values on `frames`, uint8 [h, w, 3], by name; `maps` are their class maps uint8 [h, w].

    A score that fails or is not finite is left out for this model: training is not lost through it.
    """
    found = {}
    for name, score in scores.items():
        pairs = zip(frames, maps, strict=True)
        try:
            values = [float(score(network, enlarged(normalise(frame[None])), labels)) for frame, labels in pairs]
        except Exception as error:  # noqa: BLE001  whatever that package raises
            log.error("score plug-in %s failed and is left out: %r", name, error)
            continue
        if all(map(math.isfinite, values)):
            found[name] = values
        else:
            log.error("score plug-in %s gave values that are not finite and is left out", name)
    return found
