"""Webhooks are told what happens: by a real receiver that answers, is slow, is down, or answers 500."""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from configs.settings import Settings
from daemon.errors import NotifyFailed
from daemon.metrics import NotifyMetrics
from daemon.notify import notifier as notifier_module
from daemon.notify.events import REJECTIONS, happened
from daemon.notify.notifier import NEWEST, Notifier
from daemon.runtime.activity import ChildActivity
from storage import durable
from storage.gate.drift import Drift
from storage.gate.notified import Told
from storage.registry.manifest import HistoryEvent

SECRET = "/services/T0/very-secret"


class Receiver(ThreadingHTTPServer):
    """A webhook on loopback that keeps what it was sent."""

    daemon_threads = True

    def __init__(self) -> None:
        self.got: list[dict[str, Any]] = []
        self.status = 200
        self.waits: threading.Event | None = None
        """It answers only once this is set."""
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        """Its address, with a secret in it."""
        return f"http://127.0.0.1:{self.server_port}{SECRET}"

    @property
    def events(self) -> list[str]:
        """The events that it took."""
        return [message["event"] for message in self.got]


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.server.waits is not None:
            self.server.waits.wait(30.0)
        if self.server.status == 200:
            self.server.got.append(message)
        self.send_response(self.server.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Write nothing."""


@contextmanager
def listening() -> Iterator[Receiver]:
    """A receiver that answers until the end."""
    server = Receiver()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join(10.0)
        server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with listening() as server:
        yield server


class World:
    """A registry with a history, and a notifier on it."""

    def __init__(self, layout, registry, add_version) -> None:
        self.layout, self.registry, self.add_version = layout, registry, add_version
        self.children: list[ChildActivity] = []
        self.collector = CollectorRegistry()
        self.metrics = NotifyMetrics(self.collector)

    def notifier(self, *targets: dict[str, Any]) -> Notifier:
        values = {"classes": "demo", "watch": {"folder": "drop"}, "notify": list(targets)}
        settings = Settings.model_validate(values, context={"base": self.layout.root.parent})
        settings = settings.model_copy(update={"state": self.layout.root})
        return Notifier(settings, self.registry, lambda: self.children, self.metrics)

    def drift(self, alarms: int) -> None:
        record = Drift(version=1, since=1.0, alarms=alarms, last_alarm=2.0, reason="entropy rose")
        durable.write_record(self.layout.drift, record)


@pytest.fixture
def world(layout, registry, add_version) -> World:
    add_version()
    return World(layout, registry, add_version)


def test_a_new_webhook_is_told_what_happens_from_now_on(world, receiver) -> None:
    notifier = world.notifier({"url": receiver.url})
    notifier.step()
    assert receiver.got == []
    version = world.add_version(parent=1)
    world.drift(alarms=1)
    notifier.step()
    world.registry.roll_back(to=1, by="operator", reason="it looks odd")
    notifier.step()
    notifier.step()
    assert receiver.events == ["promoted", "drift", "rolled_back"]
    first, drift, back = receiver.got
    assert (first["version"], drift["text"]) == (version, "mfmd: drift: entropy rose")
    assert (
        back["text"] == "mfmd: version 1 serves again after a rollback instead of version 2, by operator: it looks odd"
    )
    assert back["state"] == str(world.layout.root) and back["machine"]


def test_only_the_events_that_are_asked_for_are_told(world, receiver) -> None:
    notifier = world.notifier({"url": receiver.url, "on": ["drift"]})
    notifier.step()
    world.add_version(parent=1)
    world.drift(alarms=1)
    notifier.step()
    assert receiver.events == ["drift"]


def test_a_restart_loses_nothing_and_repeats_nothing(world, receiver) -> None:
    world.notifier({"url": receiver.url}).step()
    world.add_version(parent=1)
    world.notifier({"url": receiver.url}).step()
    world.notifier({"url": receiver.url}).step()
    assert receiver.events == ["promoted"]


@pytest.mark.parametrize("trouble", ["500", "slow"])
def test_a_webhook_in_trouble_holds_no_other_and_gets_it_later(world, receiver, trouble, monkeypatch) -> None:
    monkeypatch.setattr(notifier_module, "ANSWER_SECONDS", 0.2)
    with listening() as bad:
        notifier = world.notifier({"url": bad.url}, {"url": receiver.url})
        notifier.step()
        bad.status, bad.waits = (500, None) if trouble == "500" else (200, threading.Event())
        world.add_version(parent=1)
        for _ in range(2):
            _fails(notifier)
        assert receiver.events == ["promoted"], "told once, by the other"
        assert world.collector.get_sample_value("mfmd_notifications_total", {"result": "failed"}) == 2
        if bad.waits is not None:
            bad.waits.set()
        bad.status, bad.waits, bad.got = 200, None, []
        notifier.step()
        assert "promoted" in bad.events and receiver.events == ["promoted"]


@pytest.mark.parametrize("host", ["127.0.0.1", "no..host"])
def test_a_webhook_that_cannot_be_reached_holds_no_other(world, receiver, host) -> None:
    with listening() as gone:
        url = gone.url.replace("127.0.0.1", host)
    notifier = world.notifier({"url": url}, {"url": receiver.url})
    notifier.step()
    world.add_version(parent=1)
    _fails(notifier, host)
    assert receiver.events == ["promoted"]


def test_a_webhook_that_is_added_again_is_new(world, receiver) -> None:
    with listening() as other:
        world.notifier({"url": receiver.url}, {"url": other.url}).step()
        world.notifier({"url": other.url}).step()
        world.add_version(parent=1)
        world.notifier({"url": other.url}).step()
        world.notifier({"url": receiver.url}, {"url": other.url}).step()
        assert (receiver.events, other.events) == ([], ["promoted"])


def _fails(notifier: Notifier, host: str = "127.0.0.1") -> None:
    with pytest.raises(NotifyFailed, match=re.escape(host)) as failed:
        notifier.step()
    assert "secret" not in str(failed.value)


def test_a_child_that_stays_down_is_told_once(world, receiver, monkeypatch) -> None:
    monkeypatch.setattr(notifier_module, "DOWN_SECONDS", 0.0)
    notifier = world.notifier({"url": receiver.url})
    down = ChildActivity(name="serve", running=False, problem="ended with status 1")
    for children in ([down], [down], [], [down]):
        world.children = children
        notifier.step()
    assert [message["text"] for message in receiver.got] == ["mfmd: `mfmd serve` ended with status 1"] * 2


def test_rejections_are_told_at_every_third_in_a_row() -> None:
    verdicts = ["promoted", *["rejected", "inconclusive", "rejected"] * 2, "promoted", "rejected", "rejected"]
    history = [HistoryEvent(at=float(n), event=event, version=n, by="gate") for n, event in enumerate(verdicts)]
    told = happened(Told(history=0, alarms=0), history, None)
    assert [(item.event, item.version) for item in told] == [
        ("promoted", 0), ("rejections", REJECTIONS), ("rejections", 2 * REJECTIONS), ("promoted", 7),
    ]  # fmt: skip


def test_after_a_long_time_down_the_newest_messages_come(world, receiver) -> None:
    notifier = world.notifier({"url": receiver.url})
    notifier.step()
    second = world.add_version(parent=1)
    for number in range(NEWEST):
        world.registry.promote(1 + number % 2, by="operator", reason=str(number))
    notifier.step()
    assert len(receiver.got) == NEWEST and second == 2
    assert receiver.got[-1]["text"].endswith(f"by operator: {NEWEST - 1}")
