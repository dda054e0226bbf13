"""The view Look: a frame through several versions side by side, where they disagree, and how much each class has."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from itertools import zip_longest
from typing import NamedTuple

from fastapi import APIRouter
from fastapi.responses import HTMLResponse
from starlette.concurrency import run_in_threadpool

from daemon.control.context import ControlContext
from daemon.control.page.look_frames import MOST_VERSIONS, SHOWN, AskedFor, Wanted, choice, create_frames
from daemon.control.page.look_panes import ClassRow, Pane, Seen, legend, make_panes
from daemon.control.page.look_pictures import PALETTES, create_pictures, frame_address
from daemon.control.page.view import View
from daemon.gate.suggestion import waiting_version
from daemon.looks.lookup import NO_FRAMES, Lookup
from storage.buffer.catalog_records import FrameRecord
from storage.errors import StorageError
from storage.looks.store import NoLook
from storage.registry.manifest import Manifest
from storage.rounds.folder import RoundStore

PLACES = ("Left", "Middle", "Right")
"""Of the versions side by side."""
WAIT_SECONDS = 2.0
"""How long the view waits for the observer (seconds); then it shows what there is, and asks again."""
COMING = ("waiting", "too_many")
"""States after which the view asks again by itself."""
ROLES = ("previous", "serving", "candidate")
"""In the order in which they are shown."""


def create_look(view: View) -> APIRouter:
    """Return the routes of the view and of its parts."""
    router = APIRouter()
    router.include_router(create_pictures(view))
    router.include_router(create_frames(view))

    @router.get("/look")
    async def look(wanted: AskedFor) -> HTMLResponse:
        """Show a frame, the newest if none is named, through versions."""
        if wanted is None:
            return view.problem("No such view", "frame and version must be numbers; choose them in the form", 422)
        return await _show(view, wanted)

    return router


async def _show(view: View, wanted: Wanted) -> HTMLResponse:
    start = await run_in_threadpool(_start, view.context, wanted)
    found = zip(start.versions, start.manifests, strict=True)
    seen = await asyncio.gather(*(_seen(start, version, manifest) for version, manifest in found))
    return await run_in_threadpool(_rendered, view, wanted, start, seen)


class _Start(NamedTuple):
    """What is known before the observer is asked."""

    lookup: Lookup
    frames: list[FrameRecord]
    record: FrameRecord | NoLook
    """The frame to show."""
    roles: dict[int, str]
    """Versions that have a part now, and which."""
    versions: list[int]
    """Versions to show."""
    manifests: list[Manifest | NoLook]
    """Of these versions."""


def _start(context: ControlContext, wanted: Wanted) -> _Start:
    lookup = Lookup(context.in_force.now, context.registry)
    roles, newest = _roles(context), lookup.newest(SHOWN + 1, wanted.skip)
    frames, record = ([], newest) if isinstance(newest, NoLook) else (newest, newest[0])
    if wanted.frame is not None and frames:
        record = lookup.frame(wanted.frame)
    versions = wanted.versions or _usual(context, roles)
    return _Start(lookup, frames, record, roles, versions, [lookup.version(version) for version in versions])


async def _seen(start: _Start, version: int, manifest: Manifest | NoLook) -> Seen:
    if isinstance(manifest, NoLook) or isinstance(start.record, NoLook):
        return Seen(version, manifest, NO_FRAMES)
    return Seen(version, manifest, await start.lookup.labels(start.record, manifest, WAIT_SECONDS))


def _rendered(view: View, wanted: Wanted, start: _Start, seen: Sequence[Seen]) -> HTMLResponse:
    record, panes, classes = start.record, list[Pane](), list[ClassRow]()
    serving = [place for place, version in enumerate(start.versions) if start.roles.get(version) == "serving"]
    reference = serving[0] if serving else 0
    if isinstance(record, FrameRecord):
        wanted = wanted._replace(frame=record.id, versions=start.versions)
        panes = make_panes(record, seen, wanted.colors, reference)
        classes = legend(seen, panes, wanted.colors, reference)
    return view.show(
        "look.html",
        active="look",
        **choice(start.frames, wanted),
        before=next((item.id for item in start.frames if item.id < (wanted.frame or 0)), None),
        after=next((item.id for item in start.frames[::-1] if item.id > (wanted.frame or 0)), None),
        record=record if isinstance(record, FrameRecord) else None,
        picture=frame_address(record) if isinstance(record, FrameRecord) else "",
        problem=record if isinstance(record, NoLook) else None,
        panes=panes,
        reference=start.versions[reference] if panes else None,
        classes=classes,
        roles=start.roles,
        waits=any(pane.problem is not None and pane.problem.state in COMING for pane in panes),
        observer=observer_problem(view.context),
        choices=view.context.registry.versions()[::-1],
        palettes=PALETTES,
        places=[*zip_longest(PLACES, start.versions)],
    )


def _roles(context: ControlContext) -> dict[int, str]:
    """Return the versions that have a part now, and which; the one that serves is nothing else."""
    refs, _ = context.registry.readable_refs()
    candidate = refs["shadow"].version if "shadow" in refs else None
    with suppress(StorageError):  # Now says what is damaged
        candidate = waiting_version(RoundStore(context.layout.rounds)) or candidate
    roles: dict[int, str] = {refs[name].version: name for name in ("previous", "serving") if name in refs}
    newest = max(context.registry.versions(), default=0)
    if candidate is None and roles and newest > max(roles):
        candidate = newest
    return roles if candidate is None else {candidate: "candidate", **roles}


def _usual(context: ControlContext, roles: dict[int, str]) -> list[int]:
    """Return previous, serving and candidate; the newest versions while no ref can be read."""
    newest = context.registry.versions()[-MOST_VERSIONS:]
    return sorted(roles, key=lambda version: ROLES.index(roles[version])) or newest


def observer_problem(context: ControlContext) -> str:
    """Return why the observer does not work at the moment; empty when it does, or is off."""
    found = next((child for child in context.activity().children if child.name == "observe"), None)
    if found is None or (found.running and not found.problem):
        return ""
    return found.problem or found.reason or "it does not run; the daemon starts it again"
