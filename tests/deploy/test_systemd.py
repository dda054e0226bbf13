"""The unit of systemd is hardened; the daemon reports to systemd: ready, at work, reloading, stopping."""

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from daemon.runtime.process_group import children_of
from daemon.runtime.service_manager import START_MICROSECONDS, ServiceManager
from storage.layout import StateLayout
from storage.registry.registry import CheckpointRegistry
from tests.daemon.conftest import add_small_version, small_settings, write_config
from tests.daemon.running import Running

UNIT = Path(__file__).parents[2] / "deploy" / "systemd" / "mfmd.service"
ANALYZE = shutil.which("systemd-analyze")
HANGS = """
import sys, time, functools, pathlib
from daemon import parts
from daemon.cli import main
hang = pathlib.Path(sys.argv.pop(1))

def worker(name, step, meter, **options):
    def hanging():
        while hang.exists():
            time.sleep(0.05)
        return step()
    short = {"stuck_seconds": 1.5} if name == "publish" else {}
    return Worker(name, hanging if short else step, meter, **options, **short)

Worker, parts.Worker = parts.Worker, worker
main()
"""
"""`mfmd`, but for its loop `publish`: it hangs while a file exists, and counts as stuck early."""


@pytest.mark.skipif(ANALYZE is None, reason="systemd-analyze (of the Debian package systemd) is not installed")
@pytest.mark.parametrize("check", [("verify",), ("security", "--offline=true", "--threshold=30", "--no-pager")])
def test_systemd_accepts_the_unit_and_finds_it_hardened(check):
    done = subprocess.run([ANALYZE, *check, str(UNIT)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    assert check[0] == "security" or not done.stdout + done.stderr


def test_the_unit_leaves_what_the_daemon_needs():
    lines = UNIT.read_text().splitlines()
    set_here = {line.partition("=")[0]: line.partition("=")[2] for line in lines if re.match(r"\w+=", line)}
    assert set_here["Type"] == "notify"
    assert int(set_here["TimeoutStopSec"]) > 45, "the inference plane is given 38 s for requests in flight"
    assert not {"MemoryDenyWriteExecute", "ProcSubset", "PrivateDevices"} & set(set_here)


class Manager:
    """The datagram socket of a manager."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self.socket.settimeout(60.0)
        self.address = address
        self.seen: list[str] = []

    def until(self, words: str) -> list[str]:
        """Messages up to the first that holds `words`, it included."""
        start = len(self.seen)
        while not self.seen[start:] or words not in self.seen[-1]:
            self.seen.append(self.socket.recv(4096).decode())
        return self.seen[start:]


@pytest.fixture
def manager(request, tmp_path):
    """Listen at a file, or at the abstract name that a test is given."""
    made = Manager(getattr(request, "param", str(tmp_path / "notify")))
    yield made
    made.socket.close()


def test_the_daemon_tells_systemd_how_it_is(tmp_path, manager):
    """A real process: a child that starts, a reload, a loop that hangs and moves again, a stop."""
    (tmp_path / "drop").mkdir()
    layout = StateLayout(tmp_path / "state")
    layout.create()
    add_small_version(CheckpointRegistry(layout.checkpoints))
    hang = tmp_path / "hang"
    config = write_config(tmp_path / "mfmd.yaml", small_settings(tmp_path, observe={"enabled": True}))
    environment = os.environ | {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "60000000"}
    running = Running(config, layout, ready=False, program=["-c", HANGS, str(hang)], env=environment)
    try:
        before = manager.until("READY=1")
        assert before[:2] == ["STATUS=Not ready: `mfmd observe` starts", "EXTEND_TIMEOUT_USEC=60000000"]
        (child,) = children_of(layout)
        assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC"} & set(child.environ())
        assert manager.until("WATCHDOG=1")
        earliest = time.monotonic_ns() // 1000
        running.process.send_signal(signal.SIGHUP)
        (reloading,) = manager.until("RELOADING=1")[-1:]
        assert int(re.search(r"^MONOTONIC_USEC=(\d+)$", reloading, flags=re.MULTILINE).group(1)) >= earliest
        manager.until("READY=1")
        hang.touch()
        manager.until("Not ready: publish: no step finished for")
        steps = [*manager.until("publish: no step"), *manager.until("publish: no step")]
        assert "WATCHDOG=1" not in steps, steps
        hang.unlink()
        manager.until("STATUS=Ready")
        manager.until("WATCHDOG=1")
        assert running.stop()[0] == 0
        manager.until("STOPPING=1")
        assert sum(message == "READY=1" for message in manager.seen) == 2, "once, and after the reload"
    finally:
        running.process.kill()
        running.process.wait()


@pytest.mark.parametrize("manager", [f"@mfmd-test-{os.getpid()}"], indirect=True, ids=["abstract"])
def test_a_socket_without_a_file_and_the_watchdog_of_another_process(monkeypatch, manager):
    for name, value in {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "1", "WATCHDOG_PID": "1"}.items():
        monkeypatch.setenv(name, value)
    service = ServiceManager()
    service.step(["ingest"], ["ingest"])
    service.step([], ["`mfmd serve` starts"])
    service.step([], [])
    service.stopping()
    assert manager.until("STOPPING=1")[:-1] == [
        "STATUS=Not ready: ingest",
        "STATUS=Not ready: `mfmd serve` starts",
        f"EXTEND_TIMEOUT_USEC={START_MICROSECONDS}",
        "STATUS=Ready",
        "READY=1",
    ]
    assert "NOTIFY_SOCKET" not in os.environ
    manager.socket.close()
    service.stopping()  # the manager is gone
