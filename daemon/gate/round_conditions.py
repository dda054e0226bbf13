"""What a round needs to know about conditions: which held-out frames are of the newest one, and what others hold."""

from collections.abc import Sequence

from configs.settings import Settings
from daemon.gate.conditions import SeenFrames, condition_of, places, seen_frames
from daemon.runtime.logs import get_logger
from storage.buffer.catalog_records import FrameRecord
from storage.buffer.observations import Observations
from storage.errors import StorageError
from storage.gate.conditions import Conditions, ConditionStore
from storage.layout import StateLayout
from storage.rounds.records import KnownCondition, RoundConditions

log = get_logger(__name__)


def conditions_of_round(settings: Settings, released: int, frames: Sequence[FrameRecord]) -> RoundConditions | None:
    """Return the conditions of a round on `frames`; None when the condition of its newest frames is not known.

    That is so with conditions off, between conditions, while the observer is behind by more than half of
    `schedule.new_frames`, and when `conditions.json` is damaged: then all held-out frames decide.
    """
    try:
        return _conditions(settings, released, frames)
    except StorageError as error:
        log.warning("conditions_unknown", reason=str(error))
        return None


def _conditions(settings: Settings, released: int, frames: Sequence[FrameRecord]) -> RoundConditions | None:
    layout = StateLayout(settings.state)
    known = ConditionStore(layout.conditions).read() if settings.conditions.advanced.enabled else None
    if known is None or known.released != released or not layout.observations.exists():
        return None
    records = {frame.id: frame for frame in frames}
    with Observations.open(layout.observations, writable=False) as observations:
        observed = observations.get(records.keys() & observations.observed(released))
    stream = seen_frames(sorted(observed, key=lambda item: item.frame), records)
    newest = [frame.id for frame in frames][-settings.schedule.new_frames :]
    behind = len({*newest} - {*stream.ids.tolist()})  # the observer begins with the newest ones
    if not len(stream.ids) or 2 * behind > settings.schedule.new_frames:
        return None
    number, _ = condition_of(known, stream.newest(settings.conditions.advanced.burst_frames))
    return None if number is None else _of_round(known, number, stream)


def _of_round(known: Conditions, number: int, stream: SeenFrames) -> RoundConditions:
    place = next(at for at, item in enumerate(known.conditions) if item.number == number)
    held = stream.ids[stream.holdout & (places(stream.styles, known) == place)]
    there = set(stream.ids[stream.holdout].tolist())
    others = [
        KnownCondition(
            number=item.number,
            name=item.name,
            golden=tuple(frame for frame in item.golden if frame in there),
            best=item.best,
            labelled=item.labelled,
        )
        for item in known.conditions
        if item.number != number and item.best is not None
    ]
    name = known.conditions[place].name
    return RoundConditions(newest=number, name=name, frames=tuple(held.tolist()), others=tuple(others))
