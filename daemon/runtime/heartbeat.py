"""What children tell the supervisor by files: that they live and work, and why they end.

A thread of the child changes the time of `run/NAME.beat` every two seconds, unless the child's loop has not moved for
long. So a process that is stopped, frozen or stuck in a system call is noticed soon, and a stuck loop some time later.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from storage.layout import WORKS_FOR, StateLayout

BEAT_SECONDS = 2.0
LOST_SECONDS = 8.0
"""A child whose last beat is older gives no sign of life (seconds)."""
STUCK_SECONDS = 3600.0
"""A loop that did not move for so long is stuck (seconds): comparing versions of a large network on a CPU is not."""


@contextmanager
def beating(layout: StateLayout, name: str) -> Iterator[Callable[[], None]]:
    """Beat as child `name` of a daemon until the end of the block; yield what its loop calls whenever it moves."""
    path, ended, moved = layout.beat_file(name), threading.Event(), [time.monotonic()]

    def beat() -> None:
        while not ended.is_set():
            if time.monotonic() - moved[0] < STUCK_SECONDS:
                with suppress(OSError):  # a full disk has no room for a new file, but changes the time of one
                    path.touch()
            ended.wait(BEAT_SECONDS)

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    if WORKS_FOR in os.environ:  # nobody else looks
        thread.start()
    try:
        yield lambda: moved.__setitem__(0, time.monotonic())
    finally:
        ended.set()
        if thread.ident is not None:
            thread.join()
            path.unlink(missing_ok=True)


def remove_beat(layout: StateLayout, name: str) -> None:
    """Remove the beat of child `name`, which cannot if it is killed. A read-only disk is no further error."""
    with suppress(OSError):
        layout.beat_file(name).unlink()


def leave_reason(layout: StateLayout, name: str, reason: str) -> None:
    """Leave why this child ends, for `take_reason`. A full disk, or one that is read-only, is no further error."""
    with suppress(OSError):
        layout.end_file(name).write_text(reason, encoding="utf-8")


def take_reason(layout: StateLayout, name: str) -> str:
    """Return why child `name` ended, once; empty when it left no reason."""
    path = layout.end_file(name)
    try:
        reason = path.read_text(encoding="utf-8", errors="replace")
        path.unlink()
    except OSError:
        return ""
    return reason


class BeatProbe:
    """Tells the supervisor whether a child beats; used by one thread."""

    def __init__(self, layout: StateLayout, name: str) -> None:
        self._path = layout.beat_file(name)
        self._pid, self._beat, self._since = 0, 0, float("-inf")

    def __call__(self, pid: int) -> str | None:
        """Return "" while process `pid` beats; None before its first beat, and `LOST_SECONDS` after its last.

        Only that the file's time changes counts: the clock may be set, and a killed child leaves its file behind.
        """
        try:
            beat = self._path.stat().st_mtime_ns
        except OSError:
            beat = 0
        if pid != self._pid:
            self._pid, self._beat, self._since = pid, beat, float("-inf")
        elif beat != self._beat:
            self._beat, self._since = beat, time.monotonic()
        return "" if time.monotonic() - self._since < LOST_SECONDS else None
