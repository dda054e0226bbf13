"""Probation: after a promotion, fresh frames say whether the new version is worse; then it is rolled back by itself.

The version and the one before are compared on fresh frames of the condition for which it was promoted, thinned so that
neighbours do not count twice. A frame is a hit when the new version has the smaller batch nuclear norm there: of the
scores of a single frame this one separates best. With labelled source, source images restyled to the frames are a
second kind of evidence, with true labels. The mean of two e-values is one, so the evidence may be looked at after every
frame (`sequential.py`). Canary images are a third, with true labels of the target: they are compared at once, and again
when labels are added. Measured: docs/explanation/probation.md.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from daemon.gate.bursts import Floats
from daemon.gate.conditions import OUTSIDE, places
from daemon.gate.decide import GATE
from daemon.gate.frame_evidence import canary_losses, in_condition, looks_worse, loses, overstated
from daemon.gate.loop import GateContext
from daemon.gate.sequential import evidence_of_majority, evidence_of_sign, share_bounds, spacing_of
from daemon.runtime.logs import get_logger
from storage import durable
from storage.buffer.observations import Observation, Observations
from storage.canary.records import LEAST_IMAGES, CanaryState
from storage.durable.record import read_record
from storage.errors import CorruptCheckpoint, UnknownVersion
from storage.gate.comparisons import ComparisonScores
from storage.gate.conditions import Conditions
from storage.gate.probation import Probation
from storage.registry.manifest import HistoryEvent

BATCH = 4
"""Frames that are compared together: a batch costs the observer a few seconds."""
MOST_SPACING = 32
"""Largest distance between two frames that count (frames)."""
SERIES = 256
"""Newest frames whose entropy says how alike neighbours are (frames)."""
NOTE_SECONDS = 10.0
"""Interval at which the time of the cool-down is written (seconds): a kill loses no more."""
FAILURES = 3
"""Comparisons that may fail in a row before the probation ends."""

log = get_logger(__name__)


class ProbationRule:
    """A rule of the gate: at most one version is on probation, the one that a round's promotion made serve last."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._noted: float | None = None
        """When the time of the cool-down was written last (clock)."""

    def step(self, context: GateContext) -> None:
        """Begin, go on with or end the probation. Raises StorageError."""
        record = read_record(context.layout.probation, Probation, f"; remove {context.layout.probation}")
        after = self._next(context, record)
        if after is not None and after != record:
            durable.write_record(context.layout.probation, after)
            if record is None or after.stage != record.stage or after.version != record.version:
                log.info("probation", stage=after.stage, version=after.version, reason=after.reason)

    def _next(self, context: GateContext, record: Probation | None) -> Probation | None:
        move, serving = context.registry.state().last_move, context.registry.serving()
        if serving is None or move is None:
            return record
        if record is not None and record.stage == "watching" and serving.version != record.version:
            return _overtaken(record, move)
        promoted = move.event == "promoted" and move.round is not None and move.version == serving.version
        if promoted and (record is None or (record.version, record.since) != (serving.version, move.at)):
            return _begun(context, move)
        if record is not None and record.stage == "cooling_down":
            return self._cooled(record, context.settings.probation.advanced.cooldown_seconds)
        if record is None or record.stage != "watching":
            return record
        return _with_answer(context, record) if record.comparison is not None else _asked(context, record)

    def _cooled(self, record: Probation, seconds: float) -> Probation:
        """Count the time of the cool-down. No clock that jumps changes it; without a daemon it does not pass."""
        now = self._clock()
        noted = now if self._noted is None else self._noted
        cooled = record.cooled + now - noted
        if cooled >= seconds:
            self._noted = None
            return record.model_copy(update={"stage": "rolled_back", "cooled": cooled})
        self._noted = noted if now - noted < NOTE_SECONDS else now
        return record.model_copy(update={"cooled": cooled}) if self._noted == now else record


