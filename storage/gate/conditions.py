"""Known conditions of the stream: `conditions.json`, which a person can read; one writer, the daemon.

A condition is a cluster of style vectors (daylight, fog, night). It remembers held-out frames, which eviction does not
take, and the version that is best on them.
"""

from pathlib import Path

from pydantic import Field

from storage import durable
from storage.durable.record import Record, read_record

REMEDY = "; stop `mfmd run`, then `mfmd check --repair`; the next `mfmd run` builds it again from the observed frames"


class Condition(Record):
    """One known condition."""

    number: int
    """Its number; never given twice."""
    name: str
    """Its name: `source`, `condition-2`, or what an operator called it."""
    opened: float
    """When it was first seen (Unix, seconds)."""
    last_seen: float
    """When its newest frame was observed (Unix, seconds)."""
    centroids: tuple[tuple[float, ...], ...]
    """Mean style vector of the frames that opened it, [S]; several after a merge, the oldest first."""
    golden: tuple[int, ...] = ()
    """Ids of held-out frames that eviction does not take."""
    best: int | None = None
    """Version that is best here by the gate's evidence; None until one serves."""
    best_reason: str = ""
    """The evidence, in one sentence."""
    made: int | None = None
    """Version that a round on its frames made and the gate promoted, the newest one, or the one that a rollback brought
    back; None before the first."""
    labelled: bool = False
    """Whether the labelled source images belong to it: then its evidence is true mIoU."""
    cameras: dict[str, int] = Field(default_factory=dict)
    """Observed frames of the buffer that are of it, by source label."""

    @property
    def frames(self) -> int:
        """Observed frames of the buffer that are of it."""
        return sum(self.cameras.values())


class Conditions(Record):
    """`conditions.json`."""

    released: int
    """Version whose encoder makes the style vectors; those of another one cannot be compared."""
    threshold: float
    """Distance from every centroid above which a burst of frames opens a new condition; 0 until it is known."""
    given: int
    """Highest number that a condition ever had."""
    current: int | None = None
    """Condition of the newest burst of frames; None when it is of no known one."""
    burst: tuple[int, ...] = ()
    """Ids of its frames since the stream is of it, oldest first; at most the newest 32."""
    cameras: dict[str, int | None] = Field(default_factory=dict)
    """Condition of the newest burst of each source label; None when it is of no known one."""
    opens_after: int = 0
    """No frame up to this id opens a condition: it was committed before a condition was forgotten."""
    applied: int = 0
    """Moves of the serving ref in the history that the best versions take into account; a clock that is set back
    changes nothing."""
    conditions: tuple[Condition, ...] = Field(default=())
    """The known conditions, oldest first."""

    def condition(self, number: int | None) -> Condition | None:
        """Return a condition by number; None when there is none."""
        return next((item for item in self.conditions if item.number == number), None)


class ConditionStore:
    """The file; readers are any processes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> Conditions | None:
        """Return the known conditions; None before the first. Raises StorageError when damaged."""
        return read_record(self.path, Conditions, REMEDY)

    def write(self, conditions: Conditions) -> None:
        """Replace the file, durably."""
        durable.write_record(self.path, conditions)
