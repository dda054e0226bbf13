"""Status: right with the daemon up or down, whatever is missing or damaged, without torch, and fast."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import psutil
import pytest

from daemon.app import require_version
from daemon.cli.status import _daemon, _lines
from daemon.doctor import Level, examine_clock
from daemon.runtime.activity import Activity, ActivityWriter, ChildActivity, IngestActivity, WatchActivity
from daemon.runtime.run_record import RunRecord, publish_record
from daemon.status import collect
from daemon.status.collect import Status, collect_status
from daemon.status.plane_probe import PlaneProbe, describe_plane, probe_plane
from storage.buffer.observations import Observation, Observations
from storage.canary.records import CanaryState
from storage.durable import write_record
from storage.errors import CorruptCheckpoint, StorageError
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
    assert collect_status(settings).messages[0] == "the daemon is not running: `mfmd run` starts it"
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    told = collect_status(settings).messages[0]
    assert f"cannot write to {layout.root}: mount it for writing, run mfmd as the user who owns it" in told


def test_a_version_that_does_not_serve_is_mentioned(make_settings, add_version):
    add_version(promote=False)
    assert any("mfmd promote 1" in message for message in collect_status(make_settings()).messages)


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
    assert any("1 not_an_image" in message for message in status.messages)
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
    with pytest.raises(StorageError, match="check --repair"):
        require_version(make_settings(), registry)


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


class _Plane(BaseHTTPRequestHandler):
    answer: bytes = b""
    token: str | None = None

    def do_GET(self) -> None:
        opens = self.token is None or self.headers["Authorization"] == f"Bearer {self.token}"
        self.send_response(200 if opens else 401)
        self.end_headers()
        self.wfile.write(self.answer)

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def plane():
    server = HTTPServer(("127.0.0.1", 0), _Plane)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def record(plane, layout) -> RunRecord:
    """This process, where the plane answers."""
    return publish_record(layout, "serve", "127.0.0.1", plane.server_address[1])


def test_the_supervisor_asks_its_own_plane_whether_it_is_ready(layout, record, monkeypatch):
    probe = PlaneProbe(layout)
    assert probe(os.getpid()) == ""
    assert probe(os.getpid() + 1) is None, "the record of another process"
    monkeypatch.setattr(_Plane, "token", "of the plane")
    assert probe(os.getpid()) == "has no version loaded"
    layout.run_file("serve").write_text(record.model_copy(update={"port": 1}).model_dump_json())
    assert probe(os.getpid()) is None


def test_a_second_plane_on_the_state_directory_hides_the_supervisors_own_from_nobody(layout, record):
    probe = PlaneProbe(layout)
    assert probe(os.getpid()) == ""
    layout.run_file("serve").write_text(record.model_copy(update={"pid": 1, "port": 1}).model_dump_json())
    assert probe(os.getpid()) == "", "`mfmd serve` by hand wrote its own address"
    layout.run_file("serve").unlink()
    assert probe(os.getpid()) == "", "and took it away at its end"


def test_the_inference_plane_is_asked(make_settings, layout, add_version, record):
    add_version()
    failure = {
        "version": 1,
        "code": "checkpoint_corrupt",
        "reason": "model.safetensors: 3 bytes",
        "at": 1.0,
        "attempts": 2,
    }
    _Plane.answer = json.dumps({"ready": True, "version": 9, "wanted": 1, "last_failure": failure}).encode()
    status = probe_plane(record.model_copy(update={"host": "0.0.0.0"}))
    assert (status.up, status.ready, status.version, status.last_swap_failure) == (
        True,
        True,
        9,
        "model.safetensors: 3 bytes",
    )
    messages = collect_status(make_settings()).messages
    assert any(
        "version 1 cannot serve, version 9 still serves: model.safetensors: 3 bytes" in item for item in messages
    )


def test_a_corrupt_serving_version_beside_one_that_answers_comes_with_the_command(
    make_settings, registry, add_version, record
):
    for _ in range(3):
        add_version()
    failure = {"version": 3, "code": "checkpoint_corrupt", "reason": "model.safetensors: 3 bytes"}
    _Plane.answer = json.dumps({"ready": True, "version": 2, "wanted": 3, "last_failure": failure}).encode()
    told = "version 3 cannot serve, version 2 still serves: model.safetensors: 3 bytes; "
    for remedy in ("`mfmd rollback` serves version 2", "`mfmd promote 2` serves another version"):
        assert told + remedy in collect_status(make_settings()).messages
        registry.ref_path("previous").unlink(missing_ok=True)


def test_a_failure_that_was_about_no_version_is_not_told_of_one(make_settings, layout, registry, add_version, record):
    add_version()
    (registry.root / "refs" / "serving").write_text("{")
    failure = {"version": None, "reason": "refs/serving: not a ref"}
    _Plane.answer = json.dumps({"ready": True, "version": 1, "last_failure": failure}).encode()
    status = collect_status(make_settings())
    assert status.plane.version == 1 and not any("cannot serve" in message for message in status.messages)


@pytest.mark.parametrize(
    ("given", "said"),
    [(None, "has no serving.token, but the plane needs one"), ("wrong", "has a different serving.token")],
)
def test_a_plane_that_wants_another_token_is_told(make_settings, layout, add_version, record, monkeypatch, given, said):
    """Also of a plane that was started a moment ago, and without a daemon."""
    add_version()
    monkeypatch.setattr(_Plane, "token", "right")
    monkeypatch.setattr(_Plane, "answer", b"{}")
    settings = make_settings(serving={"enabled": True, **({"token": given} if given else {})})
    status = collect_status(settings)
    assert status.plane.refused and not status.plane.up
    (message,) = [item for item in status.messages if "serving.token" in item]
    assert said in message and str(status.plane.port) in message and "right" not in message
    assert "does not accept this configuration's serving.token" in dict(_lines(status))["serving"]
    assert collect_status(make_settings(serving={"token": "right"})).plane.up


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"version": 3, "wanted": 4}, "answers with 3"),
        ({"version": None, "wanted": 4}, "loads version 4"),
        ({"version": None, "wanted": None}, "has no version loaded"),
        ({"version": None, "wanted": 4, "problems": ["unloaded by request"]}, "has no version loaded"),
        ({"version": None, "wanted": 4, "last_failure": {"version": 4, "reason": "torn"}}, "4 cannot serve"),
    ],
)
def test_what_the_plane_does_is_said_in_words(record, monkeypatch, answer, words):
    monkeypatch.setattr(_Plane, "answer", json.dumps(answer).encode())
    said = describe_plane(probe_plane(record))
    assert said.startswith("127.0.0.1:") and said.endswith(words) and "None" not in said


def test_a_plane_that_starts_is_not_one_that_does_not_answer(make_settings, layout, add_version):
    """Before the daemon told what it started, after that, and when it takes too long."""
    add_version()
    settings, now = make_settings(serving={"enabled": True}), time.time()
    with layout.lock():
        _told(collect_status(settings), "the inference plane starts", complains=False)
        record = publish_record(layout, "daemon", "127.0.0.1", 8008)
        just_started = record.model_copy(update={"started": now - psutil.boot_time()})
        layout.run_file("daemon").write_text(just_started.model_dump_json())
        _told(collect_status(settings), "the inference plane starts", complains=False)
        for since, next_start, said, complains in (
            (None, None, "the inference plane starts", False),
            (now, None, "the inference plane starts", False),
            (now - 600.0, None, "no inference plane answers", True),
            (now, now + 9, "no inference plane answers", True),
        ):
            child = ChildActivity(name="serve", running=since is not None, since=since, next_start=next_start)
            activity = Activity(children=[child.model_copy(update={"running": child.running and next_start is None})])
            ActivityWriter(layout.run_file("activity"), lambda activity=activity: activity).step()
            _told(collect_status(settings), said, complains=complains)
        _told(collect_status(make_settings()), "no inference plane answers", complains=False)
    _told(collect_status(settings), "no inference plane answers", complains=False)


def _told(status: Status, said: str, *, complains: bool) -> None:
    assert dict(_lines(status))["serving"].endswith(said)
    assert complains == any("does not answer" in message for message in status.messages)


def test_a_plane_that_says_nothing_useful_is_down(plane, record):
    for answer in (b"", b"[]", b"<html>", b'{"ready": "perhaps"}'):
        _Plane.answer = answer
        assert not probe_plane(record).up
    plane.server_close()
    gone = probe_plane(record.model_copy(update={"port": 1}))
    assert not gone.up
    assert gone.detail.startswith("no answer")
    assert not probe_plane(None).up


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