def judge(record: Probation, frames: int, confidence: float) -> Probation:
    """Return the record with the evidence of its frames, and its stage: `cooling_down`, `passed` or `watching`. Pure.

    `frames`: how many are enough; `confidence` (0-1) that a version which is not worse is never rolled back. Canary
    images are independent of the frames, so their e-value is a factor. From `LEAST_IMAGES` on they decide alone: at
    once, and against the frames.
    """
    counted = {"fresh frames": record.worse, "restyled source images": record.worse_styled}
    found = {what: worse for what, worse in counted.items() if worse}
    limits = {"fresh frames": 0.5 + record.overstated}
    each = [evidence_of_majority(sum(it), len(it) - sum(it), limits.get(what, 0.5)) for what, it in found.items()]
    lost, needed = np.array(record.canary_losses), 1.0 / (1.0 - confidence)
    labels, decide = evidence_of_sign(lost), len(lost) >= LEAST_IMAGES
    evidence = labels * float(np.mean(each or [1.0]))
    shares = [_share(what, worse, confidence) for what, worse in found.items()] + _canary_share(record)
    reason = f"version {record.version} looks worse than version {record.previous} on "
    reason += ", ".join(shares) or "no frame yet"
    stage = "watching"
    kept = decide and evidence_of_sign(-lost) >= needed
    if (decide and labels >= needed) or (each and evidence >= needed and not kept):
        stage = "cooling_down"
    elif len(record.worse) >= frames:
        stage = "passed"
    return record.model_copy(update={"evidence": evidence, "stage": stage, "reason": reason})


def _share(what: str, worse: Sequence[bool], confidence: float) -> str:
    hits, among = sum(worse), len(worse)
    low, high = share_bounds(hits, among - hits, confidence)
    return f"{hits} of {among} {what} (share {low:.2f} to {high:.2f})"


def _canary_share(record: Probation) -> list[str]:
    lost = record.canary_losses
    if not lost:
        return []
    less = f"; the norm overstates it there by {record.overstated:.2f}" if record.overstated else ""
    worse = sum(loss > 0.0 for loss in lost)
    return [f"{worse} of {len(lost)} canary images (IoU {-sum(lost) / len(lost):+.3f} on average{less})"]


def _begun(context: GateContext, move: HistoryEvent) -> Probation | None:
    settings = context.settings.probation
    if settings.frames == 0 or move.version is None or move.previous is None:
        return None
    if not context.settings.observe.enabled:
        ended = {"version": move.version, "previous": move.previous, "since": move.at, "after": 0}
        return Probation(stage="ended", reason="observe.enabled is off: nothing compares the two versions", **ended)
    known = context.conditions.read() if context.settings.conditions.advanced.enabled else None
    current = known.current if known else None
    series = _of_condition(_observed(context, after=0), known, current)[-SERIES:]
    return Probation(
        stage="watching",
        version=move.version,
        previous=move.previous,
        since=move.at,
        condition=current,
        spacing=spacing_of(_entropies(series), MOST_SPACING),
        after=context.buffer.catalog.newest_id(),
        reason="waits for fresh frames",
    )


def _entropies(items: Sequence[Observation]) -> Floats:
    """Return entropies [N] less the mean of the version that answered: its promotion does not make neighbours alike."""
    versions, values = np.array([item.version for item in items]), np.array([item.entropy for item in items])
    for version in set(versions.tolist()):
        values[versions == version] -= values[versions == version].mean()
    return values


def _overtaken(record: Probation, move: HistoryEvent) -> Probation:
    ours = move.event == "rolled_back" and move.by == GATE and move.previous == record.version
    if ours:  # a kill came between the rollback and its record
        return record.model_copy(update={"stage": "cooling_down", "comparison": None})
    reason = f"{move.by} made version {move.version} serve ({move.event}); {record.reason}"
    return record.model_copy(update={"stage": "ended", "comparison": None, "reason": reason})


