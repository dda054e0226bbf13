"""What browsers, proxies and attackers send that no form of the page does, and a state with odd records."""

import asyncio
import json
import socket
import time
from contextlib import ExitStack

import pytest

from configs.serving import ControlSettings
from daemon.control.page import events
from daemon.net.hosts import is_known, known_hosts
from daemon.net.middleware import HeadRequests
from storage.registry.manifest import HistoryEvent
from storage.rounds.records import Progress
from tests.daemon.control.control_world import TOKEN, suggestion

BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


@pytest.mark.parametrize(
    ("path", "status", "title", "words"),
    [
        ("/nothing", 404, "No such view", "Not Found"),
        ("/static/nope.js", 404, "No such view", "no file"),
        ("/rollback", 405, "This address takes forms only", "Method Not Allowed"),
        ("/versions/abc", 422, "No such view", "number"),
        ("/versions/1?other=abc", 422, "No such view", "other"),
        ("/versions/1?other=" + "9" * 300, 422, "No such view", "other"),
        ("/files?skip=-1", 422, "No such view", "skip"),
        ("/look?colors=<b>", 422, "No such view", "colors"),
    ],
)
def test_a_browser_gets_a_page_and_a_program_gets_json(page, path, status, title, words):
    answer = page.client.get(path, headers=BROWSER)
    assert (answer.status_code, answer.headers["Content-Type"]) == (status, "text/html; charset=utf-8")
    assert f"<h1>{title}</h1>" in answer.text and words in answer.text and "<b>" not in answer.text
    assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
    assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
    answer = page.client.get(path)
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.status_code == status and words in answer.json()["message"]


def test_the_api_answers_a_browser_with_json(page):
    assert page.client.get("/v1/rounds/9", headers=BROWSER).json()["code"] == "round_unknown"


@pytest.mark.parametrize("path", ["/", "/versions", "/versions/1"])
@pytest.mark.parametrize("damage", ["", "{\n", "folder"])
def test_a_history_that_is_lost_leaves_every_view_readable(page, layout, path, damage):
    file = layout.checkpoints / "history.jsonl"
    file.unlink()
    file.mkdir() if damage == "folder" else file.write_text(damage)
    answer = page.client.get(path, headers=BROWSER)
    assert answer.status_code == (500 if damage == "folder" else 200) and "<h1>" in answer.text
    assert (str(file) in answer.text) == (damage == "folder")


@pytest.mark.parametrize("at", [1e300, -1e18])
def test_an_impossible_time_hides_nothing_else(page, registry, layout, at):
    registry.record(HistoryEvent(at=at, event="promoted", version=1, by="somebody", reason="odd"))
    manifest = layout.checkpoints / "versions" / "000002" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"created": at}))
    for path in ("/versions", "/versions/1", "/versions/2"):
        answer = page.client.get(path)
        assert answer.status_code == 200, path


def test_a_loss_that_is_no_number_leaves_a_gap_in_the_curve(page, layout, add_version):
    folder = suggestion(layout, add_version(3, promote=False))
    for step in (1, 2, 3):
        folder.append_progress(Progress(at=1.0, phase="training", step=step, steps=3, losses={"mfm": 1.0}))
    path = folder.path / "progress.jsonl"
    path.write_text(path.read_text().replace('"mfm":1.0', '"mfm":NaN', 1))
    assert page.client.get("/curve").json()["series"] == [{"name": "mfm", "y": [None, 1.0, 1.0]}]


def lines_of(page):
    with page.client.stream("GET", "/events", timeout=20) as stream:
        assert stream.headers["X-Accel-Buffering"] == "no", "nginx keeps events otherwise"
        yield from stream.iter_lines()


def test_beats_come_at_their_pace(page, monkeypatch):
    monkeypatch.setattr(events, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(events, "BEAT_SECONDS", 0.3)
    beats = (time.monotonic() for line in lines_of(page) if line == "event: beat")
    assert -next(beats) + next(beats) > 0.25


def test_a_stream_goes_on_when_the_state_cannot_be_read(page, monkeypatch):
    marks = (line for line in lines_of(page) if line.startswith("data: "))
    first, second = next(marks), next(marks)
    assert first != second

    def fails(_settings):
        raise ValueError("nobody foresaw this")

    monkeypatch.setattr(events, "collect_status", fails)
    while first != second:  # one mark for all parts: the reason
        first, second = second, next(marks)


def test_free_space_alone_is_no_change(page, monkeypatch):
    monkeypatch.setattr(events, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(events, "BEAT_SECONDS", 0.3)
    full = events.collect_status
    free = iter(range(1_000_000))

    def other_space(settings):
        status = full(settings)
        status.buffer.__dict__["disk_free_bytes"] = next(free)
        return status

    monkeypatch.setattr(events, "collect_status", other_space)
    lines = (line for line in lines_of(page) if line.startswith("event"))
    assert [next(lines) for _ in range(3)][-1] == "event: beat"


def test_head_of_a_stream_ends():
    sent = []

    async def app(scope, receive, send):
        assert scope["method"] == "GET"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(3):
            await send({"type": "http.response.body", "body": b"x", "more_body": True})

    async def send(message):
        sent.append(message)

    asyncio.run(HeadRequests(app)({"type": "http", "method": "HEAD"}, None, send))
    assert [(item["type"], item.get("more_body")) for item in sent] == [
        ("http.response.start", None),
        ("http.response.body", False),
    ]


@pytest.mark.parametrize(
    ("host", "known"),
    [
        ("127.0.0.1:8008", True), ("[::1]:8008", True), ("localhost", True), ("mfmd:8008", True), ("a.localhost", True),
        ("MFMD.example", True), ("mfmd.example.:443", True), ("evil.example", False), ("127.0.0.1.evil.example", False),
        ("evil.example:8008", False), ("[", False), ("a.mfmd.example", False),
    ],
)  # fmt: skip
def test_only_its_own_names_and_addresses_are_answered(host, known):
    settings = ControlSettings.model_validate({"advanced": {"hosts": ["mfmd.Example"]}})
    assert is_known(host, known_hosts(settings)) == known


def test_a_name_that_a_foreign_site_lets_lead_here_reads_nothing(page):
    for path in ("/", "/v1/status", "/events", "/healthz"):
        answer = page.client.get(path, headers={"Host": "evil.example:80"})
        assert (answer.status_code, answer.json()["code"]) == (421, "foreign_host")
    assert page.client.get("/healthz", headers={"Host": "localhost:8008"}).status_code in (200, 503)
    assert known_hosts(ControlSettings(host="0.0.0.0", token=TOKEN)) is None, "nobody knows how others call it"


def opens(page) -> bool:
    with page.client.stream("GET", "/events") as stream:
        return stream.status_code == 200


def test_streams_that_are_asked_for_at_once_are_bounded_too(page, monkeypatch):
    monkeypatch.setattr(events, "MOST_STREAMS", 2)
    address = page.server.address
    with ExitStack() as opened:
        sockets = [opened.enter_context(socket.create_connection(address, timeout=10)) for _ in range(8)]
        for one in sockets:
            one.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert sorted(one.recv(12) for one in sockets) == [b"HTTP/1.1 200"] * 2 + [b"HTTP/1.1 503"] * 6
    page.bench.until(lambda: opens(page))
