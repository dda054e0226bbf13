"""The n-th call that changes a file fails, for n = 1, 2, ... until a run passes without: nothing is ever lost by it.

Also SQLite's and zarr's own calls. A failed fsync ends the component; every other error is met by another attempt.
"""

import errno
import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from storage.buffer.catalog_schema import translated
from storage.buffer.frames import FrameBuffer
from storage.errors import DurabilityLost, StorageError
from storage.layout import StateLayout
from tests.faults import world
from tests.faults.io_tap import tapped
from tests.faults.oracle import Oracle

pytestmark = pytest.mark.filterwarnings(
    "ignore:coroutine .* was never awaited", "ignore::pytest.PytestUnraisableExceptionWarning"
)
"""Zarr leaves coroutines of its own behind when one of several writes fails."""

CALLS = {
    errno.EIO: {"open", "write", "truncate", "fsync", "rename", "link", "unlink", "mkdir", "rmdir"},
    errno.ENOSPC: {"open", "write", "rename", "link", "mkdir"},
    errno.EMFILE: {"open"},
    errno.EACCES: {"open", "rename", "link", "unlink", "mkdir", "rmdir"},
}
"""The calls that may answer so."""
FEW, ALL = pytest.param(13, id="some"), pytest.param(1, id="all", marks=pytest.mark.nightly)
"""One call in so many fails, each in a world of its own; a prime number, so that no pattern of calls hides another."""
ATTEMPTS = 20
"""Attempts in which a run must succeed after one error."""


class FailNth:
    """Refuses the n-th of some calls, once; remembers which, and whether an fsync of the same file came after it."""

    def __init__(self, number: int, code: int) -> None:
        self._left, self._code, self._lock = number, code, threading.Lock()
        self.failed: tuple[str, Path] | None = None
        self.later: list[tuple[str, Path]] = []

    def before(self, call: str, path: Path, target: Path | None) -> None:
        with self._lock:
            if self.failed is not None:
                self.later.append((call, path))
            elif call in CALLS[self._code]:
                self._left -= 1
                if self._left == 0:
                    self.failed = call, path
                    raise OSError(self._code, os.strerror(self._code), str(path))

    def after(self, call: str, path: Path, target: Path | None) -> None:
        """Nothing to refuse any more."""

    @property
    def lost_a_sync(self) -> bool:
        """Whether it was an fsync that failed."""
        return self.failed is not None and self.failed[0] == "fsync"


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daemon.ingest.worker.PAUSE_SECONDS", 0.0)
    monkeypatch.setattr("daemon.watch.folder.CHECK_SECONDS", 0.0)
    monkeypatch.setattr("daemon.watch.arrival.RETRIES.__class__.delay", lambda self, failures: 0.0)


def each_failure(tmp_path: Path, code: int, every: int) -> Iterator[tuple[Path, FailNth]]:
    """A folder and a refusing observer for one n in `every`, until nothing was refused."""
    for number in range(1, 2000, every):
        root = tmp_path / str(number)
        (root / "drop").mkdir(parents=True)
        fault = FailNth(number, code)
        yield root, fault
        if fault.failed is None:
            assert number > 10, "hardly any call was seen"
            return
    raise AssertionError("it never passed")


def run_ingest(root: Path, fault: FailNth) -> None:
    """As the daemon does: steps that fail are repeated, a lost fsync ends it, a start that fails is another start."""
    config, layout = world.settings(root, buffer={"capacity_frames": 3}), StateLayout(root / "state")
    for _ in range(ATTEMPTS):
        try:
            layout.create()
            buffer = FrameBuffer.open(layout, config.buffer, writable=True)
        except (OSError, StorageError):
            if fault.lost_a_sync:
                return
            continue
        with buffer:
            if _take_all(root, buffer, fault):
                return
    raise AssertionError(f"one error ({fault.failed}) and it never went on")


def _take_all(root: Path, buffer: FrameBuffer, fault: FailNth) -> bool:
    """Whether this run of ingest came to its end: all taken, or stopped by a lost fsync."""
    ingest = world.ingest_on(root, buffer, capacity=3)
    for _ in range(3000):
        try:
            ingest.step()
            if not world.waiting(root, buffer):
                ingest.close()
                return True
        except DurabilityLost:
            _stays_stopped(buffer, fault)
            with suppress(DurabilityLost):
                ingest.close()
            return True
        except (OSError, StorageError):
            continue
    raise AssertionError(f"it never went on after {fault.failed}: {ingest.activity}")


def _stays_stopped(buffer: FrameBuffer, fault: FailNth) -> None:
    """What could not be synced is not synced again, and this buffer accepts no more frames."""
    assert fault.failed is not None
    call, path = fault.failed
    for _ in range(2):
        with pytest.raises(DurabilityLost):
            buffer.append([world.frame(17)])
    if path.name.startswith("catalog"):
        with pytest.raises(DurabilityLost):
            buffer.lease(1)
        with pytest.raises(DurabilityLost):
            buffer.catalog.note(world.frame(18).file, "refused", "truncated", "")
    assert (call, path) not in fault.later or call != "fsync", "a failed fsync was repeated"


@pytest.mark.parametrize("every", [FEW, ALL])
@pytest.mark.parametrize("code", CALLS, ids=errno.errorcode.get)
def test_ingest_loses_nothing_by_any_one_error(tmp_path: Path, code: int, every: int):
    for root, fault in each_failure(tmp_path, code, every):
        files = world.drop_files(root, good=4)
        oracle = Oracle(root, files, capacity=3)
        with tapped(root / "state", fault):
            run_ingest(root, fault)
        oracle.check()
        oracle.repair()
        world.ingest_all(root, world.settings(root, buffer={"capacity_frames": 3}))
        oracle.check_finished()


OTHERS = [("registry", errno.EIO), ("registry", errno.EMFILE), ("rounds", errno.EIO), ("source", errno.ENOSPC)]


@pytest.mark.parametrize("every", [FEW, ALL])
@pytest.mark.parametrize(("job", "code"), OTHERS)
def test_whatever_else_fails_can_be_done_again(tmp_path: Path, job: str, code: int, every: int):
    for root, fault in each_failure(tmp_path, code, every):
        oracle = Oracle(root)
        try:
            with tapped(root / "state", fault):
                world.JOBS[job](root)
        except DurabilityLost:
            assert fault.lost_a_sync
            assert fault.failed is not None
            assert ("fsync", fault.failed[1]) not in fault.later, "a failed fsync was repeated"
        except (OSError, StorageError):
            assert not fault.lost_a_sync, "a lost fsync was taken for something else"
        else:
            assert fault.failed is None or not fault.lost_a_sync, f"nobody heard of {fault.failed}"
        oracle.check()
        oracle.repair()
        world.JOBS[job](root)
        oracle.check(tidy=job != "rounds")


def test_a_full_disk_that_stops_the_logs_index_is_a_full_disk(tmp_path: Path):
    """SQLite calls it an I/O error; taken for a lost write it would end ingest for good."""
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = sqlite3.SQLITE_IOERR_SHMSIZE
    with pytest.raises(OSError, match="No space left"), translated(tmp_path / "catalog.sqlite", writing=True):
        raise error
