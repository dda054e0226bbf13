"""`run/<name>.json`: the address and identity of a running process. A kill leaves a stale file.

A record may also come with a copied state directory from a daemon that still runs. `RunRecord.is_current` checks it:
host, boot, process id, start time and state directory must all be those of a process that runs now.
"""

import os
import socket
from functools import cache
from pathlib import Path

import psutil
from pydantic import BaseModel, ConfigDict

from storage import durable
from storage.layout import StateLayout

START_TOLERANCE_SECONDS = 2.0
"""The kernel rounds its boot time, from which start times are counted, to seconds. No pid comes again so soon."""


class RunRecord(BaseModel):
    """A process and its address."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    machine: str
    """Host name of the machine or container that it runs on."""
    boot: str
    pid: int
    started: float
    """Start of the process, counted from the boot (seconds): a clock that is set changes nothing."""
    state: str
    """Identity of the state directory that it works on."""
    host: str
    """Address it is bound to."""
    port: int
    """TCP port; the one that the system chose when the configured one is 0."""
    tls: bool

    @property
    def since(self) -> float:
        """Return the Unix time of the start (seconds)."""
        return psutil.boot_time() + self.started

    def is_current(self, layout: StateLayout) -> bool:
        """Return whether this process runs now, on this machine and on this state directory."""
        here = (self.machine, self.boot) == (socket.gethostname(), _boot())
        if not here or not layout.lock_file.exists() or self.state != layout.identity():
            return False
        try:
            return abs(_started(self.pid) - self.started) < START_TOLERANCE_SECONDS
        except psutil.NoSuchProcess:
            return False


def publish_record(layout: StateLayout, name: str, host: str, port: int, *, tls: bool = False) -> RunRecord:
    """Write `run/<name>.json` with the address of this process."""
    durable.make_directory(layout.run)
    record = RunRecord(
        machine=socket.gethostname(),
        boot=_boot(),
        pid=os.getpid(),
        started=_started(os.getpid()),
        state=layout.identity(),
        host=host,
        port=port,
        tls=tls,
    )
    durable.write_record(layout.run_file(name), record)
    return record


def reachable(host: str) -> str:
    """Return an address to connect to: the loopback address for a server bound to every address."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


def base_url(host: str, port: int, *, tls: bool) -> str:
    """Return the URL at which a client on this machine reaches a server bound to `host`."""
    host = f"[{reachable(host)}]" if ":" in host else reachable(host)
    return f"{'https' if tls else 'http'}://{host}:{port}"


def read_run_record(path: Path) -> RunRecord | None:
    """Return the record in a file, stale or not; None if it is missing or cannot be read."""
    try:
        return RunRecord.model_validate_json(path.read_bytes())
    except (OSError, ValueError):
        return None


def current_record(layout: StateLayout, name: str) -> RunRecord | None:
    """Return the record in `run/<name>.json` if its process runs now on this state directory; None otherwise."""
    record = read_run_record(layout.run_file(name))
    return record if record is not None and record.is_current(layout) else None


def _started(pid: int) -> float:
    return psutil.Process(pid).create_time() - psutil.boot_time()


@cache
def _boot() -> str:
    """Return the kernel's boot id, or the time of the boot if there is no id."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return f"{psutil.boot_time():.0f}"
