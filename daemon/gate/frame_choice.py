"""Which frames a round may use, and which the gate looks at: facts of pixels, what earlier rounds used, and the rules.

No judgement is stored: a frame is judged again before each round, so another setting takes it in again. Facts are the
observer's.
"""

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import numpy as np

from configs.round import LEFT_OUT, LeftOut
from configs.settings import Settings
from daemon.errors import NotEnoughFrames
from daemon.gate.conditions import OUTSIDE, apart, places, seen_frames, with_new
from daemon.gate.frame_facts import FrameFacts, facts_of, stored_facts
from daemon.gate.frame_rules import NO_EVIDENCE, Judged, Look, left_out, look_of
from daemon.runtime.logs import get_logger
from storage.buffer.catalog_records import FrameRecord
from storage.buffer.frames import FrameBuffer
from storage.buffer.observations import Observations
from storage.buffer.pixel_array import PixelArray
from storage.errors import StorageError
from storage.gate.conditions import ConditionStore
from storage.layout import StateLayout
from storage.rounds.folder import RoundFolder, RoundStore
from storage.source.labelled import LabelledSet

SOURCE_IMAGES = 32
"""Source images, evenly chosen, that say what the labelled source looks like."""
REMEMBERED = 4096
"""Frames without stored facts whose facts are kept in memory, so that each is read once (0.9 ms at 144x192)."""

MEANINGS = {
    "fit": " (stored with another buffer.advanced.fit or resample: `mfmd doctor` says how to make them alike)",
    "lines": " (rows or columns are stuck)",
    "fault": " (swapped channels, upside down or inverted)",
    "ramp": " (the brightness rises or falls all the time)",
    "far": " (unlike everything known)",
    "copies": " (the picture does not change, and round.advanced.most_copies of one are used)",
    "flood": " (one of several sources sends most frames)",
}
"""What a reason means, where its name does not say it."""

log = get_logger(__name__)


def choose_frames(
    frames: Sequence[FrameRecord], buffer: FrameBuffer, settings: Settings, released: int, *, manual: bool
) -> tuple[list[FrameRecord], dict[str, tuple[int, ...]]]:
    """Return the frames that a round may use, in order, and the ids of the others by reason.

    `released`: the version whose encoder made the style vectors. A frame that cannot be read is not judged. Unless
    an operator asked for the round (`manual`), NotEnoughFrames is raised when only old ones are left to train on: a
    round on them would not help.
    """
    advanced = settings.round.advanced
    if not advanced.leave_out:
        return list(frames), {}
    stored = _stored(StateLayout(settings.state), [frame.id for frame in frames])
    facts = {frame.id: fact for frame in frames if (fact := stored.get(frame.id) or _facts(buffer, frame)) is not None}
    trusted = _used_before(settings)
    place, far = _styles(frames, settings, released)
    judged = Judged(frames, facts, _looks(facts, trusted, place, settings), far, trusted)
    reasons = left_out(judged, advanced, settings.schedule.new_frames)
    by_reason = {reason: tuple(frame for frame, why in reasons.items() if why == reason) for reason in LEFT_OUT}
    found: dict[str, tuple[int, ...]] = {why: ids for why, ids in by_reason.items() if ids}
    chosen = [frame for frame in frames if frame.id not in reasons]
    if not manual and reasons.keys() - trusted and not any(it.id not in trusted and not it.holdout for it in chosen):
        new = sum(frame.id not in trusted for frame in frames)
        text = (
            f"no new frame to train on; round.advanced.leave_out leaves out of {new} new ones: {left_out_text(found)}"
        )
        raise NotEnoughFrames(f"{text}; drop other images")
    return chosen, found


