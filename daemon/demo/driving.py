"""Run a real daemon and watch it from outside, as an operator would: for the demo, benchmarks and end-to-end tests."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import httpx
import yaml

from configs.settings import Settings
from daemon.control.client import ControlClient
from daemon.errors import DaemonError
from storage import durable
from storage.buffer.catalog import Catalog
from storage.layout import StateLayout
from storage.registry.registry import CheckpointRegistry
from storage.rounds.folder import RoundFolder, RoundStore
from storage.rounds.records import ENDED, Verdict

POLL_SECONDS = 0.2
STOP_SECONDS = 30.0
"""How long a daemon may take to stop before it is killed (seconds)."""
LOG_LINES = 15

Found = TypeVar("Found")
ShowRound = Callable[[float, float | None, str], None]
"""Hears steps done, steps in all, and facts about a round."""


class DriveFailed(DaemonError):
    """The driven daemon ended or refused; the message ends with its log."""

    code = "drive_failed"


class DriveTimeout(DriveFailed):
    """The daemon runs but did not do in time what was waited for."""

    code = "drive_timeout"


def clean_environment() -> dict[str, str]:
    """Return this environment without MFMD_ settings but the log level: a driven daemon uses its file only."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("MFMD_") or name.startswith("MFMD_LOG__")
    }


def read_plain_settings(config: Path) -> Settings:
    """Read the settings of a YAML file without the environment; relative paths are relative to the file."""
    return Settings.model_validate(
        yaml.safe_load(config.read_text(encoding="utf-8")), context={"base": config.resolve().parent}
    )


class DrivenDaemon:
    """`mfmd run` in a process of its own, asked through files and HTTP only."""

    def __init__(self, config: Path) -> None:
        self.config = config
        self.settings = read_plain_settings(config)
        self.layout = StateLayout(self.settings.state)
        self.registry = CheckpointRegistry(self.layout.checkpoints)
        self.rounds = RoundStore(self.layout.rounds)
        self.log = config.parent / "daemon.log"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Start."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self.stop()

    @property
    def pid(self) -> int | None:
        """Process id; None while it is not started."""
        return self._process.pid if self._process else None

    def _command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "daemon.cli", *arguments, "--config", str(self.config)]

    def start(self) -> None:
        """Start `mfmd run` in a session of its own, so that Ctrl-C reaches only this process."""
        self.settings.watch.folder.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command("run"),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=clean_environment(),
                cwd=self.config.parent,
                start_new_session=True,
            )

    def stop(self) -> int | None:
        """Send SIGTERM, then SIGKILL to the whole session if it does not end in time; return the exit status."""
        process, self._process = self._process, None
        if process is None:
            return None
        process.send_signal(signal.SIGTERM)
        try:
            return process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return process.wait()

    def kill(self) -> None:
        """Send SIGKILL to the daemon alone, as the out-of-memory killer does; its children live on."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def leave(self) -> int | None:
        """Let it run on after this process; return its process id."""
        pid, self._process = self.pid, None
        return pid

    def run_command(self, *arguments: str, timeout: float = 120.0) -> subprocess.CompletedProcess[str]:
        """Run another `mfmd` command on the same configuration, for example `rollback`."""
        return subprocess.run(
            self._command(*arguments),
            env=clean_environment(),
            cwd=self.config.parent,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def request_round(self) -> int:
        """Ask the control plane for a round now; return its number. Raises DriveFailed when it says no."""
        try:
            return ControlClient(self.layout).start_round()
        except DaemonError as error:
            raise DriveFailed(f"no round: {error}\n{self.tail()}") from error

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
            if self._process is not None and self._process.poll() is not None:
                raise DriveFailed(f"the daemon ended (status {self._process.returncode}) before {what}\n{self.tail()}")
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

    def follow_round(self, number: int, seconds: float, show: ShowRound = lambda *_: None) -> "RoundOver":
        """Wait for the end of a round and show its progress. Raises DriveTimeout and DriveFailed like `wait_for`."""
        return self.wait_for(lambda: self._round_over(number, show), f"the verdict of round {number}", seconds)

    def _round_over(self, number: int, show: ShowRound) -> "RoundOver | None":
        folder = self.round(number)
        if folder is None:
            return None
        progress, verdict, scores = folder.last_progress(), folder.verdict(), folder.scores()
        if progress is None:
            show(0, None, "accelerate launch")
        else:
            losses = ", ".join(f"{name} {value:.2f}" for name, value in progress.losses.items())
            show(progress.step, max(1, progress.steps), f"{progress.phase} {losses}")
        if verdict is None or folder.record().stage not in ENDED:
            return None
        return RoundOver(verdict, scores.seconds if scores else verdict.at - folder.spec().created)

    def tail(self) -> str:
        """Return the last lines of the daemon's log."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines() if self.log.exists() else []
        return "\n".join([f"last lines of {self.log}:", *lines[-LOG_LINES:]])

    def url(self, plane: str) -> str | None:
        """Return the base URL of the plane `serve` or `daemon` (control); None while it does not listen."""
        try:
            record = json.loads(self.layout.run_file(plane).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return f"http://{record['host']}:{record['port']}"

    def get(self, plane: str, path: str) -> Any | None:
        """JSON of `GET path` on a plane; None while it does not answer."""
        base = self.url(plane)
        if base is None:
            return None
        try:
            answer = httpx.get(base + path, timeout=5.0)
        except httpx.TransportError:
            return None
        return answer.json() if answer.is_success else None

    def served_version(self) -> int | None:
        """Version that the inference plane answers with now; None while it does not answer."""
        status = self.get("serve", "/v1/serving")
        return status["version"] if status and status["ready"] else None

    def committed(self) -> int:
        """Return the number of frames that were ever committed to the buffer."""
        if not self.layout.catalog.exists():
            return 0
        catalog = Catalog.open(self.layout.catalog, writable=False)
        try:
            return catalog.counts().committed_total
        finally:
            catalog.close()

    def round(self, number: int) -> RoundFolder | None:
        """Return the folder of a round; None before it started."""
        return self.rounds.folder(number) if number in self.rounds.numbers() else None


@dataclass(frozen=True, slots=True)
class RoundOver:
    """How a round ended."""

    verdict: Verdict
    """The gate's verdict."""
    seconds: float
    """Wall time of the round itself (seconds)."""

    @property
    def version(self) -> int | None:
        """The version that the candidate became; None when it was not accepted."""
        return self.verdict.version

    @property
    def sentence(self) -> str:
        """Verdict in one line."""
        votes = [check for check in self.verdict.checks if check.kind == "vote"]
        won = f", {sum(vote.passed for vote in votes)} of {len(votes)} votes" if votes else ""
        new = f" as version {self.version}" if self.version is not None else ""
        return f"{self.verdict.decision}{new}{won}, {self.seconds:.0f} s"
