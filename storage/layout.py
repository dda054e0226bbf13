"""Paths of a state directory, and the lock that keeps it to one daemon."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from storage import durable

LOCK_OWNER_FILES = ("daemon", "activity", "settings")
"""Run files that describe the process that holds the lock, and belong to it."""


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
        self.checkpoints = self.root / "checkpoints"
        """Folder of the checkpoint registry."""
        self.rounds = self.root / "rounds"
        """Folder of round folders."""
        self.shadow = self.root / "shadow"
        """Folder of `shadow/000042/PLANE.json`: agreement of a shadow with the serving version."""
        self.run = self.root / "run"
        """Folder of files that exist only while processes live: lock, addresses, token."""
        self.token_file = self.run / "control.token"
        """The generated bearer token of the control API."""
        self.socket = self.run / "control.sock"
        """Unix socket on which a living daemon serves commands of the same user."""
        self.lock_file = self.run / "daemon.lock"
        """The file that a living daemon holds locked."""

    def run_file(self, name: str) -> Path:
        """Return `run/<name>.json`: pid, host, port and start time of a living process."""
        return self.run / f"{name}.json"

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
