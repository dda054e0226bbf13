"""Paths of a state directory, and the lock that keeps it to one daemon."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from storage import durable
from storage.errors import AlreadyRunning

OF_THE_HOLDER = ("daemon", "activity", "settings")
"""Run files that describe the process that holds the lock, and belong to it."""


@dataclass(frozen=True, slots=True)
class StateLayout:
    """Paths of one state directory; nothing is created before `create`."""

    root: Path
    """The state directory itself."""

    @property
    def buffer(self) -> Path:
        """Folder of the frame buffer."""
        return self.root / "buffer"

    @property
    def frames_zarr(self) -> Path:
        """Zarr group that holds the pixels of target frames."""
        return self.buffer / "frames.zarr"

    @property
    def catalog(self) -> Path:
        """SQLite database: what was committed, refused, and why."""
        return self.buffer / "catalog.sqlite"

    @property
    def observations(self) -> Path:
        """SQLite database of the observer."""
        return self.buffer / "observations.sqlite"

    @property
    def videos(self) -> Path:
        """Records of the videos of the drop folder."""
        return self.root / "videos.jsonl"

    @property
    def source(self) -> Path:
        """Folder of the labelled source set."""
        return self.root / "source"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoint registry."""
        return self.root / "checkpoints"

    @property
    def rounds(self) -> Path:
        """Folder of round folders."""
        return self.root / "rounds"

    @property
    def shadow(self) -> Path:
        """Folder of `shadow/000042/PLANE.json`: agreement of a shadow with the serving version."""
        return self.root / "shadow"

    @property
    def run(self) -> Path:
        """Folder of files that exist only while processes live: lock, addresses, token."""
        return self.root / "run"

    @property
    def token_file(self) -> Path:
        """The generated bearer token of the control API."""
        return self.run / "control.token"

    @property
    def socket(self) -> Path:
        """Unix socket on which a living daemon serves commands of the same user."""
        return self.run / "control.sock"

    @property
    def lock_file(self) -> Path:
        """Return the file that a living daemon holds locked."""
        return self.run / "daemon.lock"

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
        with ExitStack() as held:
            try:
                held.enter_context(durable.exclusive_lock(self.lock_file, wait=False))
            except durable.Locked as error:
                raise AlreadyRunning(
                    f"{self.root}: process {error.holder} already works on this state directory; "
                    "stop it, or set `state` to another directory"
                ) from error
            for name in OF_THE_HOLDER:
                self.run_file(name).unlink(missing_ok=True)
            yield

    def locked(self) -> bool:
        """Return whether a living process holds the lock; never takes it."""
        return durable.is_locked(self.lock_file)
