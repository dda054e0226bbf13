"""The view Label: canary labels that count, frames to label with pre-filled masks, and an upload of corrected ones."""

import asyncio

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse, Response
from python_multipart.exceptions import FormParserError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException

from daemon.control.context import ControlContext
from daemon.control.errors import ApiError, status_of
from daemon.control.label_tasks import LabelTasks
from daemon.control.page.forms import Form, check_form, create_forms, number_of, same_site
from daemon.control.page.view import HEADERS, View
from daemon.control.server import UPLOAD
from storage.canary.images import canary_sizes
from storage.canary.records import LEAST_IMAGES, CanaryState
from storage.durable.record import read_record
from storage.errors import StorageError

MOST_FRAMES = 50
"""Most frames that are suggested at once."""
MOST_FIELDS = 8
SHOWN = 200
"""Most images that are listed."""


def create_label(view: View) -> APIRouter:
    """Return the routes of the view and of its forms."""
    router = APIRouter()
    router.include_router(create_forms(view, {"suggest": _suggest}))
    context, tasks = view.context, view.context.labels
    uploading = asyncio.Lock()

    @router.get("/label")
    def label(done: str = "") -> HTMLResponse:
        """Show what counts, the newest command, and the forms."""
        problem, state, sizes = "", None, list[tuple[str, int, int]]()
        try:
            state = read_record(context.layout.canary / "state.json", CanaryState)
            sizes = canary_sizes(context.in_force.now, context.layout)
        except StorageError as error:
            problem = str(error)
        return view.show(
            "label.html", active="label", done=done, problem=problem, state=state, least=LEAST_IMAGES,
            sizes=sizes[:SHOWN], more=max(0, len(sizes) - SHOWN), task=tasks.task(), most=MOST_FRAMES,
            ready=tasks.archive() is not None,
        )  # fmt: skip

    @router.get("/label/suggestions.zip")
    def suggestions() -> Response:
        """Return the suggested frames with pre-filled masks."""
        made = tasks.archive()
        if made is None:
            return view.problem("No suggestions", "Nothing is suggested yet; ask for it in the view Label.", 404)
        return FileResponse(made, filename="mfmd-label.zip", headers=HEADERS)

    @router.post(UPLOAD)
    async def upload(request: Request) -> Response:
        """Take a zip archive with corrected masks, and start to add it."""
        try:
            same_site(request)
            if uploading.locked():  # what nobody vouched for yet lies on the disk until its form is whole
                raise ApiError(409, "label_task_running", "another upload arrives; try again")
            async with uploading, request.form(max_files=1, max_fields=MOST_FIELDS) as form:
                await run_in_threadpool(_take, context, tasks, form)
        except (FormParserError, HTTPException) as error:  # a broken form, too many parts
            text = str(getattr(error, "detail", error))
            return await run_in_threadpool(view.problem, "Not uploaded", f"not a form with a file: {text}", 422)
        except (ApiError, OSError) as error:
            return await run_in_threadpool(view.problem, "Not uploaded", str(error), status_of(error))
        return RedirectResponse("/label?done=upload", 303, headers=HEADERS)

    return router


def _suggest(context: ControlContext, form: Form) -> None:
    count = number_of(form, "count")
    if not 1 <= count <= MOST_FRAMES:
        raise ApiError(422, "invalid_request", f"count must be between 1 and {MOST_FRAMES}")
    context.labels.suggest(count)


def _take(context: ControlContext, tasks: LabelTasks, form: FormData) -> None:
    """Check token, reason and file, and start to add it. Raises ApiError."""
    check_form({name: value for name, value in form.items() if isinstance(value, str)}, context)
    file = form.get("file")
    if not isinstance(file, UploadFile) or not file.size:
        raise ApiError(422, "invalid_request", "choose a zip archive")
    tasks.add(file.file, unchanged=form.get("unchanged") == "yes")
