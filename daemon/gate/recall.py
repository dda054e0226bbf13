"""Recall: when the stream returns to a known condition, the version that is best there serves again, without training.

A burst of newest frames says which condition the stream is of (`conditions.py`). When another version than the serving
one may be better there, the observer scores both on golden frames of the condition and on the newest frames; where the
condition is that of the labelled source, on source validation images too. The version is recalled when it is better on
most of them beyond chance. Measured: docs/explanation/recall.md.
"""

from collections.abc import Collection

import numpy as np

from daemon.gate.decide import GATE
from daemon.gate.frame_evidence import looks_worse, loses
from daemon.gate.loop import GateContext
from daemon.gate.promotion import recall_version
from daemon.gate.sequential import evidence_of_majority
from daemon.runtime.logs import get_logger
from storage import durable
from storage.durable.record import read_record
from storage.errors import CorruptCheckpoint, ServingChanged, UnknownVersion
from storage.gate.comparisons import ComparisonScores
from storage.gate.conditions import Condition, Conditions
from storage.gate.recall import Recall, RecallStage

MOST_CHALLENGERS = 3
"""Most versions that are compared with the serving one in a new condition."""
NEWEST = 8
"""Newest frames of the condition that both versions are scored on, beside as many golden ones."""

log = get_logger(__name__)


class RecallRule:
    """A rule of the gate: at most one recall is considered at a time."""

    def step(self, context: GateContext) -> None:
        """Consider a recall, or act on the answer of its comparison. Raises StorageError."""
        record = read_record(context.layout.recall, Recall, f"; remove {context.layout.recall}") or Recall()
        after = self._next(context, record)
        if after != record:
            durable.write_record(context.layout.recall, after)
            if after.stage != record.stage:
                log.info("recall", stage=after.stage, version=after.version, reason=after.reason)

    def _next(self, context: GateContext, record: Recall) -> Recall:
        known, serving = context.conditions.read(), context.registry.serving()
        if known is None or serving is None or not context.settings.recall.enabled:
            return record
        record = _with_moves(context, record, known.current)
        condition = known.condition(known.current)
        if record.stage == "asked":
            if condition is None or condition.number != record.condition or serving.version != record.serving:
                return _ended(record, context.now, "idle", "the stream or what serves changed")
            return _answer(context, record, condition.name)
        if condition is None or condition.number == record.held:
            return record
        wanted = challengers(context, known, condition, record.considered, serving.version)
        if not wanted:  # nothing to compare: what serves is the best there is
            return _considered(record, condition.number)
        again = (record.condition, record.challengers, record.serving) != (condition.number, wanted, serving.version)
        if _rests(context, record.moved) or (not again and _rests(context, record.since)):
            return record
        return _ask(context, record, known, condition, wanted, serving.version)


def challengers(
    context: GateContext, known: Conditions, condition: Condition, considered: Collection[int], serving: int
) -> tuple[int, ...]:
    """Return the versions that may serve better in a condition than the one that serves, the best one first.

    In a condition that was considered before this is its best version. In a new one every version that is best
    somewhere may be it, the released one first: source-free, nobody knows what the released model was trained on. A
    version that was rolled back, or whose files are gone, never serves again; then the released one takes its place.
    """
    state, versions = context.registry.state(), context.registry.versions()
    others = sorted(known.conditions, key=lambda item: item.last_seen, reverse=True)
    wanted = [condition.best, known.released, *(item.best for item in others)]
    able = [item for item in dict.fromkeys(wanted) if item in versions and item not in state.rolled_back]
    first = able[:1] if condition.number in considered else able[:MOST_CHALLENGERS]
    return tuple(item for item in first if item is not None and item != serving)


