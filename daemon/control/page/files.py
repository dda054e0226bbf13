"""The view Files: files that ingest refused, with the reason and a way to retry them, and the newest that it took."""

from contextlib import closing
from typing import Annotated
from urllib.parse import quote, unquote

from fastapi import APIRouter, Query
from fastapi.responses import HTMLResponse

from daemon.control.context import ControlContext
from daemon.control.errors import ApiError, status_of
from daemon.control.messages import LARGEST_NUMBER
from daemon.control.page.forms import Form, create_forms
from daemon.control.page.look_pictures import frame_address
from daemon.control.page.view import View
from daemon.ingest.refusals import Selection, retry_videos
from daemon.runtime.logs import get_logger
from storage.buffer.catalog import Catalog
from storage.buffer.catalog_records import FileRecord
from storage.buffer.video_records import refused_videos
from storage.errors import StorageError
from storage.layout import StateLayout

SHOWN = 50
"""Refused files on one page."""
NEWEST = 20
"""Newest frames that are shown."""

log = get_logger(__name__)


def create_files(view: View) -> APIRouter:
    """Return the routes of the view and of its form."""
    router = APIRouter()
    router.include_router(create_forms(view, {"retry": _retry}))
    layout = view.context.layout

    @router.get("/files")
    def files(
        done: str = "", reason: str = "", skip: Annotated[int, Query(ge=0, le=LARGEST_NUMBER)] = 0
    ) -> HTMLResponse:
        """Show refused files, `skip` of the newest left out, and the newest frames."""
        if not layout.catalog.exists():
            return view.show("files.html", active="files", done=done, counts=None)
        try:
            with closing(Catalog.open(layout.catalog, writable=False)) as catalog:
                counts, frames = catalog.counts(), catalog.newest(NEWEST)
                found = _refused(layout, catalog, skip + SHOWN + 1, reason)
        except StorageError as error:
            return view.problem("The files cannot be read", str(error), status_of(error))
        return view.show(
            "files.html",
            active="files",
            done=done,
            counts=counts,
            frames=[(record, frame_address(record, small=True)) for record in frames],
            refused=[(item, quote(item.path)) for item in found[skip : skip + SHOWN]],
            reason=reason,
            reasons=sorted({*counts.refused, *(item.reason for item in refused_videos(layout.videos))}),
            older=skip + SHOWN if len(found) > skip + SHOWN else None,
            newer=max(0, skip - SHOWN) if skip else None,
        )

    return router


def _refused(layout: StateLayout, catalog: Catalog, limit: int, reason: str) -> list[FileRecord]:
    """Return refused images and videos, newest first; of one reason if it is given."""
    found = [*catalog.refused(limit, reason=reason or None), *refused_videos(layout.videos, reason or None)]
    return sorted(found, key=lambda item: item.at, reverse=True)


def _retry(context: ControlContext, form: Form) -> None:
    """Retry one file, those of a reason, or all. Raises ApiError when none of them is refused."""
    path, code = form.get("path", ""), form.get("code", "")
    paths = frozenset({unquote(path)} if path else ())
    selection = Selection(paths, code or None)
    retried = context.retries.ask(selection)
    retried += retry_videos(context.in_force.now.watch, context.layout.videos, selection)
    if not retried:
        raise ApiError(409, "not_refused", "no such file is refused any more; reload the page")
    log.info("refused_retried", files=len(retried), by="operator", reason=form["reason"])
