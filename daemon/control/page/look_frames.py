"""The frames to choose from in the view Look, and what the address of that view asks for."""

import re
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Query
from fastapi.responses import HTMLResponse

from daemon.control.errors import ApiError
from daemon.control.messages import LARGEST_NUMBER
from daemon.control.page.look_pictures import Palette, frame_address
from daemon.control.page.view import View
from daemon.looks.lookup import Lookup
from storage.buffer.catalog_records import FrameRecord
from storage.looks.store import NoLook

SHOWN = 16
"""Frames to choose from on one page."""
MOST_VERSIONS = 3
"""Versions side by side."""
NUMBER = re.compile("[1-9][0-9]{0,8}")


class Wanted(NamedTuple):
    """What an address asks for."""

    frame: int | None
    versions: list[int]
    colors: Palette
    skip: int
    """Newest frames that are left out of the choice."""

    def address(self, path: str = "/look", **changes: object) -> str:
        """Return the address of the view with changes."""
        wanted = self._replace(**changes)  # type: ignore[arg-type]
        fields: list[tuple[str, object]] = [] if wanted.frame is None else [("frame", wanted.frame)]
        fields += [("version", version) for version in wanted.versions]
        fields += [("colors", wanted.colors)] if wanted.colors != "own" else []
        fields += [("skip", wanted.skip)] if wanted.skip else []
        return f"{path}?{urlencode(fields)}" if fields else path


def _wanted(
    frame: str = "",
    version: Annotated[list[str], Query()] = [],  # noqa: B006
    colors: Palette = "own",
    skip: Annotated[int, Query(ge=0, le=LARGEST_NUMBER)] = 0,
) -> Wanted | None:
    """Return what an address asks for; empty fields of a form do not count. None when it means nothing."""
    frame, versions = frame.strip(), [item.strip() for item in version if item.strip()]
    if not all(map(NUMBER.fullmatch, [*versions, frame or "1"])):
        return None
    chosen = [*dict.fromkeys(map(int, versions))]
    return Wanted(int(frame) if frame else None, chosen[:MOST_VERSIONS], colors, skip)


AskedFor = Annotated[Wanted | None, Depends(_wanted)]
"""Parameter of a route."""


def create_frames(view: View) -> APIRouter:
    """Return the route of the part that changes by itself."""
    router = APIRouter()

    @router.get("/look/frames")
    def frames(wanted: AskedFor) -> HTMLResponse:
        """Return the frames to choose from."""
        if wanted is None:
            raise ApiError(422, "invalid_request", "frame and version must be numbers")
        found = Lookup(view.context.in_force.now, view.context.registry).newest(SHOWN + 1, wanted.skip)
        return view.show("look_frames.html", **choice([] if isinstance(found, NoLook) else found, wanted))

    return router


def choice(found: Sequence[FrameRecord], wanted: Wanted) -> dict[str, Any]:
    """Return what the template shows of `SHOWN` + 1 frames, newest first, of which the last is on the next page."""
    return {
        "wanted": wanted,
        "frames": [(item, frame_address(item, small=True)) for item in found[:SHOWN]],
        "older": wanted.skip + SHOWN if len(found) > SHOWN else None,
        "newer": max(0, wanted.skip - SHOWN) if wanted.skip else None,
    }
