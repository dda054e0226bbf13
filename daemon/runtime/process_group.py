"""A child process with everything it starts: signalled together, and over only when all of it is gone.

`accelerate launch` starts the round as a process of its own, so the pid that we started is not the one that works.
Each child leads a process group; the group is what is stopped and what is waited for.
"""

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

POLL_SECONDS = 0.05
PROC = Path("/proc")


class ProcessGroup:
    """A running command in its own session and process group."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        log: Path | None = None,
        nice: int = 0,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start `command`. Output is appended to `log`, or goes where ours goes. Raises OSError."""
        self.command = list(command)
        with log.open("ab") if log is not None else nullcontext() as output:
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=dict(environment) if environment is not None else None,
                start_new_session=True,
            )
        if nice:
            _be_nice(self._process.pid, nice)

    @property
    def pid(self) -> int:
        """Process id of the leader, and id of the group."""
        return self._process.pid

    def poll(self) -> int | None:
        """Exit status of the leader (negative: the signal that ended it); none while it runs."""
        return self._process.poll()

    def terminate(self) -> None:
        """SIGTERM to the whole group."""
        signal_group(self.pid, signal.SIGTERM)

    def wait(self, seconds: float) -> bool:
        """Wait until leader and group are gone; false when they are not after `seconds`."""
        deadline = time.monotonic() + seconds
        while self.poll() is None or group_alive(self.pid):
            if time.monotonic() >= deadline:
                return False
            time.sleep(POLL_SECONDS)
        return True

    def stop(self, grace_seconds: float) -> int:
        """SIGTERM, then SIGKILL for what is left after the grace period; returns the leader's exit status."""
        self.terminate()
        return self.finish(grace_seconds)

    def finish(self, grace_seconds: float) -> int:
        """Wait for the end of a group that was told to stop, then SIGKILL what is left; the leader's exit status."""
        if not self.wait(grace_seconds):
            self.kill()
        return self._process.wait()

    def kill(self) -> None:
        """SIGKILL to the whole group."""
        signal_group(self.pid, signal.SIGKILL)


def signal_group(group: int, number: signal.Signals) -> None:
    """Send a signal to every process of a group; it is no error when there is none left."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return  # on macOS a group of zombies answers EPERM


def group_alive(group: int) -> bool:
    """Whether a process of the group still runs. Zombies that nobody collects do not count."""
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return not PROC.is_dir() or any(True for _ in group_members(group))


def group_members(group: int) -> Iterator[int]:
    """Pids of the running processes of a group, zombies left out; empty where there is no /proc."""
    for folder in PROC.glob("[0-9]*"):
        try:
            # pid (comm) state ppid pgrp ...; the name may itself hold spaces and parentheses
            state, _, member_of = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()[:3]
        except (OSError, ValueError):
            continue  # it ended while we looked
        if int(member_of) == group and state not in ("Z", "X"):
            yield int(folder.name)


def command_line(pid: int) -> str:
    """The command line of a process, arguments separated by spaces; empty when there is no such process."""
    try:
        return (PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def _be_nice(pid: int, nice: int) -> None:
    try:
        os.setpriority(os.PRIO_PROCESS, pid, os.getpriority(os.PRIO_PROCESS, 0) + nice)
    except OSError:
        return  # it ended at once; its exit status tells more than this would