def _asked(context: GateContext, record: Probation) -> Probation:
    """Ask for canary images when they changed, else for the next batch of thinned fresh frames when it is complete."""
    labels = read_record(context.layout.canary / "state.json", CanaryState)
    if labels is not None and labels != record.labels and (labels.images or record.canary_losses):
        request = context.comparisons.ask("probation", [record.version, record.previous], [], canary=True)
        return record.model_copy(update={"comparison": request.number, "labels": labels})
    chosen: list[int] = []
    fresh = [item for item in _observed(context, record.after) if item.frame not in context.left_out]
    known = context.conditions.read() if record.condition is not None else None
    for item in _of_condition(fresh, known, record.condition):
        if item.frame >= (chosen[-1] if chosen else record.after) + record.spacing and len(chosen) < BATCH:
            chosen.append(item.frame)
    if len(chosen) < BATCH:
        return record
    labelled = context.settings.source is not None
    request = context.comparisons.ask("probation", [record.version, record.previous], chosen, source=labelled)
    return record.model_copy(update={"comparison": request.number, "after": chosen[-1]})


def _with_answer(context: GateContext, record: Probation) -> Probation:
    """Take the answer into account when it is there, and act on it."""
    assert record.comparison is not None
    scores, request = context.comparisons.scores(record.comparison), context.comparisons.request(record.comparison)
    if scores is None:
        return record.model_copy(update={"comparison": None, "labels": None}) if request is None else record
    labels = request is not None and request.canary
    if scores.status == "failed" or not (scores.frames or labels):
        failures, why = record.failures + 1, scores.reason or "its frames left the buffer"
        stage = "ended" if failures >= FAILURES else "watching"
        update = {"comparison": None, "failures": failures, "stage": stage, "reason": f"not compared: {why}"}
        return record.model_copy(update={**update, "labels": None} if labels else update)
    settings = context.settings.probation
    seen: dict[str, Any] = {"comparison": None, "failures": 0}
    if labels:
        seen |= _of_labels(context, record, scores)
    else:
        seen |= {"worse": (*record.worse, *looks_worse(scores))}
        seen |= {"worse_styled": (*record.worse_styled, *loses(scores, "styled", context.class_weights))}
    answered = record.model_copy(update=seen)
    judged = judge(answered, settings.frames, settings.advanced.confidence)
    if judged.stage == "cooling_down":
        _roll_back(context, judged)
    return judged


def _of_labels(context: GateContext, record: Probation, scores: ComparisonScores) -> dict[str, Any]:
    """Return what the canary images of the condition say, in place of what those before said."""
    known = context.conditions.read() if record.condition is not None else None
    if known is not None and known.released != context.registry.released(record.version):
        known = None
    mine = in_condition(scores, known, record.condition)
    lost = canary_losses(mine, context.class_weights)
    more = overstated(mine, context.class_weights) if len(lost) >= LEAST_IMAGES else 0.0
    found: dict[str, Any] = {"canary_losses": tuple(lost.tolist()), "overstated": more}
    return found if scores.canary else {**found, "labels": None}


def _roll_back(context: GateContext, record: Probation) -> None:
    """Let the version before serve again; when its files are gone, the one that a plain rollback leads to."""
    rests = f"; no round for {context.settings.probation.advanced.cooldown_seconds:g} s"
    reason = f"probation: {record.reason}{rests}"
    back = partial(context.registry.roll_back, by=GATE, reason=reason, expected=record.version)
    try:
        back(to=record.previous)
    except (UnknownVersion, CorruptCheckpoint) as error:
        log.warning("probation_previous_unusable", version=record.previous, reason=str(error))
        back(to=None)


def _observed(context: GateContext, after: int) -> list[Observation]:
    """Return what was observed of the frames committed after frame `after`, in commit order."""
    if not context.layout.observations.exists():
        return []
    with Observations.open(context.layout.observations, writable=False) as observations:
        return observations.after(after)


def _of_condition(
    items: Sequence[Observation], known: Conditions | None, condition: int | None
) -> Sequence[Observation]:
    """Return those of one condition; all of them while no condition is known, or when it was merged or forgotten."""
    mine = [item for item in items if known is None or item.released == known.released]
    if known is None or known.condition(condition) is None or not mine:
        return items
    found = places(np.array([item.style for item in mine], np.float64), known)
    return [
        item
        for item, place in zip(mine, found.tolist(), strict=True)
        if place != OUTSIDE and known.conditions[place].number == condition
    ]
