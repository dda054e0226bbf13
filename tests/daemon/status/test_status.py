"""Status: right with the daemon up or down, whatever is missing or damaged, without torch, and fast."""

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from daemon.app import require_version
from daemon.cli.status import _daemon, _lines
from daemon.doctor import Level, examine_clock
from daemon.runtime.activity import Activity, ActivityWriter, ChildActivity, IngestActivity, WatchActivity
from daemon.runtime.run_record import publish_record
from daemon.status import collect
from daemon.status.collect import Status, collect_status
from storage.buffer.observations import Observation, Observations
from storage.canary.records import CanaryState
from storage.durable import write_record
from storage.errors import CorruptCheckpoint
from storage.rounds.folder import RoundStore
from storage.rounds.records import Progress, RoundScores, RoundSpec


def _spec(number: int) -> RoundSpec:
    return RoundSpec(
        round=number, incumbent=1, released=1, train_frames=(1,), holdout_frames=(2,), settings={}, created=time.time(),
        trigger="new_frames",
    )  # fmt: skip


def test_nothing_there_yet(make_settings, tmp_path):
    settings = make_settings()
    status = collect_status(settings)
    assert not status.daemon.up
    assert (status.serving, status.round, status.observed, status.last_rounds) == (None, None, None, [])
    assert status.buffer.frames == 0
    assert status.watch.state == "stopped"
    assert any("mfmd run" in message for message in status.messages)
    assert any("mfmd import PATH" in message for message in status.messages)
    assert not (tmp_path / "state").exists(), "looking must not create anything"


def test_with_source_configured_pretraining_is_the_advice(make_settings, tmp_path):
    settings = make_settings(source={"images": tmp_path, "labels": tmp_path})
    assert any("mfmd pretrain" in message for message in collect_status(settings).messages)


def test_a_disk_below_the_reserve_is_mentioned_and_skipped_files_are_counted(make_settings, bench, drop, write_image):
    world = bench(watch={"stability_seconds": 0.0}, admission={"min_spacing_seconds": 1e6})
    for number in range(3):
        write_image(drop / f"{number}.png", number)
    world.until(lambda: world.counts.skipped == {"too_close": 2})
    settings = make_settings(buffer={"reserve_bytes": 10**18})
    status = collect_status(settings)
    assert status.buffer.skipped == {"too_close": 2}
    assert any("buffer.reserve_bytes: the buffer does not grow" in message for message in status.messages)
    assert not any("buffer.reserve_bytes" in message for message in collect_status(make_settings()).messages)


@pytest.mark.parametrize(
    ("at", "said"),
    [
        (-86_400.0, "is 1.0 days before the time at which the serving version was promoted"),
        (-60.0, ""),
        (3_600.0, ""),
        (None, "clock says 1970-01-02"),
    ],
)
def test_a_clock_that_cannot_be_right_is_told(make_settings, add_version, registry, monkeypatch, at, said):
    """Also by the doctor; and no age is negative then."""
    add_version()
    now = 86_400.0 if at is None else registry.serving().since + at
    if at is None:
        ref = registry.serving().model_copy(update={"since": 0.0})
        write_record(registry.ref_path("serving"), ref)
    monkeypatch.setattr(collect.time, "time", lambda: now)
    told = [message for message in collect_status(make_settings()).messages if "this machine's clock" in message]
    assert len(told) == bool(said) and all(said in message and "set it (NTP)" in message for message in told)
    assert examine_clock(make_settings()).level == (Level.WARN if said else Level.OK)


def test_a_state_directory_that_cannot_be_written_is_told_with_what_to_do(make_settings, layout, monkeypatch):
    settings = make_settings()
    assert (
        collect_status(settings).messages[0]
        == "the daemon is not running: `mfmd run` starts it; `mfmd doctor` says what hinders a start"
    )
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    told = collect_status(settings).messages[0]
    assert f"cannot write to {layout.root}: mount it for writing, run mfmd as the user who owns it" in told


def test_a_version_that_does_not_serve_is_mentioned(make_settings, add_version):
    add_version(promote=False)
    assert any("mfmd promote 1" in message for message in collect_status(make_settings()).messages)


def test_the_daemon_down_tells_who_holds_its_port(make_settings):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        told = collect_status(make_settings(control={"port": port})).messages[0]
    assert told.startswith(f"the daemon is not running, and control.port {port} is in use by process {os.getpid()} (")
    assert told.endswith("; stop that, or choose another port")


