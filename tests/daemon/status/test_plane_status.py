"""What status says of the inference plane: asked over HTTP, stopped, starting, hanging, or of another token."""

import json
import os
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import psutil
import pytest

from daemon.cli.status import _lines
from daemon.runtime.activity import Activity, ActivityWriter, ChildActivity
from daemon.runtime.run_record import RunRecord, publish_record
from daemon.status.collect import Status, collect_status
from daemon.status.plane_probe import PlaneProbe, describe_plane, probe_plane


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
    for answers, remedy in ((2, "`mfmd rollback` serves version 2"), (1, "`mfmd promote 1` keeps it")):
        _Plane.answer = json.dumps({"ready": True, "version": answers, "wanted": 3, "last_failure": failure}).encode()
        told = f"version 3 cannot serve, version {answers} still serves: model.safetensors: 3 bytes; "
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
            (now - 600.0, None, "no inference plane answers here", True),
            (now, now + 9, "no inference plane answers here", True),
        ):
            child = ChildActivity(name="serve", running=since is not None, since=since, next_start=next_start)
            activity = Activity(children=[child.model_copy(update={"running": child.running and next_start is None})])
            ActivityWriter(layout.run_file("activity"), lambda activity=activity: activity).step()
            _told(collect_status(settings), said, complains=complains)
        _told(collect_status(make_settings()), "no inference plane answers here", complains=False)
    _told(collect_status(settings), "no inference plane answers here", complains=False)


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
