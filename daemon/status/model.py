"""The picture that `mfmd status` and `GET /v1/status` give: what each number means stands beside it."""

from pydantic import Field

from daemon.rounds.history import RoundSummary
from daemon.rounds.schedule import NextRound
from daemon.runtime.activity import (
    ActivityPart,
    ChildActivity,
    FileActivity,
    IngestActivity,
    MirrorActivity,
    WatchActivity,
)
from daemon.status.conditions import ConditionsStatus
from daemon.status.plane_probe import PlaneStatus
from storage.canary.records import CanaryState
from storage.gate.drift import Drift, DriftState
from storage.gate.pause import Pause
from storage.gate.probation import Probation
from storage.gate.recall import Recall
from storage.registry.manifest import Ref
from storage.rounds.records import Progress

OBSERVED_FRAMES = 200
"""Number of newest frames in the averages."""


class DaemonStatus(ActivityPart):
    """The process."""

    up: bool
    """Whether a process holds the state directory."""
    pid: int | None = None
    """Its process id."""
    since: float | None = None
    """Unix time of its start (seconds)."""
    host: str | None = None
    """Address of its control plane."""
    port: int | None = None
    """Port of its control plane."""


class BufferStatus(ActivityPart):
    """Counts of the frame buffer and of files of the drop folder."""

    frames: int = 0
    """Frames in the buffer."""
    holdout: int = 0
    """Held-out frames among them."""
    capacity: int
    """Frames it holds before some leave."""
    committed_total: int = 0
    """Frames ever committed."""
    evicted_total: int = 0
    """Frames that left to make room."""
    duplicates: int = 0
    """Files whose content was committed before."""
    refused: dict[str, int] = Field(default_factory=dict)
    """Refused files by reason."""
    skipped: dict[str, int] = Field(default_factory=dict)
    """Files that admission left out, by reason."""
    last_committed_at: float | None = None
    """Unix time of the newest commit in the buffer (seconds)."""
    disk_free_bytes: int | None = None
    """Free space on the disk of the state directory (bytes)."""


class RunningRound(ActivityPart):
    """The round in progress."""

    round: int
    """Number."""
    progress: Progress | None
    """Its newest progress; none before the first."""
    seconds_left: float | None = None
    """Time that training still takes at its pace (seconds); none while that is unknown."""


class ObservedStatus(ActivityPart):
    """What the serving version predicts on the newest frames."""

    frames: int
    """Frames averaged."""
    version: int
    """Version that predicted on the newest of them."""
    entropy: float
    """Mean softmax entropy (nats)."""
    confidence: float
    """Mean largest softmax probability (0-1)."""
    class_ratio: dict[str, float]
    """Mean share of pixels by class (0-1)."""


class Status(ActivityPart):
    """Everything at once."""

    at: float
    """Unix time of this picture (seconds)."""
    state: str
    """State directory."""
    folder: str
    """Drop folder."""
    daemon: DaemonStatus
    """The process."""
    watch: WatchActivity
    """The drop folder's state."""
    ingest: IngestActivity
    """Ingest."""
    children: list[ChildActivity]
    """Children of the daemon."""
    mirrors: list[MirrorActivity] = Field(default_factory=list)
    """Mirrors of what serves; empty with the daemon down."""
    buffer: BufferStatus
    """The frame buffer."""
    buffer_damaged: bool = False
    """Whether its catalog cannot be read; a message says why."""
    settings: FileActivity = FileActivity()
    """The configuration file of the running daemon, compared with the settings in force."""
    serving: Ref | None
    """The version that should serve; none before the first, or when that cannot be read."""
    serving_damaged: bool = False
    """Whether it cannot be read which version should serve; a message says why."""
    previous: Ref | None
    """The version before it: the target of a rollback."""
    versions: list[int]
    """Checkpoint versions on disk."""
    plane: PlaneStatus
    """What the inference plane says."""
    round: RunningRound | None
    """The round in progress."""
    last_rounds: list[RoundSummary]
    """The newest rounds that ended, newest first."""
    suggested: int | None = None
    """The version that waits for `mfmd approve` or `mfmd reject` (gate.policy: manual)."""
    probation: Probation | None = None
    """The probation of the version that was promoted last; none before the first."""
    conditions: ConditionsStatus = ConditionsStatus()
    """The conditions of the stream that are known, and which one each camera is in."""
    canary: CanaryState | None = None
    """How many canary images count, as they were read last; none before the first look."""
    pause: Pause | None = None
    """Who paused the daemon's own changes, and why; none while they are not paused."""
    recall: Recall | None = None
    """Where the recall of a known-good version stands; none before the first look."""
    drift: Drift | None = None
    """The drift alarm; none before the first look."""
    drift_state: DriftState = "waiting"
    """Where the drift alarm stands; `no_observer` while `observe.enabled` is off."""
    budget_minutes: float = 0.0
    """Time that rounds may use a device for in 24 hours (minutes); 0: no limit."""
    next_round: NextRound
    """What the next round waits for."""
    observed: ObservedStatus | None
    """Predictions on the newest frames; none before the observer looked at one."""
    messages: list[str]
    """What needs the operator's attention, most urgent first; empty when all is well."""
