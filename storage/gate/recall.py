"""The recall of a known-good version: `recall.json`; one writer, the daemon."""

from typing import Literal

from storage.durable.record import Record

RecallStage = Literal["idle", "asked", "recalled", "declined"]
"""idle: the stream is of no condition with a better version; asked: a comparison is waited for; recalled: the version
of the condition serves again; declined: the evidence did not hold, or it could not be compared."""


class Recall(Record):
    """`recall.json`."""

    stage: RecallStage = "idle"
    """Where it stands."""
    since: float = 0.0
    """When it entered the stage (Unix, seconds)."""
    condition: int | None = None
    """Condition of the newest frames then."""
    version: int | None = None
    """The version that was recalled, or is considered first."""
    challengers: tuple[int, ...] = ()
    """The versions that are compared with the serving one."""
    frames: int = 0
    """Frames of the burst when it was asked."""
    open: bool = False
    """Whether the last answer neither held nor was against: more frames are waited for."""
    unusable: tuple[int, ...] = ()
    """Versions whose files are damaged: they do not challenge again."""
    considered: tuple[int, ...] = ()
    """Conditions whose best version was chosen by a comparison, or was alone."""
    serving: int | None = None
    """The version that served then."""
    comparison: int | None = None
    """Comparison that is waited for."""
    moved: float = 0.0
    """When the last recall moved the serving ref (Unix, seconds)."""
    decided: float = 0.0
    """Time of the newest move of the serving ref by somebody else that was taken into account (Unix, seconds)."""
    held: int | None = None
    """Condition in which an operator chose what serves: no recall until the stream leaves it. 0: none was known then,
    so it is the next one that is."""
    declines: int = 0
    """Recalls ever declined in this state directory."""
    reason: str = ""
    """One sentence with numbers."""
