"""Recall: when the stream returns to a known condition, the version that is best there serves again, without training.

A burst of newest frames says which condition the stream is of (`conditions.py`). When another version than the serving
one is best there, the observer scores both on golden frames of the condition and on the newest frames; where the
condition is that of the labelled source, on source validation images too. The version is recalled when it is better on
most of them beyond chance. Measured: docs/explanation/recall.md.
"""

from collections.abc import Sequence

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
from storage.gate.conditions import Condition
from storage.gate.recall import Recall

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
            left = condition is None or condition.number != record.condition or serving.version != record.serving
            return _idle(record, context.now, "the stream or what serves changed") if left else _answer(context, record)
        if condition is None or condition.number == record.held:
            return record
        best = usable(context, condition)
        if best is None or best == serving.version:
            return record
        again = (record.condition, record.version, record.serving) != (condition.number, best, serving.version)
        if _rests(context, record.moved) or (not again and _rests(context, record.since)):
            return record
        return _ask(context, record, condition, best, serving.version)


def usable(context: GateContext, condition: Condition) -> int | None:
    """Return the version to recall in a condition: its best one, or the released one when that cannot serve.

    A version that was rolled back, or whose files are gone, is never recalled. None when neither can serve.
    """
    versions, state = context.registry.versions(), context.registry.state()
    known = context.conditions.read()
    wanted = [condition.best, known.released if known else None]
    bad = state.rolled_back | state.turned_down
    return next((item for item in wanted if item in versions and item not in bad), None)


def judge_recall(scores: ComparisonScores, confidence: float) -> tuple[bool, str]:
    """Return whether the second version of the comparison is recalled in the place of the first, and why. Pure.

    It needs evidence at `confidence` (0-1) that it is better on more than half of the images: by the batch nuclear norm
    of the frames, or by the IoU of labelled images, none of the two against it. Raises StorageError when scores are not
    numbers.
    """
    kinds = {"frames": looks_worse(scores), "labelled images": loses(scores, "source")}
    found = {what: better for what, better in kinds.items() if better}
    evidence = [evidence_of_majority(sum(better), len(better) - sum(better)) for better in found.values()]
    shares = ", ".join(f"{sum(better)} of {len(better)} {what}" for what, better in found.items())
    holds = bool(evidence) and float(np.mean(evidence)) >= 1.0 / (1.0 - confidence)
    against = [what for what, better in found.items() if 2 * sum(better) < len(better)]
    return holds and not against, f"better on {shares or 'no image'}"


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


def _ask(context: GateContext, record: Recall, condition: Condition, best: int, serving: int) -> Recall:
    known = context.conditions.read()
    newest = known.burst[-NEWEST:] if known else ()
    frames = sorted({*newest, *condition.golden[-NEWEST:]})
    request = context.comparisons.ask("recall", [serving, best], frames, source=condition.labelled)
    update = {
        "stage": "asked",
        "since": context.now,
        "condition": condition.number,
        "version": best,
        "serving": serving,
        "comparison": request.number,
        "reason": f"the stream is of {condition.name} again, where version {best} is best",
    }
    return record.model_copy(update=update)


def _answer(context: GateContext, record: Recall) -> Recall:
    """Act on the answer when it is there: recall the version, or decline."""
    assert record.comparison is not None and record.version is not None and record.serving is not None
    scores = context.comparisons.scores(record.comparison)
    if scores is None:
        lost = context.comparisons.request(record.comparison) is None
        return _idle(record, context.now, "its comparison is gone") if lost else record
    if scores.status == "failed":
        return _declined(record, context.now, f"not compared: {scores.reason}")
    holds, why = judge_recall(scores, context.settings.recall.advanced.confidence)
    if not holds:
        return _declined(record, context.now, f"version {record.version} is {why}, which is not enough")
    name = next((it.name for it in _conditions(context) if it.number == record.condition), "a known condition")
    try:
        recall_version(context.registry, record.version, reason=f"{name} is back: {why}", expected=record.serving)
    except ServingChanged as error:
        return _idle(record, context.now, str(error))
    except (UnknownVersion, CorruptCheckpoint) as error:
        return _declined(record, context.now, str(error))
    return record.model_copy(
        update={"stage": "recalled", "since": context.now, "moved": context.now, "comparison": None, "reason": why}
    )


def _conditions(context: GateContext) -> Sequence[Condition]:
    known = context.conditions.read()
    return known.conditions if known else ()


def _idle(record: Recall, now: float, reason: str) -> Recall:
    return record.model_copy(update={"stage": "idle", "since": now, "comparison": None, "reason": reason})


def _declined(record: Recall, now: float, reason: str) -> Recall:
    return record.model_copy(update={"stage": "declined", "since": now, "comparison": None, "reason": reason})
