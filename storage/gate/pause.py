"""The pause of the daemon's own changes: `pause.json`, there while it lasts. Whoever may write the state may pause.

While paused no round begins by itself, no recall moves what serves, and an accepted candidate of a round that nobody
asked for waits for a person. What people ask for goes on, and so does the rollback by probation.
"""

import logging
import time

from storage import durable
from storage.durable.record import Record, read_record
from storage.errors import StorageError
from storage.layout import StateLayout
from storage.registry.refs import check_reason

log = logging.getLogger(__name__)


class Pause(Record):
    """`pause.json`."""

    at: float | None
    """When it began (Unix, seconds); None when the file cannot be read."""
    by: str
    """Who paused."""
    reason: str
    """Why."""

    def __str__(self) -> str:
        return f"paused by {self.by}: {self.reason}"


def read_pause(layout: StateLayout) -> Pause | None:
    """Return the pause; None while there is none. A file that cannot be read is a pause: damage resumes nothing."""
    try:
        return read_record(layout.pause, Pause)
    except (StorageError, OSError) as error:
        return Pause(at=None, by="unknown", reason=f"{error}; `mfmd resume` removes the file and ends the pause")


def pause(layout: StateLayout, *, by: str, reason: str) -> Pause:
    """Begin a pause, or give the one that lasts another reason. Raises InvalidReason, StorageError or OSError."""
    check_reason(reason)
    if not layout.root.is_dir():
        raise StorageError(f"{layout.root}: no state directory is there yet; `mfmd run` creates it")
    begun = Pause(at=time.time(), by=by, reason=reason)
    durable.write_record(layout.pause, begun)
    return begun


def resume(layout: StateLayout, *, by: str, reason: str) -> bool:
    """End the pause; return whether there was one. Raises InvalidReason or OSError."""
    check_reason(reason)
    if not layout.pause.exists():
        return False
    durable.remove_file(layout.pause)
    log.info("pause ended by %s: %s", by, reason)
    return True
