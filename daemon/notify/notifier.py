"""Tell webhooks what happens. Nothing waits for them: the notifier has its own thread, and each answer a deadline.

A message counts as told when the webhook answers 2xx. What it was told is on the disk, so a restart loses nothing and a
kill repeats one message at most. A webhook that is down gets the newest messages when it answers again.
"""

import hashlib
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any

import httpx

from configs.notify import NotifySettings
from configs.settings import Settings
from daemon.errors import NotifyFailed
from daemon.metrics import NotifyMetrics
from daemon.notify.events import Happened, happened
from daemon.runtime.activity import ChildActivity
from storage import durable
from storage.durable.record import read_record
from storage.gate.drift import Drift
from storage.gate.notified import Notified, Told
from storage.layout import StateLayout
from storage.registry.registry import CheckpointRegistry

POLL_SECONDS = 1.0
ANSWER_SECONDS = 5.0
"""Longest wait for a connection, and for each part of an answer (seconds)."""
DOWN_SECONDS = 15.0
"""A child that does not do its work for so long is told; a restart takes a few seconds."""
NEWEST = 20
"""Messages that a webhook gets after it was down for long; older ones are omitted."""


class Notifier:
    """Tells every configured webhook. `step` belongs to one thread."""

    def __init__(
        self,
        settings: Settings,
        registry: CheckpointRegistry,
        children: Callable[[], Sequence[ChildActivity]],
        metrics: NotifyMetrics,
    ) -> None:
        """`children`: what the supervisor says of its processes."""
        self.settings = settings
        """Of the next step; a reload replaces them."""
        self._layout, self._registry = StateLayout(settings.state), registry
        self._children, self._metrics = children, metrics
        self._down: dict[str, float] = {}
        """When each child was first seen down (monotonic, seconds)."""
        self._told_down: set[tuple[str, str]] = set()
        """Webhook and child, until the child is up again."""

    def step(self) -> float:
        """Tell what is new; return the seconds until the next call. Raises NotifyFailed after trying every webhook."""
        targets = {_key(target): target for target in self.settings.notify}
        if not targets:
            return POLL_SECONDS
        record = read_record(self._layout.notified, Notified, f"; remove {self._layout.notified}") or Notified()
        history, drift = self._registry.history(), read_record(self._layout.drift, Drift)
        now = Told(history=len(history), alarms=0 if drift is None else drift.alarms)
        record = Notified(told={key: told for key, told in record.told.items() if key in targets})
        down, problems = self._children_down(), list[str]()
        for key, target in targets.items():
            told = record.told.get(key, now)  # a new webhook is told what happens from now on
            try:
                for item in happened(told, history, drift)[-NEWEST:]:
                    self._tell(target, item.event, _message(item))
                    record = self._noted(record, key, item.after)
                for child in down:
                    if (key, child.name) not in self._told_down:
                        self._tell(target, "child_down", _down_message(child))
                        self._told_down.add((key, child.name))
                record = self._noted(record, key, now)
            except NotifyFailed as error:
                problems.append(str(error))
                record = self._noted(record, key, told) if key not in record.told else record
        if problems:
            raise NotifyFailed("; ".join(problems))
        return POLL_SECONDS

    def _noted(self, record: Notified, key: str, told: Told) -> Notified:
        """Return and write where a webhook stands."""
        if record.told.get(key) == told:
            return record
        record = Notified(told={**record.told, key: told})
        durable.write_record(self._layout.notified, record)
        return record

    def _children_down(self) -> list[ChildActivity]:
        """Return the children that have not done their work for long enough."""
        broken = {child.name: child for child in self._children() if child.problem}
        clock = time.monotonic()
        self._down = {name: self._down.get(name, clock) for name in broken}
        self._told_down = {told for told in self._told_down if told[1] in broken}
        return [broken[name] for name, since in self._down.items() if clock - since >= DOWN_SECONDS]

    def _tell(self, target: NotifySettings, event: str, message: dict[str, Any]) -> None:
        """Send one message unless the webhook does not want it. Raises NotifyFailed, which never shows the address."""
        if event not in target.on:
            return
        body = {**message, "state": str(self._layout.root), "machine": socket.gethostname()}
        try:
            with httpx.stream("POST", target.url.get_secret_value(), json=body, timeout=ANSWER_SECONDS) as answer:
                status = answer.status_code
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:  # ValueError: a host that is no name
            self._metrics.results.labels(result="failed").inc()
            raise NotifyFailed(f"{target.host}: {type(error).__name__}; it is tried again") from error
        told = 200 <= status < 300
        self._metrics.results.labels(result="ok" if told else "failed").inc()
        if not told:
            raise NotifyFailed(f"{target.host} answered {status}; it is tried again")


def _key(target: NotifySettings) -> str:
    return hashlib.sha256(target.url.get_secret_value().encode()).hexdigest()[:16]


def _message(item: Happened) -> dict[str, Any]:
    facts = {"event": item.event, "at": item.at, "version": item.version, "round": item.round}
    return {"text": f"mfmd: {item.text}", **facts}


def _down_message(child: ChildActivity) -> dict[str, Any]:
    return {"text": f"mfmd: `mfmd {child.name}` {child.problem}", "event": "child_down", "at": time.time()}
