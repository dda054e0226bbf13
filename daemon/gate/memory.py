"""Keep `conditions.json` up to date with what the observer saw, and the golden frames in the buffer."""

import math
from collections.abc import Set

import numpy as np

from configs.settings import Settings
from daemon.gate.conditions import (
    SeenFrames,
    condition_of,
    first_conditions,
    follow,
    rows_of,
    seen_frames,
    with_best,
)
from daemon.gate.decide import GATE
from daemon.gate.forgetting import takes_over
from daemon.gate.frame_rules import FAR
from daemon.gate.loop import GateContext
from daemon.runtime.logs import get_logger
from storage.buffer.catalog_records import FrameRecord
from storage.buffer.observations import Observation, Observations
from storage.durable.record import read_record
from storage.errors import StorageError
from storage.gate.conditions import Conditions
from storage.gate.recall import Recall
from storage.registry.history import MOVES
from storage.rounds.folder import RoundStore
from storage.rounds.verdict import ConditionCost

KEPT_SHARE = 0.5
"""Most of the buffer that golden frames of all conditions may take (share of `capacity_frames` and `max_bytes`)."""

log = get_logger(__name__)


class ConditionMemory:
    """A rule of the gate: which conditions are known, and which one the newest frames are of."""

    def __init__(self) -> None:
        self._seen: dict[int, Observation] = {}

    def step(self, context: GateContext) -> None:
        """Follow the stream; write `conditions.json` when something changed. Raises StorageError when it is damaged."""
        settings, serving = context.settings, context.registry.serving()
        if not settings.conditions.advanced.enabled or serving is None or not context.layout.observations.exists():
            return
        released = context.registry.released(serving.version)
        before = context.conditions.read()
        records = context.records()
        with Observations.open(context.layout.observations, writable=False) as observations:
            seen = self._frames(observations, records, released, context.left_out.keys())
            same = before is not None and before.released == released
            known = (
                before
                if same
                else first_conditions(
                    released, rows_of(observations.source_styles(released)), seen, settings.conditions, context.now
                )
            )
        if known is None:
            return
        far = FAR if "far" in settings.round.advanced.leave_out else math.inf
        known = follow(known, seen, settings.conditions, serving.version, golden_frames(settings, known), far)
        known = self._with_moves(context, known, seen)
        if known != before:
            context.conditions.write(known)
            _report(before, known)
        kept = {frame: item.number for item in known.conditions for frame in item.golden}
        if kept != context.buffer.catalog.kept():
            context.buffer.keep(kept)

    def _with_moves(self, context: GateContext, known: Conditions, seen: SeenFrames) -> Conditions:
        """Let promotions and rollbacks change the best versions, each once.

        A version that a round's promotion made serve is best in the condition of the newest frames of that round: the
        gate judged it there; it may take over others (`takes_over`). A recalled one is best in the condition of its
        recall. A version that was rolled back gives way to the one that serves instead, which counts as made there
        again if its round was of that condition.
        """
        moves = [event for event in context.registry.history() if event.event in MOVES]
        for move in moves[known.applied :]:
            if move.event == "promoted" and move.round is not None:
                number = self._condition_of(context, known, seen, move.round)
                known = with_best(known, number, move.version, move.reason, made=True)
                for cost in costs_elsewhere(context, move.round):
                    if (other := known.condition(cost.number)) is not None and takes_over(cost, other):
                        known = with_best(known, cost.number, move.version, cost.detail)
            elif move.event == "recalled" and move.by == GATE:
                recall = read_record(context.layout.recall, Recall)
                if recall is not None and recall.version == move.version:
                    known = with_best(known, recall.condition, move.version, move.reason)
            elif move.event == "rolled_back":
                mine = (it.round for it in moves if it.event == "promoted" and it.version == move.version)
                round = next((number for number in mine if number is not None), None)
                home = self._condition_of(context, known, seen, round) if round is not None else None
                for item in known.conditions:
                    if item.best == move.previous:
                        reason, made = f"version {move.previous} was rolled back", item.number == home
                        known = with_best(known, item.number, move.version, reason, made=made)
        return known.model_copy(update={"applied": len(moves)})

    def _condition_of(self, context: GateContext, known: Conditions, seen: SeenFrames, round: int) -> int | None:
        """Return the condition of the newest frames of a round; None when its folder is gone."""
        try:
            spec = RoundStore(context.layout.rounds).folder(round).spec()
            if spec.conditions is not None and known.condition(spec.conditions.newest) is not None:
                return spec.conditions.newest
        except StorageError as error:
            log.warning("condition_of_round_unknown", round=round, reason=str(error))
            return None
        mine = seen.only(np.isin(seen.ids, (*spec.train_frames, *spec.holdout_frames)))
        newest = mine.newest(context.settings.conditions.advanced.burst_frames)
        return condition_of(known, newest)[0] if len(mine.ids) else None

    def _frames(
        self, observations: Observations, records: list[FrameRecord], released: int, left_out: Set[int]
    ) -> SeenFrames:
        """Return the observed frames of the buffer but those left out; only new observations are read."""
        current = {record.id: record for record in records}
        self._seen = {
            frame: item for frame, item in self._seen.items() if frame in current and item.released == released
        }
        new = (current.keys() & observations.observed(released)) - self._seen.keys()
        self._seen |= {item.frame: item for item in observations.get(new)}
        mine = [self._seen[frame] for frame in sorted(self._seen.keys() - left_out)]
        return seen_frames(mine, current)


def costs_elsewhere(context: GateContext, round: int) -> list[ConditionCost]:
    """Return what the promoted candidate of a round gains or costs in conditions other than the newest one."""
    try:
        verdict = RoundStore(context.layout.rounds).folder(round).verdict()
    except StorageError as error:
        log.warning("verdict_of_round_unknown", round=round, reason=str(error))
        return []
    mine = [item for item in verdict.candidates if item.name == verdict.candidate] if verdict else []
    return [cost for item in mine for cost in item.elsewhere]


def golden_frames(settings: Settings, known: Conditions) -> int:
    """Return how many frames each condition keeps: `conditions.golden_frames`, or fewer when the buffer is small."""
    buffer = settings.buffer
    most = buffer.capacity_frames
    if buffer.max_bytes:
        most = min(most, buffer.max_bytes // (buffer.height * buffer.width * 3))  # at most this large: uncompressed
    room = int(most * KEPT_SHARE) // max(1, len(known.conditions))
    return min(settings.conditions.golden_frames, room)


def _report(before: Conditions | None, after: Conditions) -> None:
    if before is not None and before.released != after.released:
        log.warning("conditions_start_again", released=after.released, before=before.released)
        before = None
    old = {item.number for item in before.conditions} if before else set()
    for item in after.conditions:
        if item.number not in old:
            log.info("condition_opened", condition=item.number, name=item.name, best=item.best)
    if before is not None and before.current != after.current:
        log.info("condition_changed", before=before.current, now=after.current)
