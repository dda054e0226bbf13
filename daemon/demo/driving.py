"""Run a real daemon and watch it from outside, as an operator would: for the demo, benchmarks and end-to-end tests."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Self, TypeVar

import yaml

from configs.load import without_settings
from configs.settings import Settings
from daemon.errors import DaemonError
from daemon.runtime.process_group import PYTHON
from daemon.runtime.run_record import base_url, read_run_record
from daemon.status.plane_probe import probe_plane
from storage import durable
from storage.buffer.catalog import Catalog
from storage.layout import StateLayout
from storage.registry.registry import CheckpointRegistry
from storage.rounds.folder import RoundFolder, RoundStore
from storage.rounds.verdict import ENDED, Verdict

POLL_SECONDS = 0.2
STOP_SECONDS = 30.0
"""How long a daemon may take to stop before it is killed (seconds)."""
LOG_LINES = 15

Found = TypeVar("Found")
Show = Callable[[str], None]
"""Shows facts about what goes on."""


class DriveFailed(DaemonError):
    """The driven daemon ended or refused; the message ends with its log."""

    code = "drive_failed"


class DriveTimeout(DriveFailed):
    """The daemon runs but did not do in time what was waited for."""

    code = "drive_timeout"


def read_plain_settings(config: Path) -> Settings:
    """Read the settings of a YAML file without the environment; relative paths are relative to the file."""
    return Settings.model_validate(
        yaml.safe_load(config.read_text(encoding="utf-8")), context={"base": config.resolve().parent}
    )


def _environment() -> dict[str, str]:
    """Return this environment without settings but those of the log: a driven daemon uses its file only."""
    log = {name: value for name, value in os.environ.items() if name.startswith("MFMD_LOG__")}
    return without_settings(os.environ) | log


class DrivenDaemon:
    """`mfmd run` in a process of its own, asked through files and HTTP only."""

    def __init__(self, config: Path) -> None:
        self.config = config
        self.settings = read_plain_settings(config)
        self.layout = StateLayout(self.settings.state)
        self.registry = CheckpointRegistry(self.layout.checkpoints)
        self.rounds = RoundStore(self.layout.rounds)
        self.log = config.parent / "daemon.log"
        self.process: subprocess.Popen[bytes] | None = None
        """The daemon; None before the start."""

    def __enter__(self) -> Self:
        """Start."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self.stop()

    def _command(self, *arguments: str) -> list[str]:
        return [*PYTHON, "-m", "daemon.cli", *arguments, "--config", str(self.config)]

    def start(self) -> None:
        """Start `mfmd run` in a session of its own, so that Ctrl-C reaches only this process."""
        self.settings.watch.folder.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command("run"),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=_environment(),
                cwd=self.config.parent,
                start_new_session=True,
            )

    def stop(self) -> int | None:
        """Send SIGTERM, then SIGKILL to the whole session if it does not end in time; return the exit status."""
        process, self.process = self.process, None
        if process is None:
            return None
        process.send_signal(signal.SIGTERM)
        try:
            return process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return process.wait()

    def run_command(self, *arguments: str, timeout: float = 120.0) -> subprocess.CompletedProcess[str]:
        """Run another `mfmd` command on the same configuration, for example `rollback`."""
        return subprocess.run(
            self._command(*arguments),
            env=_environment(),
            cwd=self.config.parent,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def drop(self, images: Sequence[Path]) -> None:
        """Copy images into the drop folder, each under a temporary name first, then renamed."""
        for image in images:
            durable.copy_in(image, self.settings.watch.folder / image.name)

    def wait_for(self, condition: Callable[[], Found | None], what: str, seconds: float) -> Found:
        """Ask `condition` until it returns something; the daemon must live meanwhile.

        Raises DriveFailed when the daemon ended, DriveTimeout when `seconds` passed.
        """
        deadline = time.monotonic() + seconds
        while (found := condition()) is None:
            if self.process is not None and self.process.poll() is not None:
                raise DriveFailed(f"the daemon ended (status {self.process.returncode}) before {what}\n{self.tail()}")
            if time.monotonic() > deadline:
                raise DriveTimeout(f"waited {seconds:.0f} s for {what}\n{self.tail()}")
            time.sleep(POLL_SECONDS)
        return found

    def wait_until_serving(self, version: int, seconds: float) -> None:
        """Wait until the inference plane answers with `version`."""
        self.wait_for(lambda: self.served_version() == version or None, f"version {version} served", seconds)

    def wait_until_committed(self, frames: int, seconds: float) -> None:
        """Wait until the buffer has taken `frames` frames in all."""
        self.wait_for(lambda: self.committed() >= frames or None, f"{frames} frames committed", seconds)

    def follow_round(self, number: int, seconds: float, show: Show = lambda *_: None) -> Verdict:
        """Wait for the end of a round and show its progress. Raises DriveTimeout and DriveFailed like `wait_for`."""

        def verdict() -> Verdict | None:
            folder = self.round(number)
            if folder is None:
                return None
            progress = folder.last_progress()
            if progress is None:
                show("accelerate launch")
            else:
                losses = ", ".join(f"{name} {value:.2f}" for name, value in progress.losses.items())
                show(f"{progress.phase}, step {progress.step} of {progress.steps} {losses}")
            return folder.verdict() if folder.record().stage in ENDED else None

        return self.wait_for(verdict, f"the verdict of round {number}", seconds)

    def tail(self) -> str:
        """Return the last lines of the daemon's log."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines() if self.log.exists() else []
        return "\n".join([f"last lines of {self.log}:", *lines[-LOG_LINES:]])

    def url(self, plane: str) -> str | None:
        """Return the base URL of the plane `serve` or `daemon` (control); None while it does not listen."""
        record = read_run_record(self.layout.run_file(plane))
        return None if record is None else base_url(record.host, record.port, tls=record.tls)

    def served_version(self) -> int | None:
        """Version that the inference plane answers with now; None while it does not answer."""
        plane = probe_plane(read_run_record(self.layout.run_file("serve")))
        return plane.version if plane.ready else None

    def committed(self) -> int:
        """Return the number of frames that were ever committed to the buffer."""
        if not self.layout.catalog.exists():
            return 0
        with closing(Catalog.open(self.layout.catalog, writable=False)) as catalog:
            return catalog.counts().committed_total

    def round(self, number: int) -> RoundFolder | None:
        """Return the folder of a round; None before it started."""
        return self.rounds.folder(number) if number in self.rounds.numbers() else None


def describe(verdict: Verdict) -> str:
    """Return a verdict in one line."""
    votes = [check.passed for check in verdict.checks if check.kind == "vote"]
    won = f", {sum(votes)} of {len(votes)} votes" if votes else ""
    new = f" as version {verdict.version}" if verdict.version is not None else ""
    return f"{verdict.decision}{new}{won}"
