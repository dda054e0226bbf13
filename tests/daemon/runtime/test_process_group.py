"""Process groups: stopped as a whole, with what left them, and found again after a daemon was killed."""

import os
import signal
import subprocess
import time

import psutil
import pytest

from daemon.errors import DaemonError
from daemon.runtime.process_group import ProcessGroup, children_of, end_leftovers, group_alive
from storage.layout import StateLayout
from tests.daemon.runtime.programs import PARENT, SLEEP, STUBBORN, python


def test_a_group_that_ignores_sigterm_is_killed_after_the_grace_period(layout, tmp_path, wait_until):
    log = tmp_path / "log"
    group = ProcessGroup(layout, python(STUBBORN), log=log)
    wait_until(lambda: "ready" in log.read_text())
    started = time.monotonic()
    assert group.stop(0.3) == -signal.SIGKILL
    assert 0.3 <= time.monotonic() - started < 5
    assert not group_alive(group.pid)


def test_what_a_leader_leaves_behind_is_stopped_with_it(layout, tmp_path, wait_until):
    group = ProcessGroup(layout, python(PARENT, SLEEP, "0"), log=tmp_path / "log")
    wait_until(lambda: group.poll() == 0)
    assert group_alive(group.pid), "the grandchild runs on"
    group.stop(5.0)
    wait_until(lambda: not group_alive(group.pid))


@pytest.mark.parametrize("launcher_seconds", ["600", "0"])
def test_what_has_a_session_of_its_own_is_stopped_too(layout, tmp_path, wait_until, launcher_seconds):
    """So starts torchrun the processes of a round. A launcher that is killed stops none of them."""
    log = tmp_path / "log"
    worker = "print('ready', flush=True); import time; time.sleep(600)"
    launcher = PARENT.replace("sys.argv[1]])", "sys.argv[1]], start_new_session=True)")
    group = ProcessGroup(layout, python(launcher, worker, launcher_seconds), log=log)
    wait_until(lambda: "ready" in log.read_text() and (launcher_seconds != "0" or group.poll() == 0))
    assert not group.wait(0.1)
    assert group.finish(0.0) == (0 if launcher_seconds == "0" else -signal.SIGKILL)
    assert group.wait(10.0)
    assert not any(children_of(layout))


def test_a_group_is_waited_for_as_a_whole(layout, tmp_path, wait_until):
    """The launcher dies of SIGTERM at once; the round that it started finishes its step first."""
    slow = (
        "import signal, sys, time\n"
        "signal.signal(15, lambda *_: (time.sleep(0.4), print('step done', flush=True), sys.exit(0)))\n"
        "print('ready', flush=True)\n"
        "time.sleep(600)"
    )
    log = tmp_path / "log"
    group = ProcessGroup(layout, python(PARENT, slow, "600"), log=log)
    wait_until(lambda: "ready" in log.read_text())
    group.stop(10.0)
    assert not group_alive(group.pid)
    assert "step done" in log.read_text()


def test_niceness_is_handed_down(layout, tmp_path, wait_until):
    log = tmp_path / "log"
    group = ProcessGroup(layout, python("import os, time; time.sleep(0.2); print(os.nice(0))"), log=log, nice=3)
    wait_until(lambda: group.poll() is not None)
    assert int(log.read_text()) == min(19, os.nice(0) + 3)


def test_leftovers_of_a_killed_daemon_are_ended_with_what_they_started(layout, tmp_path, wait_until):
    group = ProcessGroup(layout, python(PARENT, SLEEP, "600"), log=tmp_path / "log")
    wait_until(lambda: any(children_of(layout)))  # the kernel shows no environment for a moment after exec
    assert group.pid in end_leftovers(layout, 5.0)
    assert not group_alive(group.pid)
    assert not any(children_of(layout))
    group.stop(0.1)


def test_a_leftover_that_ignores_sigterm_is_killed(layout, tmp_path, wait_until):
    log = tmp_path / "log"
    group = ProcessGroup(layout, python(STUBBORN), log=log)
    wait_until(lambda: "ready" in log.read_text())
    assert end_leftovers(layout, 0.1) == [group.pid]
    wait_until(lambda: group.poll() == -signal.SIGKILL)


def test_a_copy_of_the_state_directory_has_no_leftovers_and_a_moved_one_has(layout, tmp_path):
    group = ProcessGroup(layout, python(SLEEP), log=tmp_path / "log")
    copy = StateLayout(tmp_path / "copy")
    subprocess.run(["cp", "-a", layout.root, copy.root], check=True)
    assert end_leftovers(copy, 1.0) == []
    assert group.poll() is None
    layout.root.rename(tmp_path / "moved")
    assert end_leftovers(StateLayout(tmp_path / "moved"), 5.0) == [group.pid]
    group.finish(1.0)


def test_the_log_of_a_child_is_appended(layout, tmp_path, wait_until):
    log = tmp_path / "log"
    for word in ("one", "two"):
        group = ProcessGroup(layout, python(f"print('{word}')"), log=log)
        wait_until(lambda group=group: group.poll() is not None)
    assert log.read_text().split() == ["one", "two"]


def test_a_daemon_that_cannot_see_processes_says_what_to_mount(layout, tmp_path, monkeypatch):
    """As in a chroot without /proc, or under systemd with ProcSubset=pid."""
    layout.create()
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path))
    with pytest.raises(DaemonError, match="mount all of /proc"):
        end_leftovers(layout, 0.1)
