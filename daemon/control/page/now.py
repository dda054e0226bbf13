"""The view Now: what serves, what comes in, the round that runs, and what to do about it."""

import math
from typing import Any

from fastapi import APIRouter
from fastapi.responses import HTMLResponse, JSONResponse

from daemon.control.page.view import HEADERS, View
from daemon.status.collect import collect_status
from daemon.status.model import Status
from daemon.status.plane_probe import describe_plane
from storage.errors import StorageError
from storage.registry.history import RegistryState
from storage.rounds.folder import RoundFolder, RoundStore
from storage.rounds.records import Progress

CURVE_POINTS = 300
"""Most points of a curve."""


def create_now(view: View) -> APIRouter:
    """Return the routes of the view."""
    router = APIRouter()
    context = view.context

    @router.get("/")
    def now(done: str = "") -> HTMLResponse:
        """Return the view."""
        status = collect_status(context.in_force.now)
        values = facts(status) | moves(status, context.registry.state())
        return view.show("now.html", active="now", done=done, **values)

    @router.get("/now")
    def live() -> HTMLResponse:
        """Return the part that changes by itself."""
        return view.show("now_live.html", **facts(collect_status(context.in_force.now)))

    @router.get("/curve")
    def curve() -> JSONResponse:
        """Return the losses of the round that runs, or of the newest one."""
        newest = RoundStore(context.layout.rounds).latest()
        return JSONResponse(curve_of(newest), headers=HEADERS)

    return router


def facts(status: Status) -> dict[str, Any]:
    """Return what the live part shows."""
    names = {item.number: item.name for item in status.conditions.conditions}
    current = status.conditions.current
    return {
        "status": status,
        "plane": describe_plane(status.plane),
        "condition": names.get(current, "no known one") if current else "no known one",
        "names": names,
        "progress": status.round.progress if status.round else None,
        "verdict": status.last_rounds[0] if status.last_rounds else None,
    }


def moves(status: Status, state: RegistryState) -> dict[str, Any]:
    """Return the versions to go back to and all others, newest first, each with its marks."""
    serving = status.serving
    others = [version for version in reversed(status.versions) if serving and version != serving.version]
    choices = [(version, ", ".join(state.marks(version))) for version in others]
    return {"behind": [choice for choice in choices if state.is_behind(choice[0])], "others": choices}


def curve_of(folder: RoundFolder | None) -> dict[str, object]:
    """Return step and losses of a round, at most `CURVE_POINTS` of each; no points without a round that trains."""
    try:
        lines = [] if folder is None else [line for line in folder.progress() if line.losses]
    except StorageError:
        lines = []  # the explanation of the round says what is damaged
    shown = _thinned(lines)
    names = sorted({name for line in shown for name in line.losses})
    return {
        "title": f"Loss of round {folder.number}" if folder is not None else "",
        "x": [line.step for line in shown],
        "series": [{"name": name, "y": [_finite(line.losses.get(name)) for line in shown]} for name in names],
    }


def _finite(value: float | None) -> float | None:
    """Return what JSON knows: no loss that is not finite."""
    return value if value is not None and math.isfinite(value) else None


def _thinned(lines: list[Progress]) -> list[Progress]:
    """Return at most `CURVE_POINTS` lines, the newest among them; a resumed round writes some steps again."""
    rising = list({line.step: line for line in lines}.values())
    every = -(-len(rising) // CURVE_POINTS) or 1
    return rising[::-1][::every][::-1]
