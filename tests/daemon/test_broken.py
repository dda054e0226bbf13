"""Broken situations on a real daemon: what hangs, and what status, doctor, readiness and metrics say meanwhile."""

import os
import signal

from daemon.doctor import Level, examine_daemon
from daemon.runtime.activity import read_activity
from daemon.status.collect import collect_status
from tests.daemon.running import command


def test_planes_that_hang_are_told_within_15_s(start, config, layout, add_version, make_settings):
    """Stopped as by a debugger or a frozen container; restarted later (`test_supervisor.py`)."""
    add_version()
    file = config(serving={"enabled": True}, observe={"enabled": True})
    running = start(file)
    children = running.wait(lambda: _answering(layout), "both children to give a sign of life")
    for child in children:
        os.kill(child.pid, signal.SIGSTOP)
    running.wait(lambda: all(child.hangs for child in _children(layout)), "both to be found hanging", 15.0)
    check = command("status", "--check", "--config", str(file))
    assert check.returncode == 1 and check.stderr == "`mfmd serve` does not answer; `mfmd observe` does not answer\n"
    assert running.request("GET", "/healthz").status_code == 200, "the daemon itself lives"
    assert running.request("GET", "/readyz").json()["problems"] == check.stderr.strip().split("; ")
    assert 'mfmd_component_up{component="serve"} 0.0' in running.request("GET", "/metrics").text
    settings = make_settings(serving={"enabled": True})
    status, findings = collect_status(settings), examine_daemon(settings)
    assert (findings[0].name, findings[0].level, findings[0].detail) == ("daemon", Level.FAIL, check.stderr.strip())
    assert [item.detail for item in findings[1:]] == status.messages
    for child in children:
        told = f"`mfmd {child.name}` hangs: process {child.pid} does not answer; it is killed and restarted within"
        assert any(told in message for message in status.messages)
    assert not any("inference plane" in message for message in status.messages), "one line is enough"
    assert not status.plane.starting
    for child in children:
        os.kill(child.pid, signal.SIGCONT)
    running.wait(lambda: not any(child.hangs for child in _children(layout)), "both to answer again")
    assert running.stop()[0] == 0


def _children(layout):
    activity = read_activity(layout.run_file("activity"))
    return activity.children if activity else []


def _answering(layout):
    """Return the children once both are known to answer: the plane has no version that it can load."""
    children = _children(layout)
    return {child.problem for child in children} == {"has no version loaded", ""} and children
