"""Keep, move or delete a file of the drop folder after its state is recorded.

The record is always on the disk first. A kill in between leaves the file where it was: `sweep` finds it at the next
start and finishes. A file that differs from the record is not touched.
"""

import errno
import itertools
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from configs.watch import WatchSettings
from daemon.runtime.logs import get_logger
from daemon.watch.arrival import Arrival, find_arrival
from daemon.watch.scan import FolderScan
from storage import durable
from storage.buffer.catalog_records import FileFact, FileRecord
from storage.durable.digest import digest_of, short
from storage.errors import StorageError

SWEEP_SECONDS = 300.0
"""Interval between scans of the folder for known files that should be gone (seconds)."""
RETRY_SECONDS = 60.0
"""Delay before a file that could not be moved or deleted is retried (seconds)."""
AT_ONCE = 64
"""Files that one step of a sweep examines; new images do not wait for all of an old folder."""
STORED = ("committed", "duplicate")
"""States of files whose content is, or was, in the buffer."""

log = get_logger(__name__)


class Originals:
    """Moves and deletes files; belongs to one thread."""

    def __init__(
        self,
        watch: WatchSettings,
        state_of: Callable[[FileFact], FileRecord | None],
        scan: FolderScan,
        overlap: Callable[[], str] = str,
    ) -> None:
        """Prepare it: `state_of` returns the state of a file, None while that is open; `scan` lists the files.

        `overlap` returns which folders of the configuration overlap now: then no file is moved or deleted.
        """
        self._watch, self._state_of, self._scan, self._overlap = watch, state_of, scan, overlap
        self._wanted = watch.after_commit != "keep" or watch.quarantine is not None
        self._next_sweep = 0.0
        self._sweeping: Iterator[str] | None = None
        self._complained: set[str] = set()

    def dispose(self, arrival: Arrival) -> None:
        """Apply the settings to a file whose state is recorded; it is unchanged, so it is not read again.

        Raises DurabilityLost. A file that cannot be moved or deleted stays and is retried.
        """
        if self._wanted:
            self._dispose(arrival, as_read=True)

    def sweep(self) -> bool:
        """Finish, a few files at a time, what a kill or an error interrupted; return whether there is more."""
        if not self._wanted or (self._sweeping is None and time.monotonic() < self._next_sweep):
            return False
        if self._sweeping is None:
            self._next_sweep = time.monotonic() + SWEEP_SECONDS
            self._sweeping = self._scan.names(self._cannot)
        try:
            names = list(itertools.islice(self._sweeping, AT_ONCE))
        except OSError as error:
            self._cannot("", error)
            names = []
        for name in names:
            try:
                arrival = find_arrival(self._watch.folder, name)
            except Exception as error:  # noqa: BLE001 - whatever it is, it stays this file's
                self._cannot(name, error)
                continue
            if arrival is not None:
                self._dispose(arrival, as_read=False)
        if len(names) < AT_ONCE:
            self._sweeping = None
        return self._sweeping is not None

    def disposes_of(self, state: FileRecord) -> bool:
        """Return whether a file of this state is moved or deleted."""
        return self._target(state) is not None or (state.state in STORED and self._watch.after_commit == "delete")

    def _dispose(self, arrival: Arrival, *, as_read: bool) -> None:
        state = self._state_of(arrival.file)
        if state is None or not self.disposes_of(state):
            return
        try:
            if overlapping := self._overlap():
                raise OSError(errno.ELOOP, overlapping)
            self._act(arrival, state, self._target(state), as_read=as_read)
        except StorageError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, it stays this file's
            self._cannot(arrival.file.path, error)

    def _target(self, state: FileRecord) -> Path | None:
        if state.state in STORED and self._watch.after_commit == "move":
            return self._watch.done_folder
        return self._watch.quarantine if state.state == "refused" else None

    def _act(self, arrival: Arrival, state: FileRecord, folder: Path | None, *, as_read: bool) -> None:
        if arrival.path.is_symlink():
            if state.state in STORED:  # its target is a file of the folder and goes its own way
                durable.remove_file(arrival.path)
            return
        if not self._is_still(arrival, state, as_read=as_read):
            return
        if folder is None:
            durable.remove_file(arrival.path)
            log.info("original_deleted", file=arrival.file.path, digest=short(state.digest or ""))
        else:
            target = durable.move_file(arrival.path, folder / arrival.file.path)
            log.info("original_moved", file=arrival.file.path, digest=short(state.digest or ""), to=str(target))

    def _is_still(self, arrival: Arrival, state: FileRecord, *, as_read: bool) -> bool:
        """Return whether the file matches the record: untouched since it was read, or of the same digest."""
        now = self._current(arrival)
        if now is None or now.file != arrival.file:
            return False
        if as_read and now.changed_ns == arrival.changed_ns:
            return True
        if state.digest is None:  # refused unread: it only moves, so nothing can be lost
            return state.state == "refused"
        if digest_of(arrival.path) != state.digest:
            return False
        return self._current(arrival) == now  # reading it took a while

    def _current(self, arrival: Arrival) -> Arrival | None:
        return find_arrival(self._watch.folder, os.path.relpath(arrival.path, self._watch.folder))

    def _cannot(self, name: str, error: Exception) -> None:
        self._next_sweep = min(self._next_sweep, time.monotonic() + RETRY_SECONDS)
        if name not in self._complained and len(self._complained) < AT_ONCE:  # a log must not fill a disk
            self._complained.add(name)
            log.warning("original_kept", file=name, error=str(error), retry_in=RETRY_SECONDS)
