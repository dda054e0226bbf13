"""The drift alarm: `drift.json`; one writer, the daemon."""

from typing import Literal

from pydantic import Field

from storage.durable.record import Record

DriftStage = Literal["learning", "watching"]
"""learning: the first frames of a version say how alike neighbours are; watching: every look is a bet."""

DriftState = Literal["off", "no_observer", "waiting", "learning", "watching"]
"""off: no alarm is wanted; no_observer: `observe.enabled` is off, so nothing is seen; waiting: for the first observed
frames, or for a condition that gives the style its scale; then the stage."""


class DriftBet(Record):
    """One score of the stream: what was seen of it, and the bet on the next value."""

    counts: tuple[int, ...]
    """Looks so far by bin of the score."""
    fraction: float = 0.0
    """Share of the wealth that is bet on high values (negative: on low ones)."""
    squares: float = 0.0
    """Sum of squared gradients of the bets, which sets the size of their steps."""


class Drift(Record):
    """`drift.json`."""

    version: int
    """Version whose scores are watched; another one that serves starts afresh."""
    since: float
    """When it started afresh (Unix, seconds)."""
    stage: DriftStage = "learning"
    """Where it stands."""
    after: int = 0
    """Frames up to this id do not count: they came before this version, or before the newest alarm."""
    upto: int = 0
    """Newest frame whose observation was taken into account (id)."""
    missed: tuple[int, ...] = ()
    """Ids of frames before it that the observer, which looks at the newest ones first, still has to see."""
    spacing: int = 1
    """Distance between two looks (frames)."""
    learned: tuple[tuple[float, ...], ...] = ()
    """Scores of the frames seen while learning, [N][scores]."""
    learned_frames: tuple[int, ...] = ()
    """Their ids."""
    bets: tuple[DriftBet, ...] = ()
    """One of each score."""
    looks: int = 0
    """Frames looked at while watching."""
    evidence: float = 0.0
    """Evidence of a change (Shiryaev-Roberts sum); an alarm is raised at the level."""
    level: float = 0.0
    """Level of the alarm: mean number of looks between two false alarms, at least."""
    recent: tuple[tuple[int, float], ...] = ()
    """Newest looks: frame id, and how foreign it was (0-1; 0 for the frames of learning)."""
    alarms: int = 0
    """Alarms ever raised in this state directory."""
    last_alarm: float | None = None
    """Time of the newest (Unix, seconds)."""
    home: int | None = None
    """Condition of the stream when it started afresh, or the first one that was known then."""
    size: float | None = None
    """Size of the newest change: distance between that condition and the one at the alarm (thresholds of a condition);
    0: the same condition; None: one of them was not known."""
    reason: str = ""
    """The newest alarm in one sentence."""
    foreign: tuple[int, ...] = Field(default=())
    """Ids of the most foreign frames before it, most foreign first."""


def drift_state(record: Drift | None, *, wanted: bool, observed: bool) -> DriftState:
    """Return where the alarm stands; `wanted` and `observed` are the settings."""
    if not wanted:
        return "off"
    if not observed:
        return "no_observer"
    return record.stage if record is not None else "waiting"
