"""Recall: when the stream returns to a known condition, the version that is best there serves again, without training.

A burst of newest frames says which condition the stream is of (`conditions.py`). When another version than the serving
one may be better there, the observer scores both on golden frames of the condition and on the newest frames; where the
condition is that of the labelled source, on source validation images too. The version is recalled when it is better on
most of them beyond chance. Measured: docs/explanation/recall.md.
"""

from typing import Literal, NamedTuple

import numpy as np

from daemon.gate.conditions import MOST_BURST, with_best
from daemon.gate.decide import GATE
from daemon.gate.frame_evidence import canary_losses, in_condition, is_less_stable, looks_worse, loses
from daemon.gate.loop import GateContext
from daemon.gate.moves import recall_version
from daemon.gate.sequential import evidence_of_majority, evidence_of_sign
from daemon.gate.votes import Weights
from daemon.runtime.logs import get_logger
from storage import durable
from storage.canary.records import LEAST_IMAGES
from storage.durable.record import read_record
from storage.errors import CorruptCheckpoint, ServingChanged, StorageError, UnknownVersion
from storage.gate.comparisons import ComparisonScores
from storage.gate.conditions import Condition, Conditions
from storage.gate.recall import Recall, RecallStage

MOST_CHALLENGERS = 3
"""Most versions that are compared with the serving one in a new condition."""
GOLDEN = 8
"""Golden frames of the condition that are scored beside the newest ones."""
MORE_FRAMES = 4
"""Frames of the condition that must come before an open question is asked again."""

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
        if known is None or serving is None or not context.settings.recall.advanced.enabled:
            return record
        record = _with_moves(context, record, known.current)
        if context.paused:  # a question that was asked stays, and its answer counts afterwards
            return record
        asked = record.stage == "asked"  # a burst between two conditions does not withdraw the question
        condition = known.condition(record.condition if asked and known.current is None else known.current)
        if asked:
            if condition is None or condition.number != record.condition or serving.version != record.serving:
                return _ended(record, context.now, "idle", "the stream or what serves changed")
            return _answer(context, record, known, condition)
        if condition is None or condition.number == record.held:
            return record
        wanted = challengers(context, known, condition, record, serving.version)
        if not wanted:  # nothing to compare: what serves is the best there is
            return _considered(record, condition.number)
        if not _may_ask(context, record, (condition.number, wanted, serving.version), len(known.burst)):
            return record
        return _ask(context, record, known, condition, wanted, serving.version)


def challengers(
    context: GateContext, known: Conditions, condition: Condition, record: Recall, serving: int
) -> tuple[int, ...]:
    """Return the versions that may serve better in a condition than the one that serves, the best one first.

    In a condition that was considered before this is its best version. In a new one every version that is best
    somewhere may be it, the released one first: source-free, nobody knows what the released model was trained on. A
    version that was rolled back, or whose files are gone, never serves again; then the released one takes its place.
    """
    state, versions = context.registry.state(), context.registry.versions()
    others = sorted(known.conditions, key=lambda item: item.last_seen, reverse=True)
    wanted = [condition.best, known.released, *(item.best for item in others)]
    bad = {*state.rolled_back, *record.unusable}
    able = [item for item in dict.fromkeys(wanted) if item in versions and item not in bad]
    first = able[:1] if condition.number in record.considered else able[:MOST_CHALLENGERS]
    return tuple(item for item in first if item is not None and item != serving)


class Judgement(NamedTuple):
    """What a comparison says."""

    version: int | None
    """The version to recall; None: the serving one stays."""
    open: bool
    """Whether more frames may change that."""
    why: str
    """One sentence with numbers."""


