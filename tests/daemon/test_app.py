"""The daemon as a process: starts fast, keeps others out, survives a kill, stops cleanly, also in mid-round."""

import gc
import json
import os
import re
import signal
import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import pytest

from configs.errors import ConfigError
from configs.load import load_settings
from daemon import app
from daemon import parts as parts_module
from daemon.app import run
from daemon.cli import main
from daemon.doctor.disk import examine_state
from daemon.runtime.in_force import SettingsInForce
from daemon.runtime.process_group import children_of, group_alive
from daemon.status.collect import collect_status
from storage.buffer.catalog import Catalog
from storage.buffer.frames import FrameBuffer
from storage.errors import BufferMismatch, NoCheckpoint
from storage.rounds.folder import RoundStore
from tests.daemon.running import Running
from tests.video_files import make_video


def test_from_start_to_clean_stop(start, config, layout, drop, write_image, add_version, make_settings):
    """Frames come in, a second daemon is refused, a killed child comes back, and nothing is left at the end."""
    add_version()
    running = start(config(observe={"enabled": True}, videos={"enabled": True}))
    (drop / "bad.png").write_bytes(b"rubbish")
    for number in range(5):
        write_image(drop / f"{number}.png", number)
    (drop / "a.mp4").write_bytes(make_video(12))
    running.wait(lambda: _status(make_settings).buffer.frames == 7, "five images and two frames of a video")
    running.wait(lambda: _status(make_settings).watch.state == "watching", "the activity file")
    _check_a_second_daemon_is_refused(start, config, layout, running)
    observer = _group(layout, "observe")
    os.killpg(observer, signal.SIGKILL)
    running.wait(lambda: _status(make_settings).children[0].restarts == 1, "the observer's restart")
    observer = _group(layout, "observe")
    assert running.request("GET", "/healthz").status_code == 200
    restarted = [
        "`mfmd observe` was restarted after status -9"
    ]  # until it has settled; before its first beat it starts
    running.wait(lambda: running.request("GET", "/readyz").json()["problems"] == restarted, "its first beat")
    assert 'mfmd_component_up{component="observe"} 0.0' in running.request("GET", "/metrics").text
    running.wait(lambda: running.request("GET", "/readyz").status_code == 200, "an observer that has settled", 30)
    assert 'mfmd_ingest_rejected_total{reason="not_an_image"} 1.0' in running.request("GET", "/metrics").text
    assert re.search(r"mfmd_self_check_last_timestamp_seconds 1\.\d+e\+09", running.request("GET", "/metrics").text)
    assert "libtorch" not in Path(f"/proc/{running.process.pid}/maps").read_text(), "no tensors in the control plane"
    status, seconds = running.stop(signal.SIGINT)
    assert status == 0
    assert seconds < 15
    assert not group_alive(observer)
    assert not layout.locked()
    assert sorted(path.name for path in layout.run.iterdir()) == ["control.token", "daemon.lock"]
    events = [json.loads(line)["event"] for line in running.log.read_text().splitlines() if line.startswith("{")]
    assert "daemon_stopped" in events
    assert "Traceback" not in running.log.read_text()


def _check_a_second_daemon_is_refused(start, config, layout, first: Running) -> None:
    second = start(config(), ready=False)
    assert second.process.wait(60) == 4
    (message,) = [line for line in second.log.read_text().splitlines() if line.startswith("error[already_running]")]
    assert str(layout.root) in message
    assert str(first.process.pid) in message
    assert first.request("GET", "/healthz").status_code == 200


