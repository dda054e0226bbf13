"""Paths of a state directory, the lock that keeps it to one daemon, and the end of children whose daemon is gone."""

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from storage import durable

LOCK_OWNER_FILES = ("daemon", "activity", "settings")
"""Run files that describe the process that holds the lock, and belong to it."""

ORPHAN_SECONDS = 60.0
"""How long a child works on without a daemon (seconds): long enough for a restart by a service manager."""
WORKS_FOR = "_MFMD_WORKS_FOR"
"""Environment variable of every child: the identity of its state directory (`StateLayout.identity`). A copied or
restored directory has another identity."""

log = logging.getLogger(__name__)


class StateLayout:
    """Paths of one state directory; nothing is created before `create`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        """The state directory itself."""
        self.buffer = self.root / "buffer"
        """Folder of the frame buffer."""
        self.frames_zarr = self.buffer / "frames.zarr"
        """Zarr group that holds the pixels of target frames."""
        self.catalog = self.buffer / "catalog.sqlite"
        """SQLite database: what was committed, refused, and why."""
        self.observations = self.buffer / "observations.sqlite"
        """SQLite database of the observer."""
        self.videos = self.root / "videos.jsonl"
        """Records of the videos of the drop folder."""
        self.source = self.root / "source"
        """Folder of the labelled source set."""
        self.canary = self.root / "canary"
        """Folder of canary images that were added, as files, and of the sets that are read from files."""
        self.canary_sets = (self.canary / "added", self.canary / "configured")
        """Folders of the sets read from added files, and from those of `canary.images`."""
        self.checkpoints = self.root / "checkpoints"
        """Folder of the checkpoint registry."""
        self.rounds = self.root / "rounds"
        """Folder of round folders."""
        self.device_time = self.root / "device_time.json"
        """How long the rounds of the last day used a device."""
        self.shadow = self.root / "shadow"
        """Folder of `shadow/000042/PLANE.json`: agreement of a shadow with the serving version."""
        self.conditions = self.root / "conditions.json"
        """Known conditions of the stream."""
        self.drift = self.root / "drift.json"
        """The drift alarm."""
        self.recall = self.root / "recall.json"
        """Where the recall of a known-good version stands."""
        self.probation = self.root / "probation.json"
        """The probation of the version that was promoted last."""
        self.comparisons = self.root / "comparisons"
        """Folder of comparisons of versions that the daemon asks the observer for."""
        self.run = self.root / "run"
        """Folder of files that exist only while processes live: lock, addresses, token."""
        self.token_file = self.run / "control.token"
        """The generated bearer token of the control API."""
        self.socket = self.run / "control.sock"
        """Unix socket on which a living daemon serves commands of the same user."""
        self.lock_file = self.run / "daemon.lock"
        """The file that a living daemon holds locked."""

    @property
    def format_file(self) -> Path:
        """Format of the whole directory, and the mfmd that gave it (`storage.directory.format`)."""
        return self.root / "format.json"

    @property
    def refusal(self) -> Path:
        """Why the last round that was called for could not begin; no file: it began."""
        return self.root / "refusal.json"

    @property
    def pause(self) -> Path:
        """Who paused the daemon's own changes, and why; no file: they are not paused."""
        return self.root / "pause.json"

    @property
    def notified(self) -> Path:
        """What each webhook of `notify` was told."""
        return self.root / "notified.json"

    @property
    def looks(self) -> Path:
        """Folder of label maps that the page asks the observer for; a cache."""
        return self.run / "looks"

    def run_file(self, name: str) -> Path:
        """Return `run/<name>.json`: pid, host, port and start time of a living process."""
        return self.run / f"{name}.json"

    def beat_file(self, name: str) -> Path:
        """Return `run/<name>.beat`, whose time a living child changes."""
        return self.run / f"{name}.beat"

    def end_file(self, name: str) -> Path:
        """Return `run/<name>.end`, in which a child leaves why it ends."""
        return self.run / f"{name}.end"

    def identity(self) -> str:
        """Return what distinguishes this state directory from its copies: device and inode of its lock file.

        The file is created if missing. A moved directory keeps it. A daemon has the file open, so no other file gets
        its number while the daemon lives.
        """
        if not self.lock_file.exists():
            self.lock_file.touch()
        status = self.lock_file.stat()
        return f"{status.st_dev}:{status.st_ino}"

    def create(self) -> None:
        """Create every folder, durably. Raises OSError when that is impossible."""
        for folder in (self.buffer, self.source, self.checkpoints, self.rounds, self.run):
            durable.make_directory(folder)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold this state directory for one daemon. Raises AlreadyRunning, naming process and directory.

        The run files of a killed daemon are removed: they would be mistaken for those of the new holder.
        """
        durable.make_directory(self.run)
        with durable.exclusive_lock(
            self.lock_file,
            busy=lambda holder: (
                f"{self.root}: process {holder} already works on this state directory; "
                "stop it, or set `state` to another directory"
            ),
        ):
            for name in LOCK_OWNER_FILES:
                self.run_file(name).unlink(missing_ok=True)
            yield

    def locked(self) -> bool:
        """Return whether a living process holds the lock; never takes it."""
        return durable.is_locked(self.lock_file)


def end_without_daemon(layout: StateLayout, patience: float = ORPHAN_SECONDS) -> None:
    """Send SIGTERM to this child process if no daemon has held its state directory for `patience` seconds.

    The next daemon ends the children of the last one when it starts; without one they end themselves. A process that no
    daemon started is not stopped.
    """
    if WORKS_FOR in os.environ:
        threading.Thread(target=_end_without_daemon, args=(layout, patience), name="orphan", daemon=True).start()


def _end_without_daemon(layout: StateLayout, patience: float) -> None:
    alone_since = None
    while alone_since is None or time.monotonic() - alone_since < patience:
        time.sleep(patience / 10)
        alone_since = None if _has_daemon(layout) else alone_since or time.monotonic()
    log.warning("no daemon has held %s for %.0f s: ends", layout.root, patience)
    os.kill(os.getpid(), signal.SIGTERM)


def _has_daemon(layout: StateLayout) -> bool:
    """Return whether the lock that this child was started under is held: a new lock file is another daemon's."""
    try:
        return layout.locked() and layout.identity() == os.environ[WORKS_FOR]
    except OSError:
        return False
