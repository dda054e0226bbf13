"""Child process that exports a version for a mirror by `mfmd export`, because the control plane holds no tensors."""

from pathlib import Path

from daemon.errors import PublishFailed
from daemon.runtime.process_group import PYTHON, ProcessGroup, last_line
from storage.layout import StateLayout
from storage.registry.mirrors import Mirror

EXPORT_SECONDS = 3600.0
"""Longest export (seconds); a longer one has failed."""
NICE = 10
"""Added to the daemon's nice value, so that an export yields to everything else."""
GRACE_SECONDS = 2.0


class MirrorExport:
    """Exports for one mirror, one at a time. Used by one thread."""

    def __init__(self, mirror: Mirror, config: Path, layout: StateLayout) -> None:
        self._mirror, self._config, self._layout = mirror, config, layout
        self._log = layout.run / f"publish-{mirror.name}.log"
        self._group: ProcessGroup | None = None
        self._deadline = 0.0

    @property
    def running(self) -> bool:
        """Return whether an export was started whose end was not yet read."""
        return self._group is not None

    def start(self, version: int, now: float) -> None:
        """Start an export. Raises StorageError or OSError when there is no room for the copy."""
        self._mirror.prepare(version)
        self._log.unlink(missing_ok=True)
        command = [*PYTHON, "-m", "daemon.cli", "export", str(version), "--format", self._mirror.format]
        command += ["--out", str(self._mirror.place(version)), "--config", str(self._config)]
        self._group = ProcessGroup(self._layout, command, log=self._log, nice=NICE)
        self._deadline = now + EXPORT_SECONDS

    def finished(self, now: float) -> bool:
        """Return whether it ended well; False while it runs. Raises PublishFailed when it failed."""
        assert self._group is not None
        status = self._group.poll()
        if status is None and now < self._deadline:
            return False
        self.stop()
        if status is None:
            raise PublishFailed(f"the export did not end within {EXPORT_SECONDS:.0f} s; see {self._log}")
        if status != 0:
            raise PublishFailed(f"the export ended with status {status}: {last_line(self._log)}")
        return True

    def stop(self) -> None:
        """Stop it, with its child processes."""
        if self._group is not None:
            self._group.stop(GRACE_SECONDS)
            self._group = None