def test_the_daemon_down_tells_what_storage_knows(bench, drop, write_image, add_version, layout):
    add_version()
    world = bench()
    for number in range(5):
        write_image(drop / f"{number}.png", number)
    (drop / "bad.png").write_bytes(b"rubbish")
    world.until(lambda: world.counts.frames == 5 and world.counts.refused)
    area = np.full(len(world.settings.classes), 0.5, np.float32)
    with Observations.open(layout.observations, writable=True) as observations:
        observations.add([Observation(1, 1, 1, 9.0, 0.7, 0.8, area, np.ones(3, np.float32), np.ones(2, np.float32))])
    world.close()
    status = collect_status(world.settings)
    assert (status.buffer.frames, status.buffer.capacity, status.buffer.refused) == (5, 64, {"not_an_image": 1})
    assert (status.serving.version, status.previous, status.versions) == (1, None, [1])
    assert status.next_round.frames_missing == world.settings.schedule.new_frames - 5
    assert status.observed.entropy == pytest.approx(0.7)
    assert status.observed.class_ratio[world.settings.classes[0].name] == 0.5
    assert status.messages[-1].endswith("are refused: 1 not_an_image; `mfmd refused list` says why")
    assert Status.model_validate_json(status.model_dump_json()) == status


def test_the_daemon_up_tells_what_it_does(make_settings, layout, add_version):
    add_version()
    settings = make_settings(serving={"enabled": True})
    activity = Activity(
        watch=WatchActivity(state="missing", detail="/drop does not exist; waiting for it"),
        ingest=IngestActivity(state="paused", reason="3 MB free"),
        children=[ChildActivity(name="serve", running=False, last_exit=1, next_start=time.time() + 9)],
        errors={"rounds": "OSError: no space"},
    )
    with layout.lock():
        ActivityWriter(layout.run_file("activity"), lambda: activity).step()
        publish_record(layout, "daemon", "127.0.0.1", 8008)
        status = collect_status(settings)
    assert status.daemon.up
    assert (status.daemon.port, status.watch.state, status.ingest.state) == (8008, "missing", "paused")
    text = "\n".join(status.messages)
    for part in ("waiting for it", "3 MB free", "`mfmd serve` ended with status 1", "rounds waits: OSError: no space"):
        assert part in text
    assert collect_status(settings).watch.state == "stopped", "a stale file means nothing once the lock is free"


def test_what_a_killed_daemon_left_is_not_told_of_the_next(make_settings, layout, add_version):
    add_version()
    activity = Activity(watch=WatchActivity(state="watching", detail="long ago"))
    ActivityWriter(layout.run_file("activity"), lambda: activity).step()
    publish_record(layout, "daemon", "127.0.0.1", 8008)
    with layout.lock():
        status = collect_status(make_settings())
    assert (status.daemon.up, status.daemon.pid, status.daemon.port) == (True, None, None)
    assert status.watch.detail == ""
    assert "pid" not in _daemon(status) and "starts" in _daemon(status)


def test_rounds_running_ended_and_failed(make_settings, layout, add_version):
    add_version()
    store, settings = RoundStore(layout.rounds), make_settings()
    failed = store.create(_spec(1))
    failed.write_scores(RoundScores(status="failed", reason="non-finite loss at step 3", steps=3, seconds=1.0))
    failed.enter("failed")
    running = store.create(_spec(2))
    running.append_progress(Progress(at=1.0, phase="training", step=7, steps=9))
    with layout.lock():
        status = collect_status(settings)
    assert (status.round.round, status.round.progress.step) == (2, 7)
    assert [item.round for item in status.last_rounds] == [1]
    assert any("round 1 failed: non-finite loss at step 3" in message for message in status.messages)
    stalls = "round 2 has made no progress for "
    assert any(stalls in message and "(round.advanced.stall_seconds)" in message for message in status.messages)
    running.append_progress(Progress(at=time.time() + 3600.0, phase="training", step=8, steps=9))
    with layout.lock():
        ahead = collect_status(settings)
    assert not any(stalls in message for message in ahead.messages), "as after a clock was set back"
    status = collect_status(settings)
    assert status.round is None
    assert [item.result for item in status.last_rounds] == ["suspended", "failed"]


