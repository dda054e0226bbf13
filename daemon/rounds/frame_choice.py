"""Which leased frames a round may use: facts from pixels, what earlier rounds used, and the rules (`frame_rules`).

Nothing is stored about a frame: it is judged again before each round, so another setting takes it in again.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import lru_cache

import numpy as np

from configs.round import LEFT_OUT
from configs.settings import Settings
from daemon.gate.conditions import OUTSIDE, distances, places
from daemon.gate.memory import seen_frames
from daemon.rounds.frame_facts import FrameFacts, facts_of
from daemon.rounds.frame_rules import Judged, left_out, look_of
from daemon.runtime.logs import get_logger
from storage.buffer.catalog_records import FrameRecord
from storage.buffer.frames import FrameBuffer
from storage.buffer.observations import Observations
from storage.buffer.pixel_array import PixelArray
from storage.errors import StorageError
from storage.gate.conditions import ConditionStore
from storage.layout import StateLayout
from storage.rounds.folder import RoundStore
from storage.source.labelled import LabelledSet

SOURCE_IMAGES = 32
"""Source images, evenly chosen, that say what the labelled source looks like."""
REMEMBERED = 4096
"""Frames whose facts are kept in memory, so that only new ones are read (0.9 ms each at 144x192)."""

log = get_logger(__name__)


def choose_frames(
    frames: Sequence[FrameRecord], buffer: FrameBuffer, settings: Settings, released: int, *, manual: bool
) -> tuple[list[FrameRecord], dict[str, tuple[int, ...]]]:
    """Return the frames that a round may use, in order, and the ids of the others by reason.

    `released`: the version whose encoder made the style vectors. A frame that cannot be read is not judged. Unless
    an operator asked for the round (`manual`), no frame may be used when only old ones are left to train on: a round on
    them would not help.
    """
    advanced = settings.round.advanced
    if not advanced.leave_out:
        return list(frames), {}
    facts = {frame.id: fact for frame in frames if (fact := _facts(buffer, frame)) is not None}
    trusted = _used_before(settings)
    place, far = _styles(frames, settings, released)
    looks = [look for look in map(look_of, _known(facts, trusted, place, settings)) if look is not None]
    judged = Judged(frames, facts, looks, far, trusted)
    reasons = left_out(judged, advanced, settings.schedule.new_frames)
    found = {reason: tuple(frame for frame, why in reasons.items() if why == reason) for reason in LEFT_OUT}
    chosen = [frame for frame in frames if frame.id not in reasons]
    new = any(frame.id not in trusted and not frame.holdout for frame in chosen)
    stays = manual or new or not reasons.keys() - trusted
    return chosen if stays else [], {why: ids for why, ids in found.items() if ids}


def left_out_text(found: Mapping[str, Sequence[int]]) -> str:
    """Return how many frames were left out for which reason, for people."""
    return ", ".join(f"{len(ids)} {reason}" for reason, ids in found.items())


@lru_cache(maxsize=REMEMBERED)
def _read_facts(buffer: FrameBuffer, frame: FrameRecord) -> FrameFacts:
    return facts_of(buffer.read(frame)[: frame.valid_height, : frame.valid_width])


@lru_cache(maxsize=2 * SOURCE_IMAGES)
def _source_facts(images: PixelArray, index: int, height: int, width: int) -> FrameFacts:
    return facts_of(images.read(index)[:height, :width])


def _facts(buffer: FrameBuffer, frame: FrameRecord) -> FrameFacts | None:
    with suppress(StorageError):  # a damaged frame is the round's to report
        return _read_facts(buffer, frame)
    return None


def _used_before(settings: Settings) -> frozenset[int]:
    """Return the frames that a round has used; those that it left out are not among them."""
    store, used = RoundStore(StateLayout(settings.state).rounds), set[int]()
    for number in store.numbers():
        with suppress(StorageError):  # a damaged folder tells nothing
            spec = store.folder(number).spec()
            used.update(spec.train_frames, spec.holdout_frames)
    return frozenset(used)


def _styles(
    frames: Sequence[FrameRecord], settings: Settings, released: int
) -> tuple[dict[int, int], dict[int, float]]:
    """Return the condition of each observed frame, and its distance from the nearest one in thresholds.

    Both are empty while conditions are off, not known yet or damaged.
    """
    layout = StateLayout(settings.state)
    try:
        known = ConditionStore(layout.conditions).read() if settings.conditions.advanced.enabled else None
        if known is None or known.released != released or not layout.observations.exists():
            return {}, {}
        records = {frame.id: frame for frame in frames}
        with Observations.open(layout.observations, writable=False) as observations:
            observed = observations.get(records.keys() & observations.observed(released))
    except StorageError as error:
        log.warning("styles_unknown", reason=str(error))
        return {}, {}
    if not observed or not known.conditions:
        return {}, {}
    seen = seen_frames(observed, records)
    near = distances(seen.styles, np.array([row for item in known.conditions for row in item.centroids])).min(axis=1)
    ids = seen.ids.tolist()
    far = near / max(known.threshold, 1e-9)
    return dict(zip(ids, places(seen.styles, known).tolist(), strict=True)), dict(zip(ids, far.tolist(), strict=True))


def _known(
    facts: Mapping[int, FrameFacts], trusted: frozenset[int], place: Mapping[int, int], settings: Settings
) -> list[list[FrameFacts]]:
    """Return the facts of what is known, by condition: trusted frames, and labelled source images."""
    groups: dict[int, list[FrameFacts]] = {}
    for frame in facts.keys() & trusted:
        groups.setdefault(place.get(frame, OUTSIDE), []).append(facts[frame])
    return [*groups.values(), *_source(settings)]


def _source(settings: Settings) -> list[list[FrameFacts]]:
    layout = StateLayout(settings.state)
    if settings.source is None or not LabelledSet.exists(layout):
        return []
    try:
        source = LabelledSet.open(layout)
        chosen = np.linspace(0, len(source) - 1, min(len(source), SOURCE_IMAGES)).astype(int).tolist()
        return [[_source_facts(source.images, index, *source.valid[index]) for index in chosen]]
    except StorageError as error:
        log.warning("source_not_read", reason=str(error))
        return []
