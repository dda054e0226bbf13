"""A child process and all processes that it starts: signalled together, ended when all have ended.

Each child leads a process group, as `accelerate launch` works in another process than the one started; with several
processes it gives each a session of its own. A child has two marks in its environment from its first moment on: one of
its group, and the identity of its state directory (`StateLayout.identity`), by which the next daemon finds leftovers.
"""

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path

import psutil

from configs.load import without_settings
from daemon.errors import DaemonError
from daemon.runtime.logs import get_logger
from storage.durable.record import lines_of
from storage.layout import WORKS_FOR, StateLayout

PYTHON = (sys.executable, "-P")
"""How every child starts: with this interpreter, which takes no module from the directory that it starts in."""
POLL_SECONDS = 0.05
KILLED_SECONDS = 5.0
"""How long a killed group is waited for (seconds); its processes end a moment later unless a disk holds them."""
MEMBER = "_MFMD_MEMBER"
"""Environment variable with a mark that the processes of one group have, those in sessions of their own too."""
LOG_TAIL_BYTES = 4096
ENDED = (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)

log = get_logger(__name__)


def last_line(log: Path) -> str:
    """Return the last line of a command's output that holds text; `(none)` without one."""
    lines = (line.decode(errors="replace").strip() for line in reversed(lines_of(log, LOG_TAIL_BYTES)))
    return next(filter(None, lines), "(none)")


class ProcessGroup:
    """A running command in its own session and process group."""

    def __init__(
        self,
        layout: StateLayout,
        command: Sequence[str],
        *,
        log: Path | None = None,
        nice: int = 0,
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        """Start `command` for the state directory of `layout`, under its lock.

        Output is appended to `log`, or inherits stdout and stderr. The command gets no variable that sets a setting,
        because it gets the settings in force. Raises OSError.
        """
        self.command, self._mark = list(command), secrets.token_hex(8)
        with log.open("ab") if log is not None else nullcontext() as output:
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**without_settings(environment), WORKS_FOR: layout.identity(), MEMBER: self._mark},
                start_new_session=True,
            )
        if nice:
            _be_nice(self._process.pid, nice)

    @property
    def pid(self) -> int:
        """Return the process id of the leader, which is the id of the group."""
        return self._process.pid

    def poll(self) -> int | None:
        """Return the exit status of the leader (negative: the signal that ended it); None while it runs."""
        return self._process.poll()

    def terminate(self) -> None:
        """Send SIGTERM to the whole group."""
        self._signal(signal.SIGTERM)

    def wait(self, seconds: float) -> bool:
        """Wait until leader and group have ended; return False if they have not after `seconds`."""
        deadline = time.monotonic() + seconds
        while self.poll() is None or any(self._members()):
            if time.monotonic() >= deadline:
                return False
            time.sleep(POLL_SECONDS)
        return True

    def stop(self, grace_seconds: float) -> int:
        """Send SIGTERM, then SIGKILL after the grace period; return the leader's exit status."""
        self.terminate()
        return self.finish(grace_seconds)

    def finish(self, grace_seconds: float) -> int:
        """Wait for a terminated group, then send SIGKILL to the rest; return the leader's exit status."""
        if not self.wait(grace_seconds):
            self.kill()
            self.wait(KILLED_SECONDS)
        return self._process.wait()

    def kill(self) -> None:
        """Send SIGKILL to the whole group."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError, PermissionError):  # an empty group is no error
            os.killpg(self.pid, number)
        if number is signal.SIGKILL or self.poll() is not None:  # a launcher that lives passes SIGTERM on
            for process in self._members():
                with suppress(psutil.Error):
                    process.send_signal(number)

    def _members(self) -> Iterator[psutil.Process]:
        """Yield the running processes of the group; zombies are not among them."""
        for process in psutil.process_iter():
            if _is_member(process, self.pid) or _has(process, MEMBER, self._mark):
                yield process


def group_alive(group: int) -> bool:
    """Return whether a process of the group still runs. Zombies do not count."""
    return any(_is_member(process, group) for process in psutil.process_iter())


def children_of(layout: StateLayout) -> Iterator[psutil.Process]:
    """Yield the running processes that a daemon on this state directory started, directly or not."""
    identity = layout.identity()
    return (process for process in psutil.process_iter() if _has(process, WORKS_FOR, identity))


def end_leftovers(layout: StateLayout, grace_seconds: float) -> list[int]:
    """End the children of a daemon that did not stop cleanly; return their pids. Call only under the state lock.

    Raises DaemonError when processes cannot be seen.
    """
    if sys.platform == "linux" and not Path(psutil.PROCFS_PATH, "stat").exists():
        raise DaemonError(
            f"{psutil.PROCFS_PATH}/stat is missing, and mfmd finds its processes there; mount all of /proc "
            "(systemd: no ProcSubset=pid)"
        )
    led = {process.pid for process in children_of(layout)}
    found, empty, deadline = list[psutil.Process](), 0, time.monotonic() + grace_seconds
    while empty < 2 and time.monotonic() < deadline:  # one look may miss what a process started before it ended
        left = list(_leftovers(layout, led))
        for process in left:
            if process not in found:
                _tell_to_end(process)
                found.append(process)
        empty = 0 if left else empty + 1
        time.sleep(POLL_SECONDS if left else 0.0)
    for process in _leftovers(layout, led):
        with suppress(psutil.NoSuchProcess):
            process.kill()
    deadline = time.monotonic() + KILLED_SECONDS
    while not all(map(_has_ended, found)) and time.monotonic() < deadline:  # its environment goes before it does
        time.sleep(POLL_SECONDS)
    return [process.pid for process in found]


def _tell_to_end(process: psutil.Process) -> None:
    with suppress(psutil.NoSuchProcess):
        log.warning("leftover_child_ended", pid=process.pid, command=" ".join(process.cmdline()))
        process.terminate()


def _leftovers(layout: StateLayout, led: set[int]) -> Iterator[psutil.Process]:
    """Yield children, and members of the groups `led`: the kernel shows no environment for a moment after exec."""
    identity = layout.identity()
    for process in psutil.process_iter():
        if _has(process, WORKS_FOR, identity) or any(_is_member(process, group) for group in led):
            yield process


def _has_ended(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return process.status() in ENDED
    return True


def _is_member(process: psutil.Process, group: int) -> bool:
    with suppress(ProcessLookupError, PermissionError, psutil.Error):
        return os.getpgid(process.pid) == group and process.status() not in ENDED
    return False


def _has(process: psutil.Process, name: str, value: str) -> bool:
    """Return whether its environment has a variable. False if another user's environment cannot be read."""
    with suppress(psutil.Error, OSError):
        return process.environ().get(name) == value
    return False


def _be_nice(pid: int, nice: int) -> None:
    with suppress(OSError):  # it ended at once; its exit status tells more than this would
        os.setpriority(os.PRIO_PROCESS, pid, os.getpriority(os.PRIO_PROCESS, 0) + nice)