def test_damage_becomes_messages(make_settings, layout, registry, add_version):
    add_version()
    (registry.root / "refs" / "serving").write_text("{")
    layout.catalog.write_bytes(b"not sqlite at all " * 100)
    layout.observations.write_bytes(b"nor this one here " * 100)
    status = collect_status(make_settings())
    text = "\n".join(status.messages)
    for name in ("refs/serving", "catalog.sqlite", "observations.sqlite"):
        assert name in text
    assert "stop `mfmd run`, then `mfmd check --repair`" in text, "it refuses while the daemon runs"
    assert status.serving_damaged and "no version serves" not in text, "which one should serve is not known"


def test_each_damaged_record_is_named_with_its_remedy(make_settings, layout, add_version):
    add_version()
    records = [layout.drift, layout.recall, layout.probation, layout.canary / "state.json"]
    for path in records:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"\0" * 100)
    told = collect_status(make_settings()).messages
    for path in records:
        (line,) = [message for message in told if str(path) in message]
        assert line.startswith(f"{path}: not a") and line.endswith(f"; remove {path}")


def test_a_serving_ref_that_is_gone_is_repaired_not_replaced_by_the_newest(make_settings, registry, add_version):
    add_version()
    add_version(promote=False)
    registry.ref_path("serving").unlink()
    status = collect_status(make_settings())
    text = "\n".join(status.messages)
    assert "missing, but version 1 was promoted" in text
    assert "pretrain" not in status.next_round.waiting_for, "there is a version; another would only hide the damage"
    assert "stop `mfmd run`, then `mfmd check --repair`" in text
    assert status.serving_damaged and "mfmd promote" not in text, "version 2 never served"
    require_version(make_settings(), registry)  # the daemon starts: planes serve what the history names


@pytest.mark.parametrize(
    ("state", "line", "message"),
    [
        (CanaryState(images=3), "3 labelled images: can only veto; 2 more decide", ""),
        (CanaryState(images=5), "5 labelled images: they decide about candidates", ""),
        (
            CanaryState(problem="canary images not read, 1 problem: a.png"),
            "canary images not read",
            "is accepted while c",
        ),
    ],
)
def test_canary_images_that_count(make_settings, layout, state, line, message):
    layout.canary.mkdir()
    write_record(layout.canary / "state.json", state)
    status = collect_status(make_settings())
    assert line in dict(_lines(status))["canary"]
    assert any("canary" in text for text in status.messages) == bool(message)
    assert not message or any(message in text for text in status.messages)


def test_status_reads_no_weights(make_settings, registry, add_version):
    """That would take seconds a look; `mfmd checkpoints verify` does."""
    add_version()
    weights = registry.weights_path(1)
    weights.write_bytes(bytes(255 - byte for byte in weights.read_bytes()))
    with pytest.raises(CorruptCheckpoint):
        registry.verify(1)
    assert not any("should serve" in message for message in collect_status(make_settings()).messages)


def test_a_serving_version_whose_files_are_gone_is_told(make_settings, registry, add_version):
    add_version()
    add_version()
    assert not any("should serve" in message for message in collect_status(make_settings()).messages)
    registry.weights_path(2).unlink()
    text = "\n".join(collect_status(make_settings()).messages)
    assert "version 2 should serve, but is damaged" in text and "model.safetensors: missing" in text
    shutil.rmtree(registry.folder(2))
    text = "\n".join(collect_status(make_settings()).messages)
    assert f"version 2 should serve, but its folder {registry.folder(2)} is missing" in text
    assert "serve another with `mfmd promote N`; others: 1" in text
    registry.promote(1, by="test", reason="as the message says")
    assert not any("should serve" in message for message in collect_status(make_settings()).messages)


def test_status_imports_neither_torch_nor_zarr_nor_a_server(make_settings):
    code = (
        "import sys; from pathlib import Path; from configs.settings import Settings\n"
        f"settings = Settings.model_validate_json({make_settings().model_dump_json()!r})\n"
        "from daemon.status.collect import collect_status; collect_status(settings)\n"
        "print([name for name in ('torch', 'zarr', 'fastapi', 'uvicorn', 'httpx', 'watchdog') if name in sys.modules])"
    )
    root = Path(__file__).parents[3]
    answer = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