@pytest.mark.parametrize(
    ("sections", "error", "words"),
    [
        ({}, NoCheckpoint, "mfmd import PATH"),
        ({"source": {"images": "/i", "labels": "/l"}}, NoCheckpoint, "`mfmd pretrain` trains one"),
        ({"control": {"host": "0.0.0.0"}}, ConfigError, r"control\.host"),
    ],
)
def test_what_cannot_start_says_what_to_do(make_settings, tmp_path, layout, sections, error, words, add_version):
    if "control" in sections:
        add_version()
    with pytest.raises(error, match=words):
        run(make_settings(**sections), tmp_path / "mfmd.yaml")
    assert not layout.locked()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_the_heap_is_frozen_before_the_daemon_answers(make_settings, tmp_path, add_version, monkeypatch):
    """A collection of all that the libraries brought would hold the event loop for 80 ms."""
    frozen = []
    monkeypatch.setattr(app, "_wait", lambda *_: frozen.append(gc.get_freeze_count()) or 0)
    add_version()
    try:
        assert run(make_settings(), tmp_path / "mfmd.yaml") == 0
    finally:
        gc.unfreeze()
    assert frozen[0] > 10_000


def test_a_start_that_fails_leaves_no_settings_behind(make_settings, tmp_path, layout, add_version):
    add_version()
    FrameBuffer.open(layout, make_settings().buffer, writable=True).close()
    with pytest.raises(BufferMismatch):
        run(make_settings(buffer={"height": 64}), tmp_path / "mfmd.yaml")
    assert sorted(path.name for path in layout.run.iterdir()) == ["control.token", "daemon.lock"]


def test_a_catalog_of_a_newer_mfmd_keeps_the_daemon_from_nothing_but_the_buffer(make_settings, layout, tmp_path):
    FrameBuffer.open(layout, make_settings().buffer, writable=True).close()
    with closing(sqlite3.connect(layout.catalog)) as connection:
        connection.execute("PRAGMA user_version = 99")
    with layout.lock():
        parts = parts_module.DaemonParts(SettingsInForce(make_settings(), tmp_path / "mfmd.yaml"), "token")
        try:
            assert b'mfmd_state_readable{part="buffer"} 0.0' in parts.metrics.exposition("")[0]
        finally:
            parts.stop()
    (found,) = [item for item in examine_state(make_settings()) if item.name == "catalog"]
    assert "schema 99" in found.detail and found.remedy == "use the mfmd version that wrote it"


def test_a_reload_during_the_start_reaches_every_part(config, layout, monkeypatch):
    path = config()
    in_force = SettingsInForce(load_settings(path), path)
    recover = parts_module.recover

    def interrupted_recover(*arguments):
        config(buffer={"reserve_bytes": 12345})
        assert in_force.reload().applied == ["buffer.reserve_bytes"]
        return recover(*arguments)

    monkeypatch.setattr(parts_module, "recover", interrupted_recover)
    layout.create()
    with layout.lock():
        parts = parts_module.DaemonParts(in_force, "token")
        try:
            assert b"mfmd_disk_reserve_bytes 12345.0" in parts.metrics.exposition("")[0]
        finally:
            parts.stop()


def test_the_daemon_stops_where_the_system_gives_it_no_more_threads(make_settings, layout, tmp_path, monkeypatch):
    """Else its children live on and the buffer stays open."""

    def refuse(thread):
        raise RuntimeError("can't start new thread")

    in_force = SettingsInForce(make_settings(), tmp_path / "mfmd.yaml")
    layout.create()
    with layout.lock():
        parts = parts_module.DaemonParts(in_force, "token")
        monkeypatch.setattr(threading.Thread, "start", refuse)
        closed, close = [], FrameBuffer.close
        monkeypatch.setattr(FrameBuffer, "close", lambda buffer: closed.append(buffer) or close(buffer))
        parts.stop()
    assert len(closed) == 1


def test_a_version_that_nothing_serves_is_named(make_settings, tmp_path, add_version):
    add_version(promote=False)
    with pytest.raises(NoCheckpoint, match="mfmd promote 1"):
        run(make_settings(), tmp_path / "mfmd.yaml")


