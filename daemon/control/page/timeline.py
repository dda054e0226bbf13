"""The timeline of the view Versions: rounds, verdicts, moves of what serves, and drift alarms on one axis."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from daemon.rounds.history import RoundSummary
from storage.gate.drift import Drift
from storage.registry.history import MOVES
from storage.registry.manifest import HistoryEvent

Kind = Literal["round", "judged", "promoted", "recalled", "rolled_back", "drift", "other"]
LANES = ("round", "verdict", "serving", "drift")
LANE_OF: dict[Kind, str] = {
    "round": "round", "judged": "verdict", "promoted": "serving", "recalled": "serving", "rolled_back": "serving",
    "drift": "drift",
}  # fmt: skip
SHAPES: dict[Kind, str] = {
    "round": "M-5,-5h10v10h-10z", "judged": "M0,-6L6,0L0,6L-6,0z", "promoted": "M0,-7L7,5L-7,5z",
    "recalled": "M-6,0a6,6 0 1,0 12,0a6,6 0 1,0 -12,0z", "rolled_back": "M0,7L7,-5L-7,-5z",
    "drift": "M-2,-7h4v8h-4zM-2,3h4v4h-4z",
}  # fmt: skip
"""Outline of each mark: colour alone does not tell them apart."""
WIDTH, MARGIN, LANE_HEIGHT = 1000, 70, 34
"""Of the drawing (units of its view box)."""


@dataclass(frozen=True, slots=True)
class Moment:
    """One thing that happened."""

    at: float
    """When (Unix, seconds)."""
    kind: Kind
    """What kind."""
    title: str
    """In a few words."""
    reason: str
    """Why, or who."""
    href: str = ""
    """The view that says more."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A moment in the drawing."""

    moment: Moment
    x: float
    y: float


@dataclass(frozen=True, slots=True)
class Timeline:
    """A drawing: `WIDTH` by `height` units."""

    marks: tuple[Mark, ...]
    lanes: tuple[tuple[str, float], ...]
    ticks: tuple[tuple[float, float], ...]
    """Time (Unix, seconds) and place of each label of the axis."""
    height: float


def moments(events: Iterable[HistoryEvent], rounds: Iterable[RoundSummary], drift: Drift | None) -> list[Moment]:
    """Return everything that happened, newest first."""
    found = [_of_event(event) for event in events]
    for item in rounds:
        why = f"by {item.trigger or 'unknown'}, {item.effort}: {item.result}"
        if item.created is not None:
            found.append(Moment(item.created, "round", f"round {item.round} began", why, f"/rounds/{item.round}"))
        if item.trigger == "drift" and item.created is not None:
            found.append(Moment(item.created, "drift", f"drift began round {item.round}", why, f"/rounds/{item.round}"))
    if drift is not None and drift.last_alarm is not None:
        found.append(Moment(drift.last_alarm, "drift", "drift alarm", drift.reason))
    return sorted(found, key=lambda moment: moment.at, reverse=True)


def _of_event(event: HistoryEvent) -> Moment:
    kind: Kind = "judged" if event.event in ("rejected", "inconclusive") else "other"
    if event.event in MOVES:
        kind = event.event  # type: ignore[assignment]
    name = event.event.replace("_", " ")
    title = f"{name}: version {event.version}" if event.version is not None else name
    if event.previous is not None and event.event in MOVES:
        title += f" instead of {event.previous}"
    href = f"/rounds/{event.round}" if kind == "judged" and event.round else ""
    href = href or (f"/versions/{event.version}" if event.version is not None else "")
    return Moment(event.at, kind, title, f"{event.by}: {event.reason}" if event.reason else event.by, href)


def draw(shown: Sequence[Moment]) -> Timeline:
    """Place moments, newest first, on one axis of time; those of the same lane that would hide each other step down."""
    placed = [moment for moment in reversed(shown) if moment.kind in LANE_OF]
    begin, end = (placed[0].at, placed[-1].at) if placed else (0.0, 0.0)
    scale = (WIDTH - 2 * MARGIN) / ((end - begin) or 1.0)
    marks, last = [], dict[str, tuple[float, int]]()
    for moment in placed:
        lane = LANE_OF[moment.kind]
        x = MARGIN + (moment.at - begin) * scale
        before, step = last.get(lane, (-WIDTH, 0))
        step = (step + 1) % 3 if x - before < 10 else 0
        last[lane] = (x, step)
        marks.append(Mark(moment, round(x, 1), 14 + LANES.index(lane) * LANE_HEIGHT + 7 * step))
    lanes = tuple((name, 18.0 + place * LANE_HEIGHT) for place, name in enumerate(LANES))
    ticks = tuple((begin + share * (end - begin), MARGIN + share * (WIDTH - 2 * MARGIN)) for share in (0.0, 0.5, 1.0))
    return Timeline(tuple(marks), lanes, ticks if placed else (), len(LANES) * LANE_HEIGHT + 30)
