"""`mfmd run` as a process of its own, for tests."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import httpx

from daemon.control.server import ControlServer
from daemon.net.local import listen_locally

ROOT = Path(__file__).parents[2]


@contextmanager
def serving_locally(app, layout):
    """A control application on the Unix socket of a state directory."""
    with listen_locally(layout.socket) as listener:
        server = ControlServer(app, listener)
        server.start()
        try:
            yield
        finally:
            server.stop()


class Running:
    """`mfmd run` on a configuration file."""

    def __init__(self, config: Path, layout, *, ready: bool = True, **options) -> None:
        """`options` are those of Popen: another directory, another environment; `program` replaces `-m daemon.cli`."""
        environment = options.pop("env", os.environ) | {"PYTHONPATH": str(ROOT)}  # and not the current directory
        program = options.pop("program", ["-m", "daemon.cli"])
        self.config, self.layout = config, layout
        self.log = config.parent / "daemon.log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-P", *program, "run", "--config", str(config)],
                env=environment,
                **{"cwd": ROOT, "stdin": subprocess.DEVNULL, "stdout": log, "stderr": log, "start_new_session": True}
                | options,
            )
        if ready:
            self.wait(lambda: layout.run_file("daemon").exists(), "the daemon to be ready")

    def wait(self, condition, what: str, seconds: float = 60.0):
        deadline = time.monotonic() + seconds
        while not (found := condition()):
            assert self.process.poll() is None, f"ended before {what}:\n{self.log.read_text()[-3000:]}"
            assert time.monotonic() < deadline, f"waited for {what}:\n{self.log.read_text()[-3000:]}"
            time.sleep(0.05)
        return found

    def request(self, method: str, path: str) -> httpx.Response:
        address = json.loads(self.layout.run_file("daemon").read_text())
        token = self.layout.token_file.read_text().strip()
        return httpx.request(
            method,
            f"http://127.0.0.1:{address['port']}{path}",
            headers={"Authorization": f"Bearer {token}"},
            trust_env=False,
            timeout=30,
        )

    def stop(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, float]:
        """Exit status, and how long it took (seconds)."""
        started = time.monotonic()
        self.process.send_signal(number)
        return self.process.wait(60), time.monotonic() - started


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run another `mfmd` command."""
    return subprocess.run(
        [sys.executable, "-P", "-m", "daemon.cli", *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