def judge_recall(scores: ComparisonScores, confidence: float, *, known: bool, classes: Weights = None) -> Judgement:
    """Judge the challengers against the first version of a comparison, which serves. Pure.

    `known`: the challenger is the best version of this condition, so it is recalled unless the serving one is better
    beyond chance. Otherwise a challenger needs evidence at `confidence` (0-1) that it is better on more than half of
    the images: the mean of the e-values of nuclear norm, flip consistency, disagreement under dropout and the IoU of
    labelled images, with neither norm nor labels against it. Canary images decide alone from `LEAST_IMAGES` on; before
    that they are a factor, and no version is recalled while it is worse on most of them.
    Of several, the one that the others do not beat. `classes`: their weights in the IoU. Raises StorageError when
    scores are not numbers.
    """
    chosen, why, results, told = 0, "", [], []
    kinds = ("models", "canary") if scores.canary else ("models",)
    for place in range(1, len(scores.models)):
        pair = scores.model_copy(
            update={kind: tuple(getattr(scores, kind)[n] for n in (chosen, place)) for kind in kinds}
        )
        result, shares = _compared(pair, confidence, classes)
        won = result == "better" or (known and result == "open")
        results.append(result)
        told.append(f"version {scores.models[place].version} is better on {shares}")
        chosen, why = (place, told[-1]) if won else (chosen, why)
    if chosen:
        return Judgement(scores.models[chosen].version, False, why)
    return Judgement(None, bool({"open", "vetoed"} & set(results)), f"{'; '.join(told)}: not enough")


def _compared(
    pair: ComparisonScores, confidence: float, classes: Weights
) -> tuple[Literal["better", "worse", "open", "vetoed"], str]:
    """Return whether the second version of a pair is better than the first beyond chance, and on how many images.

    vetoed: open, and it is worse on most canary images.
    """
    lost = canary_losses(pair, classes)
    canary = [bool(loss > 0.0) for loss in lost if loss]
    decisive = {"frames by the nuclear norm": looks_worse(pair), "labelled images": loses(pair, "source", classes)}
    decisive = {what: better for what, better in {**decisive, "canary images": canary}.items() if better}
    stable = [is_less_stable(pair, "flip_consistency"), is_less_stable(pair, "dropout_disagreement")]
    unlabelled = (better for what, better in decisive.items() if what != "canary images")
    counts = [(sum(better), len(better)) for better in (*unlabelled, *stable) if better]
    shares = ", ".join(f"{sum(better)} of {len(better)} {what}" for what, better in decisive.items()) or "no image"
    needed = 1.0 / (1.0 - confidence)
    for_it, against = evidence_of_sign(lost), evidence_of_sign(-lost)
    if len(lost) >= LEAST_IMAGES and max(for_it, against) >= needed:
        return ("better" if for_it > against else "worse"), shares
    gains = for_it * np.array([evidence_of_majority(hits, among - hits) for hits, among in counts])
    losses = against * np.array([evidence_of_majority(among - hits, hits) for hits, among in counts])
    if counts and np.mean(gains) >= needed and all(2 * sum(better) >= len(better) for better in decisive.values()):
        return "better", shares
    if counts and np.mean(losses) >= needed and all(2 * sum(better) <= len(better) for better in decisive.values()):
        return "worse", shares
    return ("vetoed" if 2 * sum(canary) < len(canary) else "open"), shares


def _with_moves(context: GateContext, record: Recall, current: int | None) -> Recall:
    """Hold the condition in which somebody else than the gate moved the serving ref; let it go when it is left."""
    move = context.registry.state().last_move
    if move is not None and move.by != GATE and move.at != record.decided:
        first = record.decided == 0.0 and move.event == "promoted" and move.previous is None
        record = record.model_copy(update={"decided": move.at, "held": None if first else current or 0})
    elif record.held == 0 and current is not None:
        record = record.model_copy(update={"held": current})
    elif record.held is not None and current is not None and current != record.held:
        record = record.model_copy(update={"held": None})
    return record


def _rests(context: GateContext, since: float) -> bool:
    """Return whether `recall.dwell_seconds` have not passed; a time in the future is from before the clock was set."""
    return 0.0 <= context.now - since < context.settings.recall.dwell_seconds