class FrameJudge:
    """Says which frames are no evidence for the gate: no recall, condition, golden frame or probation counts them."""

    def __init__(self) -> None:
        self._facts: dict[int, FrameFacts] = {}
        self._known: object = None
        self._looks: list[Look] = []
        self._alone: dict[int, LeftOut | None] = {}
        """What was found of frames one by one."""
        self._asked: object = None
        self._found: dict[int, LeftOut] = {}

    def left_out(self, frames: Sequence[FrameRecord], settings: Settings, released: int) -> Mapping[int, LeftOut]:
        """Return those of the buffer's frames with the reason of each. Raises StorageError.

        It reads no pixels. A frame is judged once, and again when rounds or settings change; only ramps are looked for
        with each new frame. A frame without stored facts is evidence: the observer writes the facts first.
        """
        layout, advanced = StateLayout(settings.state), settings.round.advanced
        reasons = tuple(reason for reason in advanced.leave_out if reason in NO_EVIDENCE)
        if not reasons or not layout.observations.exists():
            return {}
        there, trusted = {frame.id for frame in frames}, _used_before(settings)
        self._facts = {frame: fact for frame, fact in self._facts.items() if frame in there}
        self._facts |= _stored(layout, there - self._facts.keys())
        known = self._facts.keys() & trusted, released, settings.source, reasons
        if known != self._known:
            place, _ = _styles([frame for frame in frames if frame.id in trusted], settings, released)
            self._known, self._looks, self._alone = known, _looks(self._facts, trusted, place, settings), {}
        new = self._facts.keys() - trusted
        if (new, known) != self._asked:
            self._asked, mine = (new, known), [frame for frame in frames if frame.id in new]
            fresh = [frame for frame in mine if frame.id not in self._alone]
            found = self._judged(fresh, settings, [reason for reason in reasons if reason != "ramp"])
            self._alone = {frame: self._alone.get(frame, found.get(frame)) for frame in new}
            self._found = {frame: reason for frame, reason in self._alone.items() if reason is not None}
            rest = [frame for frame in mine if frame.id not in self._found]
            self._found |= self._judged(rest, settings, [reason for reason in reasons if reason == "ramp"])
        return self._found

    def _judged(
        self, frames: Sequence[FrameRecord], settings: Settings, reasons: Sequence[LeftOut]
    ) -> dict[int, LeftOut]:
        only = settings.round.advanced.model_copy(update={"leave_out": reasons})
        return left_out(Judged(frames, self._facts, self._looks), only, settings.schedule.new_frames)


def left_out_text(found: Mapping[str, Sequence[int]]) -> str:
    """Return how many frames were left out for which reason, for people."""
    return ", ".join(f"{len(ids)} {reason}{MEANINGS.get(reason, '')}" for reason, ids in found.items())


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


def _stored(layout: StateLayout, frames: Collection[int]) -> dict[int, FrameFacts]:
    """Return the facts that the observer wrote; none from a damaged file, which the gate reports."""
    if frames and layout.observations.exists():
        with suppress(StorageError), Observations.open(layout.observations, writable=False) as observations:
            return {frame: stored_facts(numbers) for frame, numbers in observations.facts(frames).items()}
    return {}


def _used_before(settings: Settings) -> frozenset[int]:
    """Return the frames that a round has used; those that it left out are not among them."""
    store, used = RoundStore(StateLayout(settings.state).rounds), set[int]()
    for number in store.numbers():
        with suppress(StorageError):  # a damaged folder tells nothing
            used |= _used_by(store.folder(number).path)
    return frozenset(used)


@lru_cache(maxsize=256)
def _used_by(folder: Path) -> frozenset[int]:
    """Return the frames that a round used, read once: its spec does not change."""
    spec = RoundFolder(folder).spec()
    return frozenset((*spec.train_frames, *spec.holdout_frames))


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
        with Observations.open(layout.observations, writable=False) as observations:
            observed = observations.get({frame.id for frame in frames} & observations.observed(released))
    except StorageError as error:
        log.warning("styles_unknown", reason=str(error))
        return {}, {}
    if not observed or not known.conditions:
        return {}, {}
    seen = seen_frames(observed, {frame.id: frame for frame in frames})
    new = seen.only(seen.ids > known.opens_after)  # the gate opens their condition within a second
    known = with_new(known, new, settings.conditions, released)
    ids, place, far = (values.tolist() for values in (seen.ids, places(seen.styles, known), apart(seen.styles, known)))
    return dict(zip(ids, place, strict=True)), dict(zip(ids, far, strict=True))


def _looks(
    facts: Mapping[int, FrameFacts], trusted: frozenset[int], place: Mapping[int, int], settings: Settings
) -> list[Look]:
    """Return the looks of what is known, by condition: trusted frames, and labelled source images."""
    groups: dict[int, list[FrameFacts]] = {}
    for frame in sorted(facts.keys() & trusted):
        groups.setdefault(place.get(frame, OUTSIDE), []).append(facts[frame])
    return [look for look in map(look_of, (*groups.values(), *_source(settings))) if look is not None]


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
