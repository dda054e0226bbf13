"""Known conditions of the stream: clusters of style vectors, found the same way in any order of observation.

A frame belongs to the nearest centroid within the threshold. A burst of neighbouring frames that are all outside opens
a new condition at its mean (ReservoirTTA, arXiv 2505.14511, section 3: a quantile of the distances among reference
frames is the threshold). A centroid stays where it was opened, so nothing depends on the order in which the observer
sees frames, and the file can be built again. Pure and numpy only.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from configs.gate import ConditionsSettings
from daemon.gate.bursts import Floats
from storage.buffer.catalog_records import FrameRecord
from storage.buffer.observations import Observation
from storage.gate.conditions import Condition, Conditions

Numbers = NDArray[np.int64]

MOST_CENTROIDS = 64
"""Most centroids that a condition keeps after merges; the oldest goes first, when its frames left long ago."""
MOST_BURST = 32
"""Newest frames of the condition in force that are remembered (images)."""
OUTSIDE_SHARE = 0.75
"""Least share of a burst that must be outside to open a condition: conditions touch, so a few frames are of another."""
OUTSIDE = -1
"""Place of a frame that belongs to no condition."""


@dataclass(frozen=True, slots=True)
class SeenFrames:
    """Observed frames of the buffer, in commit order."""

    ids: Numbers
    """Frame ids, [N], ascending."""
    at: Floats
    """When each was observed (Unix, seconds), [N]."""
    styles: Floats
    """Style vectors, [N, S]."""
    holdout: NDArray[np.bool_]
    """Whether each is held out, [N]."""
    digests: Sequence[str]
    """Content hash of each; it makes an even choice that does not depend on order."""
    cameras: NDArray[np.str_]
    """Source label of each, [N]; a burst is of one label, because several cameras take turns in the stream."""

    def only(self, mask: NDArray[np.bool_]) -> "SeenFrames":
        """Return the frames of a mask [N]."""
        digests = [digest for digest, kept in zip(self.digests, mask, strict=True) if kept]
        return SeenFrames(
            self.ids[mask], self.at[mask], self.styles[mask], self.holdout[mask], digests, self.cameras[mask]
        )

    def newest(self, count: int) -> "SeenFrames":
        """Return the last `count` frames."""
        return self.only(np.arange(len(self.ids)) >= len(self.ids) - count)


def seen_frames(observed: Sequence[Observation], records: Mapping[int, FrameRecord]) -> SeenFrames:
    """Return observed frames, in order of id, with what their `records` (by id) say."""
    mine = [records[item.frame] for item in observed]
    return SeenFrames(
        ids=np.array([item.frame for item in observed], np.int64),
        at=np.array([item.at for item in observed]),
        styles=rows_of([item.style for item in observed]),
        holdout=np.array([record.holdout for record in mine], np.bool_),
        digests=[record.digest for record in mine],
        cameras=np.array([record.source for record in mine], np.str_),
    )


def rows_of(vectors: Sequence[NDArray[np.float32]]) -> Floats:
    """Return vectors [S] as the rows of [N, S]; [0, 0] without any."""
    return np.array(vectors, np.float64) if vectors else np.zeros((0, 0))


def distances(styles: Floats, centroids: Floats) -> Floats:
    """Return the Euclidean distance of each style vector [N, S] from each centroid [C, S], as [N, C]."""
    squares = (styles**2).sum(axis=1)[:, None] + (centroids**2).sum(axis=1)[None] - 2.0 * styles @ centroids.T
    apart: Floats = np.sqrt(np.maximum(squares, 0.0))
    return apart


def threshold_of(reference: Floats, quantile: float) -> float:
    """Return the distance from a centroid at which frames are outside, from reference style vectors [N, S]; N >= 2.

    It is the quantile (0-1) of all pairwise distances, divided by the root of two: two frames of one condition are that
    much farther from each other than from their mean. Without it drawn night fell into dusk.
    """
    apart = distances(reference, reference)
    return float(np.quantile(apart[np.triu_indices(len(reference), 1)], quantile)) / math.sqrt(2.0)


def places(styles: Floats, known: Conditions) -> Numbers:
    """Return the index into `known.conditions` that each style vector [N, S] belongs to, or OUTSIDE, as [N]."""
    if not known.conditions or not len(styles):
        return np.full(len(styles), OUTSIDE)
    apart = distances(styles, np.array([row for item in known.conditions for row in item.centroids]))
    owners = np.repeat(np.arange(len(known.conditions)), [len(item.centroids) for item in known.conditions])
    return np.where(apart.min(axis=1) <= known.threshold, owners[apart.argmin(axis=1)], OUTSIDE)


def apart(styles: Floats, known: Conditions) -> Floats:
    """Return the distance of each style vector [N, S] from the nearest centroid, in thresholds, [N]; N >= 1."""
    centroids = np.array([row for item in known.conditions for row in item.centroids])
    nearest: Floats = distances(styles, centroids).min(axis=1) / max(known.threshold, 1e-9)
    return nearest


def first_conditions(
    released: int, source: Floats, seen: SeenFrames, settings: ConditionsSettings, now: float
) -> Conditions | None:
    """Return the beginning: the labelled source images, or else the first frames, are condition 1.

    `source`: style vectors of source images [M, S]; M is 0 without source. None while there are too few frames.
    """
    labelled = len(source) > 1
    reference = source if labelled else seen.styles[: settings.advanced.reference_frames]
    if not labelled and len(reference) < settings.advanced.reference_frames:
        return None
    first = Condition(
        number=1,
        name="source" if labelled else "condition-1",
        opened=now,
        last_seen=now if labelled else float(seen.at[len(reference) - 1]),
        centroids=(tuple(reference.mean(axis=0).tolist()),),
        best=released,
        best_reason="the released version",
        labelled=labelled,
    )
    threshold = threshold_of(reference, settings.advanced.quantile)
    return Conditions(released=released, threshold=threshold, given=1, conditions=(first,))


def follow(
    known: Conditions,
    seen: SeenFrames,
    settings: ConditionsSettings,
    serving: int,
    golden: int,
    far: float = math.inf,
) -> Conditions:
    """Return the conditions after a look at all observed frames of the buffer.

    `serving` is the version that a new condition starts with; `golden` the most frames that each keeps. Frames that are
    more than `far` thresholds from every condition may open one, but say nothing about the one in force.
    """
    known = _updated(with_new(known, seen.only(seen.ids > known.opens_after), settings, serving), seen, golden)
    while len(known.conditions) > settings.most:
        known = _updated(merged(known, *_least_used(known)), seen, golden)
    newest = settings.advanced.burst_frames
    if len(seen.ids):
        seen = seen.only(apart(seen.styles, known) <= far)
    current, burst = condition_of(known, seen.newest(newest))
    if current is not None and current == known.current and known.burst:
        since = condition_frames(known, seen.only(seen.ids >= known.burst[0]), current)
        burst = since[-MOST_BURST:]
    cameras = {
        str(camera): condition_of(known, seen.only(seen.cameras == camera).newest(newest))[0]
        for camera in np.unique(seen.cameras)
    }
    return known.model_copy(update={"current": current, "burst": burst, "cameras": cameras})


def merged(known: Conditions, gone: int, into: int) -> Conditions:
    """Return the conditions with number `gone` merged into number `into`, which keeps its name and its version."""
    left, stays = known.condition(gone), known.condition(into)
    if left is None or stays is None or gone == into:
        raise ValueError(f"no two conditions {gone} and {into}")
    update = {
        "centroids": (*left.centroids, *stays.centroids)[-MOST_CENTROIDS:],
        "golden": (*stays.golden, *left.golden),
        "last_seen": max(left.last_seen, stays.last_seen),
        "labelled": left.labelled or stays.labelled,
    }
    whole = stays.model_copy(update=update)
    rest = tuple(whole if item.number == into else item for item in known.conditions if item.number != gone)
    return known.model_copy(update={"conditions": rest, "current": into if known.current == gone else known.current})


def with_best(
    known: Conditions, number: int | None, version: int | None, reason: str, *, made: bool = False
) -> Conditions:
    """Return the conditions with another best version of condition `number`; `made`: a round made it for that one."""
    update = {"best": version, "best_reason": reason} | ({"made": version} if made else {})
    items = [item.model_copy(update=update) if item.number == number else item for item in known.conditions]
    return known.model_copy(update={"conditions": tuple(items)})


def with_new(known: Conditions, seen: SeenFrames, settings: ConditionsSettings, serving: int) -> Conditions:
    """Open a condition for each burst of neighbouring frames that are mostly outside and alike, oldest first.

    They begin with the version `serving`.
    """
    while True:
        burst = _first_burst(places(seen.styles, known) == OUTSIDE, seen.cameras, settings.advanced.burst_frames)
        if burst is None:
            return known
        number = known.given + 1
        opened = Condition(
            number=number,
            name=f"condition-{number}",
            opened=float(seen.at[burst].min()),
            last_seen=float(seen.at[burst].max()),
            centroids=(tuple(seen.styles[burst].mean(axis=0).tolist()),),
            best=serving,
            best_reason="it served when the condition opened",
        )
        more = known.model_copy(update={"given": number, "conditions": (*known.conditions, opened)})
        if 2 * (places(seen.styles[burst], more) == len(known.conditions)).sum() > len(burst):
            known = more
        else:  # frames too unlike each other: of no condition
            seen = seen.only(~np.isin(np.arange(len(seen.ids)), burst))


def _first_burst(outside: NDArray[np.bool_], cameras: NDArray[np.str_], length: int) -> Numbers | None:
    """Return the places of the frames outside in the burst that is complete first, or None.

    A burst is `length` neighbouring frames of one camera, of which enough are outside.
    """
    bursts = []
    for camera in np.unique(cameras[outside]):
        mine = np.flatnonzero(cameras == camera)
        if len(mine) < length:
            continue
        among = np.convolve(outside[mine], np.ones(length), mode="valid")  # of each window of `length` neighbours
        full = np.flatnonzero(among >= OUTSIDE_SHARE * length)
        if len(full):
            bursts.append(mine[full[0] : full[0] + length])
    if not bursts:
        return None
    first = min(bursts, key=lambda burst: int(burst[-1]))
    return first[outside[first]]


def _least_used(known: Conditions) -> tuple[int, int]:
    """Return the condition that was not seen for longest, never the labelled one, and its nearest neighbour."""
    gone = min((item for item in known.conditions if not item.labelled), key=lambda item: item.last_seen)
    others = [item for item in known.conditions if item.number != gone.number]
    apart = [distances(np.array(gone.centroids), np.array(item.centroids)).min() for item in others]
    return gone.number, others[int(np.argmin(apart))].number


def condition_of(known: Conditions, seen: SeenFrames) -> tuple[int | None, tuple[int, ...]]:
    """Return the condition of most frames that are of any, and those frames; None when there is none.

    As many frames outside as open a condition are of none. Fewer are the edge of the one beside which they lie: a third
    of drawn fog is outside of the condition that its first burst opened.
    """
    place = places(seen.styles, known)
    inside = place[place != OUTSIDE]
    counts = np.bincount(inside, minlength=len(known.conditions))
    most = int(counts.argmax())
    if 2 * counts[most] <= len(inside) or len(place) - len(inside) >= OUTSIDE_SHARE * len(place):
        return None, ()
    return known.conditions[most].number, tuple(seen.ids[place == most].tolist())


def condition_frames(known: Conditions, seen: SeenFrames, number: int) -> tuple[int, ...]:
    """Return the frames that are of condition `number`, in commit order."""
    index = [item.number for item in known.conditions].index(number)
    return tuple(seen.ids[places(seen.styles, known) == index].tolist())


def _updated(known: Conditions, seen: SeenFrames, golden: int) -> Conditions:
    place = places(seen.styles, known)
    found = [_with_frames(item, seen, np.flatnonzero(place == at), golden) for at, item in enumerate(known.conditions)]
    return known.model_copy(update={"conditions": tuple(found)})


def _with_frames(condition: Condition, seen: SeenFrames, mine: Numbers, golden: int) -> Condition:
    """Return the condition with the newest time and golden frames; `mine` are places of its frames in `seen`.

    The golden frames are an even choice over everything seen: the held-out frames with the smallest content hashes.
    Those that the buffer lost are replaced.
    """
    digest = dict(zip(seen.ids.tolist(), seen.digests, strict=True))
    held = {int(seen.ids[place]) for place in mine if seen.holdout[place]}
    pool = sorted(held | {frame for frame in condition.golden if frame in digest}, key=lambda frame: digest[frame])
    last = max([condition.last_seen, *seen.at[mine].tolist()])
    labels, counts = np.unique(seen.cameras[mine], return_counts=True)
    cameras = dict(zip(labels.tolist(), counts.tolist(), strict=True))
    return condition.model_copy(update={"golden": tuple(sorted(pool[:golden])), "last_seen": last, "cameras": cameras})
