"""The probation of the version that was promoted last: `probation.json`; one writer, the daemon."""

from typing import Literal

from pydantic import Field

from storage.canary.records import CanaryState
from storage.durable.record import Record

ProbationStage = Literal["watching", "passed", "cooling_down", "rolled_back", "ended"]
"""watching: fresh frames are compared; passed: enough were, and it is not worse; cooling_down: it was worse and was
rolled back, and no round starts; rolled_back: the same, after the cool-down; ended: something else moved the serving
ref, or it could not be compared."""


class Probation(Record):
    """`probation.json`."""

    stage: ProbationStage
    """Where it stands."""
    version: int
    """The version on probation."""
    previous: int
    """The version that served before, which it is compared with."""
    since: float
    """When it was promoted (Unix, seconds)."""
    condition: int | None = None
    """Condition of the stream then: only its frames count; None: all do."""
    spacing: int = 1
    """Distance between two frames that count (frames): neighbours are no separate evidence."""
    after: int
    """Newest frame that does not count any more (id)."""
    comparison: int | None = None
    """Comparison that is waited for."""
    failures: int = 0
    """Comparisons that failed in a row."""
    worse: tuple[bool, ...] = Field(default=())
    """Of each frame so far, whether the version looks worse than the one before."""
    worse_styled: tuple[bool, ...] = Field(default=())
    """Of each labelled source image so far, restyled to a fresh frame, whether its IoU there is lower."""
    labels: CanaryState | None = None
    """The canary images that were asked for last; None: none yet, or the answer had none."""
    canary_losses: tuple[float, ...] = Field(default=())
    """Of each canary image of the condition, by how much the IoU is lower than with the version before (-1 to 1)."""
    overstated: float = 0.0
    """By how much the frames overstate the share on which it is worse, measured on canary images (0-1)."""
    cooled: float = 0.0
    """Seconds of the cool-down that daemons have waited so far, up to 10 s late."""
    evidence: float = 1.0
    """Evidence that it is worse on more than half of the frames (an e-value; 1: none)."""
    reason: str = ""
    """One sentence with numbers."""

    def cooldown_left(self, seconds: float) -> float:
        """Return what is left of a cool-down that takes `seconds` (seconds); 0 when none runs."""
        return max(0.0, seconds - self.cooled) if self.stage == "cooling_down" else 0.0
