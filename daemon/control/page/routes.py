"""The routes of the page: its views, its forms, its events, and the files that browsers load."""

from importlib import resources

from fastapi import APIRouter
from fastapi.responses import Response

from daemon.control.errors import ApiError
from daemon.control.page.conditions import create_conditions
from daemon.control.page.events import create_events
from daemon.control.page.files import create_files
from daemon.control.page.forms import ACTIONS, create_forms
from daemon.control.page.label import create_label
from daemon.control.page.look import create_look
from daemon.control.page.now import create_now
from daemon.control.page.versions import create_versions
from daemon.control.page.view import View

MEDIA_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
FILE_HEADERS = {"Cache-Control": "public, max-age=31536000, immutable", "X-Content-Type-Options": "nosniff"}


def create_page(view: View) -> APIRouter:
    """Return the routes of the page."""
    router = APIRouter(include_in_schema=False)
    for part in (
        create_now(view),
        create_look(view),
        create_versions(view),
        create_conditions(view),
        create_files(view),
        create_label(view),
        create_forms(view, ACTIONS),
        create_events(view.context),
        _files(),
    ):
        router.include_router(part)
    return router


def _files() -> APIRouter:
    router = APIRouter()
    known = {item.name: item for item in (resources.files(__package__) / "static").iterdir()}

    @router.get("/static/{name}")
    def file(name: str) -> Response:
        """Return a style sheet, script or picture of the page."""
        found = known.get(name)
        kind = MEDIA_TYPES.get(name[name.rfind(".") :])
        if found is None or kind is None:
            raise ApiError(404, "not_found", f"the page has no file {name!r}")
        return Response(found.read_bytes(), media_type=kind, headers=FILE_HEADERS)

    return router