def _may_ask(context: GateContext, record: Recall, question: tuple[int, tuple[int, ...], int], frames: int) -> bool:
    """Return whether to ask now: not within the dwell time of a recall, and the same again only with more frames."""
    if _rests(context, record.moved):
        return False
    if (record.condition, record.challengers, record.serving) != question:
        return True
    more = record.open and frames >= record.frames + MORE_FRAMES
    return more or not _rests(context, record.since)


def _ask(
    context: GateContext, record: Recall, known: Conditions, condition: Condition, wanted: tuple[int, ...], serving: int
) -> Recall:
    frames = sorted({*known.burst, *condition.golden[-GOLDEN:]})
    request = context.comparisons.ask("recall", [serving, *wanted], frames, source=condition.labelled, canary=True)
    update = {
        "stage": "asked",
        "since": context.now,
        "condition": condition.number,
        "version": wanted[0],
        "challengers": wanted,
        "frames": len(known.burst),
        "serving": serving,
        "comparison": request.number,
        "reason": f"the stream is of {condition.name}, where version {wanted[0]} may be better",
    }
    return record.model_copy(update=update)


def _answer(context: GateContext, record: Recall, known: Conditions, condition: Condition) -> Recall:
    """Act on the answer when it is there: recall a version, decline, or wait for more frames."""
    if record.comparison is None or record.serving is None:
        return _ended(record, context.now, "idle", "its comparison is gone")
    serving, before = record.serving, condition.number in record.considered
    try:
        scores = context.comparisons.scores(record.comparison)
        if scores is None:
            lost = context.comparisons.request(record.comparison) is None
            return _ended(record, context.now, "idle", "its comparison is gone") if lost else record
        if scores.status == "failed" or not scores.frames:
            return _not_compared(context, record, scores.reason or "its frames left the buffer")
        if known.released == context.registry.released(serving):
            scores = in_condition(scores, known, condition.number)
        sure = context.settings.recall.advanced.confidence
        judgement = judge_recall(scores, sure, known=before, classes=context.class_weights)
    except StorageError as error:
        return _not_compared(context, record, str(error))
    undecided = judgement.open and record.frames < MOST_BURST
    record = record.model_copy(update={"open": undecided})
    if not undecided:
        record = _considered(record, condition.number)
    if judgement.version is None:
        if before and not judgement.open:  # beyond chance: what serves is the better one here
            context.conditions.write(with_best(known, condition.number, serving, judgement.why))
        return _ended(record, context.now, "declined", judgement.why)
    record = record.model_copy(update={"version": judgement.version})
    durable.write_record(context.layout.recall, record)  # the memory of conditions looks here after a kill
    try:
        recall_version(
            context.registry, judgement.version, reason=f"{condition.name}: {judgement.why}", expected=serving
        )
    except ServingChanged as error:
        return _ended(record, context.now, "idle", str(error))
    except (UnknownVersion, CorruptCheckpoint) as error:
        return _ended(record, context.now, "declined", str(error))
    return _ended(record.model_copy(update={"moved": context.now}), context.now, "recalled", judgement.why)


def _not_compared(context: GateContext, record: Recall, reason: str) -> Recall:
    """Decline for now. A version whose files are damaged never challenges again, so the others are asked at once."""
    damaged = []
    for version in record.challengers:
        try:
            context.registry.verify(version)
        except (UnknownVersion, CorruptCheckpoint):
            damaged.append(version)
    record = record.model_copy(update={"unusable": tuple(dict.fromkeys((*record.unusable, *damaged)))})
    return _ended(record, context.now, "idle" if damaged else "declined", f"not compared: {reason}")


def _considered(record: Recall, condition: int) -> Recall:
    known = record.considered if condition in record.considered else (*record.considered, condition)
    return record.model_copy(update={"considered": known})


def _ended(record: Recall, now: float, stage: RecallStage, reason: str) -> Recall:
    update = {"stage": stage, "since": now, "comparison": None, "reason": reason}
    return record.model_copy(update={**update, "declines": record.declines + (stage == "declined")})
