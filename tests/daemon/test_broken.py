"""Broken situations on one real daemon: its catalog is damaged from the start, then its children hang.

Its version is a few numbers that no plane can load, so the plane answers without a version.
"""

import os
import signal
from collections import Counter

import pytest

from daemon.doctor import Level, examine_daemon
from daemon.doctor.disk import examine_state
from daemon.runtime.activity import Activity, IngestActivity, read_activity
from daemon.status.collect import collect_status
from storage.buffer.frames import FrameBuffer
from storage.layout import StateLayout
from storage.registry.registry import CheckpointRegistry
from tests.daemon.conftest import add_small_version, small_settings, write_config
from tests.daemon.running import Running, command

SECTIONS = {"serving": {"enabled": True}, "observe": {"enabled": True}}


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """Run the daemon with the inference plane and the observer until the end of this module."""
    folder = tmp_path_factory.mktemp("broken")
    layout = StateLayout(folder / "state")
    layout.create()
    (folder / "drop").mkdir()
    (folder / "drop" / "a.png").write_bytes(b"rubbish")
    add_small_version(CheckpointRegistry(layout.checkpoints))
    settings = small_settings(folder, **SECTIONS)
    FrameBuffer.open(layout, settings.buffer, writable=True).close()
    layout.catalog.write_bytes(b"not sqlite at all " * 1000)
    daemon = Running(write_config(folder / "mfmd.yaml", settings), layout)
    daemon.wait(lambda: _answering(layout), "both children to answer")
    yield daemon
    assert daemon.stop()[0] == 0


@pytest.fixture
def settings(running):
    return small_settings(running.layout.root.parent, **SECTIONS)


@pytest.mark.nightly
def test_a_damaged_catalog_lets_ingest_and_rounds_wait_and_the_plane_serve(running, settings):
    layout = running.layout
    running.wait(lambda: len(read_activity(layout.run_file("activity")).errors) == 2, "what waits to be known")
    status = collect_status(settings)
    (told,) = [message for message in status.messages if "catalog.sqlite" in message]
    assert told.startswith(f"ingest, rounds wait: {layout.catalog}: file is not a database; stop `mfmd run` and")
    assert status.buffer_damaged and status.ingest.state == "paused" and status.plane.up
    metrics = running.request("GET", "/metrics").text
    assert 'mfmd_state_readable{part="buffer"} 0.0' in metrics and "mfmd_ingest_paused 1.0" in metrics
    refused = running.request("POST", "/v1/rounds")
    assert refused.status_code >= 400 and str(layout.catalog) in refused.json()["message"]
    found = {item.name: item for item in examine_state(settings)}["catalog"]
    assert found.level == Level.FAIL and "from a backup" in found.remedy
    lines = Counter(line.partition('"event": ')[2].split(",")[0] for line in running.log.read_text().splitlines())
    assert lines['"component_failed"'] == 2 and lines['"observer_waits"'] == lines['"buffer_unusable"'] == 1
    assert str(layout.catalog) in running.log.read_text()


def test_status_is_what_the_daemon_says_and_not_what_it_last_wrote(running, settings):
    """As on a full disk, where it can write nothing."""
    file = running.layout.run_file("activity")
    written = file.read_bytes()
    file.write_text(Activity(ingest=IngestActivity(state="running")).model_dump_json())
    status = collect_status(settings)
    assert status.ingest.state == "paused" and status.children
    file.write_bytes(written)


@pytest.mark.nightly
def test_children_that_hang_are_told_within_15_s(running, settings):
    """Stopped as by a debugger or a frozen container; restarted later (`test_supervisor.py`)."""
    layout = running.layout
    children = _answering(layout)
    for child in children:
        os.kill(child.pid, signal.SIGSTOP)
    running.wait(lambda: all(child.hangs for child in _children(layout)), "both to be found hanging", 15.0)
    check = command("status", "--check", "--config", str(running.config))
    assert check.returncode == 1 and check.stderr == "`mfmd serve` does not answer; `mfmd observe` does not answer\n"
    assert running.request("GET", "/healthz").status_code == 200, "the daemon itself lives"
    assert running.request("GET", "/readyz").json()["problems"] == check.stderr.strip().split("; ")
    assert 'mfmd_component_up{component="serve"} 0.0' in running.request("GET", "/metrics").text
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
    running.wait(lambda: _answering(layout), "both to answer again")


def _children(layout):
    activity = read_activity(layout.run_file("activity"))
    return activity.children if activity else []


def _answering(layout):
    """Return the children once both are known to answer: the plane has no version that it can load."""
    children = _children(layout)
    return {child.problem for child in children} == {"has no version loaded", ""} and children
