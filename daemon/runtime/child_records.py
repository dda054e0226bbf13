"""`run/children.json`: which process groups this daemon started, so that the next one can end what a kill left over.

After SIGKILL of the daemon its children live on: an inference plane that still holds the port, a round that still
trains. A record holds the group and a mark, a path from the command line, so that a number which the system has
given to somebody else since is never signalled.
"""

import signal
import threading
import time
from pathlib import Path

from pydantic import BaseModel, ValidationError

from daemon.runtime.logs import get_logger
from daemon.runtime.process_group import POLL_SECONDS, command_line, group_members, signal_group
from storage import durable
from storage.errors import StorageError

log = get_logger(__name__)


class ChildRecord(BaseModel):
    """One running child."""

    name: str
    """For example `serve` or `round 17`."""
    group: int
    """Process group."""
    mark: str
    """An argument that is on the command line of the process that works."""


class _Records(BaseModel):
    children: list[ChildRecord] = []


class ChildRecords:
    """The file, kept in step with what runs."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._children: dict[str, ChildRecord] = {}

    def add(self, name: str, group: int, mark: str) -> None:
        """A child was started."""
        with self._lock:
            self._children[name] = ChildRecord(name=name, group=group, mark=mark)
            self._write()

    def remove(self, name: str) -> None:
        """A child is gone."""
        with self._lock:
            if self._children.pop(name, None) is not None:
                self._write()

    def close(self) -> None:
        """The daemon ends and its children have."""
        self.path.unlink(missing_ok=True)

    def _write(self) -> None:
        """A full disk must not keep a child from running; at worst the next daemon does not know of it."""
        try:
            durable.write_record(self.path, _Records(children=list(self._children.values())))
        except (OSError, StorageError) as error:
            log.warning("child_records_not_written", path=str(self.path), error=str(error))


def end_leftovers(path: Path, grace_seconds: float) -> list[str]:
    """End the children of a daemon that did not stop cleanly; returns their names. Call only under the state lock."""
    found = [record for record in _read(path) if _members(record)]
    for record in found:
        log.warning("leftover_child_ended", child=record.name, group=record.group)
        signal_group(record.group, signal.SIGTERM)
    deadline = time.monotonic() + grace_seconds
    while any(_members(record) for record in found) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    for record in found:
        if _members(record):
            signal_group(record.group, signal.SIGKILL)
    path.unlink(missing_ok=True)
    return [record.name for record in found]


def _members(record: ChildRecord) -> list[int]:
    """Running processes of the group, if one of them carries the mark."""
    members = list(group_members(record.group))
    return members if any(record.mark in command_line(pid) for pid in members) else []


def _read(path: Path) -> list[ChildRecord]:
    try:
        return _Records.model_validate_json(path.read_bytes()).children
    except FileNotFoundError:
        return []
    except ValidationError as error:
        log.warning("child_records_damaged", path=str(path), error=str(error))
        return []
