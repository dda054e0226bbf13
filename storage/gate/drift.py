"""The drift alarm: `drift.json`; one writer, the daemon."""

from typing import Literal

from pydantic import Field

from storage.durable.record import Record

DriftStage = Literal["learning", "watching"]
"""learning: the first frames of a version say how alike neighbours are; watching: every look is a bet."""


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
    upto: int = 0
    """Newest frame that was looked at (id)."""
    spacing: int = 1
    """Distance between two looks (frames)."""
    learned: tuple[tuple[float, ...], ...] = ()
    """Scores of the frames seen while learning, in commit order, [N][scores]."""
    bets: tuple[DriftBet, ...] = ()
    """One of each score."""
    looks: int = 0
    """Frames looked at while watching."""
    evidence: float = 0.0
    """Evidence of a change (Shiryaev-Roberts sum); an alarm is raised at the level."""
    level: float = 0.0
    """Level of the alarm: mean number of looks between two false alarms, at least."""
    recent: tuple[tuple[int, float], ...] = ()
    """Newest looks: frame id, and how foreign it was (0-1)."""
    alarms: int = 0
    """Alarms ever raised in this state directory."""
    last_alarm: float | None = None
    """Time of the newest (Unix, seconds)."""
    reason: str = ""
    """The newest alarm in one sentence."""
    foreign: tuple[int, ...] = Field(default=())
    """Ids of the most foreign frames before it, most foreign first."""
