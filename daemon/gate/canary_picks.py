"""Which frames teach most when a person labels them: spread over conditions, uncertain, of disputed classes. Pure."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from daemon.gate.bursts import Floats
from storage.buffer.observations import Observation
from storage.rounds.records import RoundScores


class Pick(NamedTuple):
    """A frame to label."""

    frame: int
    """Its id."""
    condition: int | None
    """Number of its condition; None between conditions, or when none is known."""
    value: float
    """Rank of its uncertainty and of the dispute about its classes, both 0-1, their mean."""


def disputed(scores: RoundScores | None, classes: int) -> Floats:
    """Return for each class [K] how far candidate and incumbent of a round differ in its area, 0 (alike) to 1."""
    if scores is None or scores.incumbent is None or scores.candidate is None:
        return np.zeros(classes)
    one, other = (np.asarray(model.area, np.float64) for model in (scores.incumbent, scores.candidate))
    if one.shape != other.shape or one.ndim != 2 or one.shape[1] != classes:
        return np.zeros(classes)
    both = (one + other).sum(axis=0)
    share: Floats = np.divide(np.abs(one - other).sum(axis=0), both, out=np.zeros(classes), where=both > 0)
    return share


def pick_frames(
    observed: Sequence[Observation], conditions: Mapping[int, int | None], dispute: Floats, count: int
) -> list[Pick]:
    """Return at most `count` frames to label.

    `conditions`: number of the condition by frame. Conditions take turns, the newest first; in each, the next frame is
    the one with the most value plus distance, by embedding, from those picked before: near-twins are not both picked.
    """
    if not observed:
        return []
    entropy = np.array([item.entropy for item in observed])
    known = all(item.area.shape == dispute.shape for item in observed)
    contested = np.array([item.area @ dispute for item in observed]) if known else np.zeros(len(observed))
    value = (_rank(entropy) + _rank(contested)) / 2
    rows = np.stack([item.embedding for item in observed]).astype(np.float64)
    group = np.array([conditions.get(item.frame) or 0 for item in observed])
    picked, left = list[int](), np.ones(len(observed), np.bool_)
    apart = np.ones(len(observed))
    while left.any() and len(picked) < count:
        taken = {number: sum(group[place] == number for place in picked) for number in np.unique(group[left])}
        turn = left & (group == min(taken, key=lambda number: (taken[number], -number)))
        best = int(np.argmax(np.where(turn, value + apart, -1.0)))
        picked.append(best)
        left[best] = False
        apart = _apart(rows, picked)
    return [Pick(observed[at].frame, conditions.get(observed[at].frame), float(value[at])) for at in picked]


def _rank(values: NDArray[np.floating]) -> Floats:
    """Return places among the different values, 0 (least) to 1; all 0 when there is only one."""
    different = np.unique(values)
    return np.searchsorted(different, values) / max(1, len(different) - 1)


def _apart(rows: Floats, picked: Sequence[int]) -> Floats:
    """Return the distance to the nearest picked row, as a share of the largest [n]."""
    nearest = np.stack([np.linalg.norm(rows - rows[place], axis=1) for place in picked]).min(axis=0)
    share: Floats = nearest / max(float(nearest.max()), 1e-12)
    return share
