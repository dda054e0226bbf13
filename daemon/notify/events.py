"""What happened since a webhook was told last: pure functions over the history, drift and the children."""

from collections.abc import Sequence
from typing import NamedTuple

from configs.notify import NotifyEvent
from storage.gate.drift import Drift
from storage.gate.notified import Told
from storage.registry.history import AGAINST
from storage.registry.manifest import HistoryEvent

REJECTIONS = 3
"""Rounds without a promotion, in a row, that are worth a message; the next one comes after as many again."""


class Happened(NamedTuple):
    """One thing to tell."""

    event: NotifyEvent
    at: float
    """Unix time (seconds)."""
    text: str
    """One sentence."""
    after: Told
    """Where the webhook stands once it was told."""
    version: int | None = None
    round: int | None = None


def happened(told: Told, history: Sequence[HistoryEvent], drift: Drift | None) -> list[Happened]:
    """Return what happened after `told`, oldest first."""
    found, start = [], min(told.history, len(history))
    for place, item in enumerate(history[start:], start):
        after = told.model_copy(update={"history": place + 1})
        if item.event in ("promoted", "recalled", "rolled_back"):
            found.append(Happened(item.event, item.at, _moved(item), after, item.version, item.round))
        elif item.event in AGAINST and (row := _in_a_row(history[: place + 1])) % REJECTIONS == 0:
            text = f"{row} rounds in a row brought no better version; the last: {item.reason}"
            found.append(Happened("rejections", item.at, text, after, item.version, item.round))
    if drift is not None and drift.alarms > told.alarms and drift.last_alarm is not None:
        after = Told(history=len(history), alarms=drift.alarms)
        found.append(Happened("drift", drift.last_alarm, f"drift: {drift.reason}", after))
    return found


def _moved(item: HistoryEvent) -> str:
    verb = {"promoted": "serves", "recalled": "serves again", "rolled_back": "serves again after a rollback"}[
        item.event
    ]
    before = "" if item.previous is None else f" instead of version {item.previous}"
    return f"version {item.version} {verb}{before}, by {item.by}: {item.reason}"


def _in_a_row(history: Sequence[HistoryEvent]) -> int:
    """Return how many rounds up to the last event brought no promotion."""
    row = 0
    for item in reversed(history):
        if item.event == "promoted":
            break
        row += item.event in AGAINST
    return row
