"""`run/activity.json`: what the running daemon does now, for `mfmd status` and other readers.

The file holds the few facts that only the running process knows. The daemon writes it when a fact changes, at most
once a second. The file is meaningless once the daemon's lock is free. On a full disk only the daemon itself knows.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from daemon.runtime.logs import Lasting, get_logger
from storage import durable
from storage.errors import StorageError

WRITE_SECONDS = 1.0
"""Shortest time between two writes (seconds)."""

log = get_logger(__name__)

FolderState = Literal["starting", "watching", "missing", "unmounted", "unreadable", "overlapping", "stopped"]
STATES: tuple[FolderState, ...] = get_args(FolderState)
"""Every state of the drop folder, as the metric shows them."""
Mode = Literal["events", "polling"]
Reason = Literal["configured", "local", "silent_mount", "refused", "deaf", "no_folder"]
MODES: tuple[tuple[Mode, Reason], ...] = (
    ("events", "local"),
    ("events", "configured"),
    ("polling", "configured"),
    ("polling", "silent_mount"),
    ("polling", "refused"),
    ("polling", "deaf"),
    ("polling", "no_folder"),
)
"""Every mode with its reasons, as the metric shows them."""


class ActivityPart(BaseModel):
    """A frozen part of what an operator is told."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class WatchActivity(ActivityPart):
    """The drop folder."""

    state: FolderState = "starting"
    """missing: the folder does not exist, it is waited for; unmounted: it exists without its `watch.marker`, nothing is
    taken; unreadable: it exists but cannot be listed; overlapping: its link leads to a folder of another
    setting."""
    mode: Mode = "polling"
    """events: the kernel's events wake us, the rescan finds the rest; polling: only the rescan."""
    mode_reason: Reason = "no_folder"
    """configured: `watch.mode` says so; local: a file system that sends events; silent_mount: one that does not;
    refused: the kernel gave no watch; deaf: files came without an event; no_folder: there is nothing to listen to."""
    file_system: str = ""
    """Type of the folder's file system, for example `ext4`; empty where it is not known."""
    detail: str = ""
    """Why, when it is not simply watching."""
    pending: int = 0
    """Files seen and not dealt with yet."""
    oldest_pending: float | None = None
    """Modification time of the oldest of them, as far as it was looked at (Unix, seconds)."""


class IngestActivity(ActivityPart):
    """From file to committed frame."""

    state: Literal["running", "paused", "failed", "stopped"] = "running"
    """paused: it goes on by itself when the reason is gone; failed: the daemon must be started again."""
    reason: str = ""
    """Why it is paused or failed."""


class ChildActivity(ActivityPart):
    """A supervised child process."""

    name: str
    """`serve`, `observe`, `masks` or `frames`."""
    running: bool
    problem: str = ""
    """Why it does not do its work; empty when it does."""
    hangs: bool = False
    """Whether it runs and does not answer; it is killed and restarted soon."""
    pid: int | None = None
    """Process id while it runs."""
    since: float | None = None
    """Unix time of the last start (seconds)."""
    restarts: int = 0
    """Starts after the first."""
    last_exit: int | None = None
    """Exit status of the last end; negative is a signal."""
    reason: str = ""
    """Why it ended, as it says itself; empty once it does its work."""
    next_start: float | None = None
    """Unix time of the next attempt, while it waits for one (seconds)."""


class MirrorActivity(ActivityPart):
    """A mirror of what serves (`publish`)."""

    name: str
    folder: str
    state: Literal["waiting", "exporting", "current", "failed", "stopped"] = "waiting"
    """current: readers are led to the serving version; failed: tried again; stopped: its disk lost a write, so nothing
    more is written until the daemon starts again."""
    version: int | None = None
    """Version that readers are led to."""
    failures: int = 0
    """Failed attempts in a row."""
    reason: str = ""
    """Why the last one failed."""
    next_attempt: float | None = None
    """Unix time of the next attempt after a failure (seconds)."""


class FileActivity(ActivityPart):
    """The configuration file, compared with the settings in force."""

    file: str = ""
    problem: str = ""
    """Why it is not valid; empty when it is."""
    reload: list[str] = Field(default_factory=list)
    """Dotted names of the settings that differ and that a reload applies."""
    restart: list[str] = Field(default_factory=list)
    """Those that differ and need a restart."""


class Activity(ActivityPart):
    """What the daemon does now."""

    watch: WatchActivity = WatchActivity()
    ingest: IngestActivity = IngestActivity()
    children: list[ChildActivity] = Field(default_factory=list)
    mirrors: list[MirrorActivity] = Field(default_factory=list)
    settings: FileActivity = FileActivity()
    errors: dict[str, str] = Field(default_factory=dict)
    """Parts of the daemon whose last step failed, with the reason."""
    damage: str = ""
    """What the last self-check found, with what to do; empty when nothing is wrong."""


class ActivityWriter:
    """Writes the file when the activity changed."""

    def __init__(self, path: Path, snapshot: Callable[[], Activity]) -> None:
        self._path, self._snapshot = path, snapshot
        self.now = Activity()
        """The newest activity, at most a second old; may be read from any thread."""
        self._written: Activity | None = None
        self._lasting = Lasting()

    def step(self) -> float:
        """Write if something changed; return the seconds until the next call."""
        activity = self.now = self._snapshot()
        if activity != self._written:
            try:
                durable.write_record(self._path, activity)
                self._written = activity
            except (OSError, StorageError) as error:  # a full disk must not stop the part that reports it
                if self._lasting.due(str(error)):
                    log.warning("activity_not_written", path=str(self._path), error=str(error))
        return WRITE_SECONDS

    def close(self) -> None:
        """Remove the file, because the daemon ends."""
        self._path.unlink(missing_ok=True)


def read_activity(path: Path) -> Activity | None:
    """Return the activity in `path`; None if the file is missing or cannot be read."""
    try:
        return Activity.model_validate_json(path.read_bytes())
    except (OSError, ValueError):
        return None