def test_stop_in_mid_round_ends_the_round_and_releases_its_frames(
    start, config, layout, drop, write_image, add_version, make_settings
):
    """The round is the real one: SIGTERM reaches it while it loads its libraries."""
    add_version()
    for number in range(8):
        write_image(drop / f"{number}.png", number)
    running = start(config(round={"steps": 100_000}))
    running.wait(lambda: collect_status(make_settings()).buffer.frames == 8, "eight frames")
    assert running.request("POST", "/v1/rounds").json() == {"round": 1}
    group = running.wait(lambda: _group(layout, "adapters.round"), "the round's process")
    assert running.request("POST", "/v1/rounds").status_code == 409
    status, seconds = running.stop()
    assert status == 0, running.log.read_text()[-3000:]
    assert seconds < 20
    assert not group_alive(group)
    folder = RoundStore(layout.rounds).folder(1)
    assert folder.scores().status == "stopped"
    assert folder.verdict().decision == "inconclusive"
    counts = collect_status(make_settings())
    assert counts.last_rounds[0].result == "stopped"
    assert _leases(layout) == []


def test_after_a_kill_the_next_daemon_cleans_up(start, config, layout, drop, write_image, add_version, make_settings):
    add_version()
    for number in range(8):
        write_image(drop / f"{number}.png", number)
    first = start(config())
    first.wait(lambda: collect_status(make_settings()).buffer.frames == 8, "eight frames")
    first.request("POST", "/v1/rounds")
    group = first.wait(lambda: _group(layout, "adapters.round"), "the round's process")
    os.kill(first.process.pid, signal.SIGKILL)
    first.process.wait()
    assert group_alive(group), "the round outlives the daemon"
    layout.run_file("daemon").unlink()
    second = start(config())
    assert not group_alive(group)
    assert _leases(layout) == []
    status = collect_status(make_settings())
    assert (status.last_rounds[0].result, status.buffer.frames) == ("failed", 8)
    assert "the daemon ended while the round ran" in status.last_rounds[0].reason
    write_image(drop / "after.png", 99)
    second.wait(lambda: collect_status(make_settings()).buffer.frames == 9, "the ninth frame")
    assert second.stop()[0] == 0


def test_a_pause_lasts_through_a_kill_until_a_command_ends_it(
    start, config, layout, drop, write_image, add_version, make_settings, capsys
):
    """The commands work without a daemon and with one; the round that waited begins by itself afterwards."""
    add_version()
    schedule = {"enabled": True, "new_frames": 6, "min_frames": 4}
    file = config(schedule=schedule, round={"steps": 100_000})
    assert main(["pause", "--reason", "the camera is moved", "--config", str(file)]) == 0
    first = start(file)
    for number in range(8):
        write_image(drop / f"{number}.png", number)
    first.wait(lambda: _status(make_settings).buffer.frames == 8, "eight frames")
    os.kill(first.process.pid, signal.SIGKILL)
    first.process.wait()
    layout.run_file("daemon").unlink()
    second = start(file)
    second.wait(lambda: '"paused"' in second.log.read_text() or " paused " in second.log.read_text(), "the line")
    assert "mfmd_paused 1.0" in second.request("GET", "/metrics").text
    assert main(["status", "--check", "--config", str(file)]) == main(["status", "--config", str(file)]) == 0
    shown = capsys.readouterr().out
    assert "by operator: the camera is moved\n" in shown and "\nnext       `mfmd resume`: paused by operator" in shown
    assert RoundStore(layout.rounds).numbers() == []
    assert main(["resume", "--json", "--config", str(file)]) == 0
    assert json.loads(capsys.readouterr().out) == {"resumed": True}
    second.wait(lambda: RoundStore(layout.rounds).numbers() == [1], "the round")
    assert "mfmd_paused 0.0" in second.request("GET", "/metrics").text
    assert second.stop()[0] == 0


def _status(make_settings):
    return collect_status(make_settings())


def _group(layout, argument: str) -> int | None:
    """Process group of the child with this argument on its command line."""
    return next((os.getpgid(child.pid) for child in children_of(layout) if argument in child.cmdline()), None)


def _leases(layout) -> list[int]:
    with closing(Catalog.open(layout.catalog, writable=False)) as catalog:
        return catalog.leases()
