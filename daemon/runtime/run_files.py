"""`run/<name>.json`: where a living process answers. Removed at a clean exit, stale after a kill."""

import os
import time
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from storage import durable


class RunFile(BaseModel):
    """Address of a process."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    pid: int
    """Process id."""
    host: str
    """Address it is bound to."""
    port: int
    """TCP port; the one that the system chose when the configured one is 0."""
    started: float
    """Unix time of the start (seconds)."""
    certificate: str | None = None
    """Hex SHA-256 of the TLS certificate that it shows; none: it speaks plain HTTP."""

    @property
    def reachable_host(self) -> str:
        """An address to connect to: a server bound to every address is asked on the loopback one."""
        return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)


def read_run_file(path: Path) -> RunFile | None:
    """The file's content; none when there is no such file or it cannot be read."""
    try:
        return RunFile.model_validate_json(path.read_bytes())
    except (OSError, ValueError):
        return None


def write_run_file(path: Path, host: str, port: int, certificate: str | None = None) -> None:
    """Say that this process answers there, and with which TLS certificate if any (hex SHA-256)."""
    started = time.time()
    record = RunFile(pid=os.getpid(), host=host, port=port, started=started, certificate=certificate)
    durable.write_record(path, record)