def judge_recall(scores: ComparisonScores, confidence: float) -> tuple[int | None, str]:
    """Return the version to recall in the place of the first of a comparison, or None, and why. Pure.

    A challenger needs evidence at `confidence` (0-1) that it is better on more than half of the images: by the batch
    nuclear norm of the frames, or by the IoU of labelled images, none of the two against it. Of several, the one that
    the others do not beat. Raises StorageError when scores are not numbers.
    """
    chosen, why = 0, "no challenger"
    for place in range(1, len(scores.models)):
        pair = scores.model_copy(update={"models": (scores.models[chosen], scores.models[place])})
        holds, shares = _better(pair, confidence)
        if holds or chosen == 0:
            why = f"version {scores.models[place].version} is better on {shares}"
        chosen = place if holds else chosen
    return (scores.models[chosen].version, why) if chosen else (None, f"{why}, which is not enough")


def _better(pair: ComparisonScores, confidence: float) -> tuple[bool, str]:
    """Return whether the second version of a pair is better than the first, and on how many images."""
    kinds = {"frames": looks_worse(pair), "labelled images": loses(pair, "source")}
    found = {what: better for what, better in kinds.items() if better}
    evidence = [evidence_of_majority(sum(better), len(better) - sum(better)) for better in found.values()]
    holds = bool(evidence) and float(np.mean(evidence)) >= 1.0 / (1.0 - confidence)
    against = any(2 * sum(better) < len(better) for better in found.values())
    shares = ", ".join(f"{sum(better)} of {len(better)} {what}" for what, better in found.items())
    return holds and not against, shares or "no image"


def _with_moves(context: GateContext, record: Recall, current: int | None) -> Recall:
    """Hold the condition in which somebody else than the gate moved the serving ref; let it go when it is left."""
    move = context.registry.state().last_move
    if move is not None and move.by != GATE and move.at != record.decided:
        first = record.decided == 0.0 and move.event == "promoted" and move.previous is None
        return record.model_copy(update={"decided": move.at, "held": None if first else current})
    if record.held is not None and current is not None and current != record.held:
        return record.model_copy(update={"held": None})
    return record


def _rests(context: GateContext, since: float) -> bool:
    """Return whether `recall.dwell_seconds` have not passed; a time in the future is from before the clock was set."""
    return 0.0 <= context.now - since < context.settings.recall.dwell_seconds


def _ask(
    context: GateContext, record: Recall, known: Conditions, condition: Condition, wanted: tuple[int, ...], serving: int
) -> Recall:
    frames = sorted({*known.burst[-NEWEST:], *condition.golden[-NEWEST:]})
    request = context.comparisons.ask("recall", [serving, *wanted], frames, source=condition.labelled)
    update = {
        "stage": "asked",
        "since": context.now,
        "condition": condition.number,
        "version": wanted[0],
        "challengers": wanted,
        "serving": serving,
        "comparison": request.number,
        "reason": f"the stream is of {condition.name}, where version {wanted[0]} may be better",
    }
    return record.model_copy(update=update)


def _answer(context: GateContext, record: Recall, name: str) -> Recall:
    """Act on the answer when it is there: recall a version, or decline. `name` is that of the condition."""
    assert record.comparison is not None and record.condition is not None and record.serving is not None
    serving = record.serving
    scores = context.comparisons.scores(record.comparison)
    if scores is None:
        lost = context.comparisons.request(record.comparison) is None
        return _ended(record, context.now, "idle", "its comparison is gone") if lost else record
    if scores.status == "failed":
        return _ended(record, context.now, "declined", f"not compared: {scores.reason}")
    record = _considered(record, record.condition)
    version, why = judge_recall(scores, context.settings.recall.advanced.confidence)
    if version is None:
        return _ended(record, context.now, "declined", why)
    try:
        recall_version(context.registry, version, reason=f"{name}: {why}", expected=serving)
    except ServingChanged as error:
        return _ended(record, context.now, "idle", str(error))
    except (UnknownVersion, CorruptCheckpoint) as error:
        return _ended(record, context.now, "declined", str(error))
    moved = record.model_copy(update={"version": version, "moved": context.now})
    return _ended(moved, context.now, "recalled", why)


def _considered(record: Recall, condition: int) -> Recall:
    known = record.considered if condition in record.considered else (*record.considered, condition)
    return record.model_copy(update={"considered": known})


def _ended(record: Recall, now: float, stage: RecallStage, reason: str) -> Recall:
    return record.model_copy(update={"stage": stage, "since": now, "comparison": None, "reason": reason})
