"""Which frames of the buffer rounds and the gate must not use, and why: pure rules over facts, tested from tables.

A new condition is a coherent burst of scenes, so nothing is left out only because it is new. What is left out shows no
scene at all, shows what is known already once a fault of the pipeline is undone, or is the same picture again.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from configs.round import LEFT_OUT, LeftOut, RoundAdvanced
from daemon.gate.bursts import Floats
from daemon.gate.frame_facts import FrameFacts
from storage.buffer.catalog_records import FrameRecord

NO_EVIDENCE: frozenset[LeftOut] = frozenset({"blank", "lines", "noise", "blurred", "fault", "ramp"})
"""Reasons for which the gate too looks away. `far` frames are of no condition anyway, and a burst of them may open one;
copies are what a fixed camera sends, and a flood shows real scenes."""
LEAST_DETAIL = 0.004
"""Below this a frame is black, of one colour or a gradient (0-1; one grey value); drawn night has 0.025 and more."""
LEAST_LIKENESS = 0.6
"""Below this neighbouring blocks of pixels are unrelated; drawn night has 0.70 and more, photos 0.90."""
MOST_LINES = 2.0
"""Beyond this rows or columns are replaced; drawn scenes have at most 1.2, photos 1.5."""
LEAST_SHARPNESS = 0.2
"""A frame that is this much less sharp than the least sharp known ones is out of focus (share)."""
SAME_PICTURE = 2.0 / 255.0
"""Root mean square difference of two thumbnails below which they show the same picture, brightness aside (0-1)."""
LEAST_KNOWN = 8
"""Fewer thumbnails do not say what a condition looks like."""
UNDONE = 0.7
"""A frame has a fault when undoing it brings the frame this much nearer to what is known (share of the distance)."""
TYPICAL = 2.0
"""And at most this far away, in distances that are usual among known frames."""
RAMPS = {16: 0.4, 32: 0.4, 64: 0.6}
"""Neighbouring frames of one camera whose brightness is compared, and the least change along them (natural logarithm):
by half within 16 or 32 frames. Scenes differ in brightness, so a slower ramp shows in more frames only."""
RAMP_FIT = 0.85
"""Share of their brightness's variance that a straight line explains when somebody turns a knob (0-1). A step, as when
another condition comes, has at most 0.75."""
RAMP_ENDS = 0.5
"""The first and the last quarter change at least this fast, in changes of the whole: the light does not stand still."""
FAR = 2.0
"""Beyond this a style vector is far from everything known (thresholds): a burst of such frames that are alike opens a
condition, and they are not far any more. At 1.5 a quarter of drawn fog was left out."""
FLOOR = 0.02
"""Least deviation of a cell among known frames (0-1)."""


@dataclass(frozen=True, slots=True)
class Look:
    """What the frames of a known condition look like."""

    mean: Floats
    """Mean thumbnail, [ROWS, COLUMNS, 3]."""
    deviation: Floats
    """Standard deviation of each cell, the same shape."""
    usual: float
    """Median distance of its own frames."""
    sharpness: float
    """Of the least sharp of its frames: 1 - `FrameFacts.likeness`."""

    def distance(self, thumbnail: Floats) -> float:
        """Return the root mean square of the cells' deviations, in units of what is usual."""
        return float(np.sqrt((((thumbnail - self.mean) / self.deviation) ** 2).mean())) / self.usual


def look_of(facts: Sequence[FrameFacts]) -> Look | None:
    """Return the look of known frames; None when there are fewer than LEAST_KNOWN."""
    if len(facts) < LEAST_KNOWN:
        return None
    cells = np.stack([fact.thumbnail for fact in facts])
    mean, deviation = cells.mean(axis=0), np.maximum(cells.std(axis=0), FLOOR)
    raw = np.sqrt((((cells - mean) / deviation) ** 2).mean(axis=(1, 2, 3)))
    return Look(mean, deviation, max(float(np.median(raw)), 1e-6), 1.0 - max(fact.likeness for fact in facts))


@dataclass(frozen=True, slots=True)
class Judged:
    """What the rules look at."""

    records: Sequence[FrameRecord]
    """Frames of the buffer in commit order."""
    facts: Mapping[int, FrameFacts]
    """Their facts by id; a frame without is not judged."""
    looks: Sequence[Look] = ()
    """Of the known conditions."""
    far: Mapping[int, float] = field(default_factory=dict)
    """Distance of a style vector from the nearest known condition, by id, in thresholds of `conditions`."""
    trusted: frozenset[int] = frozenset()
    """Frames that an earlier round used: only copies and floods are looked for among them."""


def left_out(judged: Judged, settings: RoundAdvanced, most_of_source: int) -> dict[int, LeftOut]:
    """Return the frames (by id) that a round must not use, each with its first reason.

    `most_of_source`: frames that a source may give, whatever its share.
    """
    reasons: dict[int, LeftOut] = {}
    for reason in (reason for reason in LEFT_OUT if reason in settings.leave_out):
        rest = [record for record in judged.records if record.id in judged.facts and record.id not in reasons]
        new = [record for record in rest if record.id not in judged.trusted]
        if reason == "copies":
            found = _copies(rest, judged.facts, settings.most_copies)
        elif reason == "flood":
            found = _flood(rest, settings.most_source_share, most_of_source)
        elif reason == "ramp":
            found = set(_ramps(new, judged.facts))
        elif reason == "far":
            found = {record.id for record in new if judged.far.get(record.id, 0.0) > FAR}
        else:
            found = _single(reason, new, judged.facts, judged.looks)
        reasons |= dict.fromkeys(found, reason)
    return reasons


def _single(
    reason: LeftOut, records: Sequence[FrameRecord], facts: Mapping[int, FrameFacts], looks: Sequence[Look]
) -> set[int]:
    least = min((look.sharpness for look in looks), default=0.0)
    rules: dict[LeftOut, Callable[[FrameFacts], bool]] = {
        "blank": lambda fact: fact.detail < LEAST_DETAIL,
        "noise": lambda fact: fact.likeness < LEAST_LIKENESS,
        "lines": lambda fact: fact.lines > MOST_LINES,
        "blurred": lambda fact: 1.0 - fact.likeness < LEAST_SHARPNESS * least,
        "fault": lambda fact: _has_fault(fact.thumbnail, looks),
    }
    return {record.id for record in records if rules[reason](facts[record.id])}


def _has_fault(thumbnail: Floats, looks: Sequence[Look]) -> bool:
    """Whether other channels, turning it upside down or inverting it make a typical frame of an untypical one."""
    if not looks:
        return False
    now = min(look.distance(thumbnail) for look in looks)
    undone = min(look.distance(other) for look in looks for other in _without_fault(thumbnail))
    return undone < UNDONE * now and undone <= TYPICAL


def _without_fault(thumbnail: Floats) -> Iterator[Floats]:
    for order in list(permutations(range(3)))[1:]:
        yield thumbnail[..., order]
    yield thumbnail[::-1]
    yield 1.0 - thumbnail


def _copies(records: Sequence[FrameRecord], facts: Mapping[int, FrameFacts], most: int) -> set[int]:
    """Return all but the first `most` frames that show one picture, held-out and training frames counted apart."""
    found: set[int] = set()
    for holdout in (False, True):
        mine = [record.id for record in records if record.holdout == holdout]
        cells = facts[mine[0]].thumbnail.size if mine else 0
        pictures, squares = np.zeros((len(mine), cells), np.float32), np.zeros(len(mine), np.float32)
        counts: list[int] = []
        for frame in mine:
            flat = (facts[frame].thumbnail - facts[frame].thumbnail.mean()).ravel().astype(np.float32)
            known = slice(len(counts))  # |a - b|^2 = |a|^2 - 2ab + |b|^2: one product, thousands of frames take long
            apart = (squares[known] - 2.0 * (pictures[known] @ flat) + flat @ flat) / max(cells, 1)
            if len(apart) and apart.min() < SAME_PICTURE**2:
                at = int(apart.argmin())
                counts[at] += 1
                if counts[at] > most:
                    found.add(frame)
            else:
                pictures[len(counts)], squares[len(counts)] = flat, flat @ flat
                counts.append(1)
    return found


def _ramps(records: Sequence[FrameRecord], facts: Mapping[int, FrameFacts]) -> Iterator[int]:
    """Yield the frames of every run of neighbours of one camera whose brightness follows a line (RAMPS)."""
    for source in {record.source for record in records}:
        mine = [record.id for record in records if record.source == source]
        light = np.log([facts[frame].thumbnail.mean() + 1e-3 for frame in mine])
        inside = np.zeros(len(mine), np.bool_)
        for length, rise in RAMPS.items():
            if len(mine) >= length:
                inside |= np.convolve(_rises(light, length, rise), np.ones(length)) > 0
        yield from (frame for frame, within in zip(mine, inside, strict=True) if within)


def _rises(light: Floats, length: int, rise: float) -> NDArray[np.bool_]:
    """Return whether each window of `length` values follows a line that changes by `rise`, [N - length + 1]."""
    slope, fit = _lines(light, length)
    ends, _ = _lines(light, length // 4)
    least = RAMP_ENDS * np.abs(slope)
    first, last = (np.sign(slope) * end > least for end in (ends[: len(slope)], ends[-len(slope) :]))
    hit: NDArray[np.bool_] = (fit > RAMP_FIT) & (np.abs(slope) * (length - 1) > rise) & first & last
    return hit


def _lines(light: Floats, length: int) -> tuple[Floats, Floats]:
    """Return the slope of the line through each window of `length` values, and the share of variance explained."""
    place = np.arange(length) - (length - 1) / 2.0
    runs = np.lib.stride_tricks.sliding_window_view(light, length)
    slope = runs @ place / (place @ place)
    return slope, slope**2 * (place @ place) / length / (runs.var(axis=1) + 1e-12)


def _flood(records: Sequence[FrameRecord], share: float, least: int) -> set[int]:
    """Return the oldest frames of a source that exceed its share, when there are several sources."""
    sources = {record.source for record in records}
    found: set[int] = set()
    for source in sources if len(sources) > 1 and share < 1.0 else ():
        mine = [record.id for record in records if record.source == source]
        most = max(least, int((len(records) - len(mine)) * share / (1.0 - share)))
        found.update(mine[: max(0, len(mine) - most)])
    return found
