"""The operator's page on the control plane: what serves, and forms to roll back and to promote. HTML, no assets.

The form asks for the control token each time and sets no cookie, and the browser's headers show a form of another site.
It carries the version that was shown: sent twice, or after the ref moved, it changes nothing.
"""

import re
import time
from typing import Annotated, Literal
from urllib.parse import parse_qsl

from fastapi import APIRouter, Path, Request
from fastapi.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.concurrency import run_in_threadpool

from configs.settings import Settings
from daemon.control.errors import ApiError, status_of
from daemon.control.messages import LARGEST_NUMBER
from daemon.control.page_html import STYLE_HASH, render
from daemon.gate import promotion
from daemon.gate.suggestion import answer_suggestion
from daemon.net.token import same_token
from daemon.runtime.in_force import SettingsInForce
from daemon.status.collect import collect_status
from daemon.status.explained import explained_round, explained_version
from storage.errors import StorageError
from storage.layout import StateLayout
from storage.registry.registry import CheckpointRegistry
from storage.rounds.records import Answer

MOST_FORM_BYTES = 16 * 1024
MOST_FIELDS = 8
NUMBER = re.compile("[0-9]{1,9}")
NOT_DONE = {
    "rollback": "Not rolled back",
    "promote": "Not promoted",
    "approve": "Not approved",
    "reject": "Not rejected",
}
HEADERS = {
    "Content-Security-Policy": f"default-src 'none'; style-src '{STYLE_HASH}'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""The page runs no script, loads nothing, stands in no frame, and is kept by no cache."""


def create_page(in_force: SettingsInForce, registry: CheckpointRegistry, token: str) -> APIRouter:
    """Return the routes of the page."""
    router = APIRouter(include_in_schema=False)

    def show(notice: tuple[str, str] | None = None, status: int = 200) -> HTMLResponse:
        text = render(collect_status(in_force.now), registry, notice)
        return HTMLResponse(text, status, headers=HEADERS)

    @router.get("/")
    def page() -> HTMLResponse:
        """Return the page."""
        return show()

    @router.get("/explain/{kind}/{number}")
    def explain(kind: Literal["round", "version"], number: Annotated[int, Path(ge=1, le=LARGEST_NUMBER)]) -> Response:
        """Return the explanation of a round or a version as plain text."""
        explained = explained_round if kind == "round" else explained_version
        try:
            found = explained(StateLayout(in_force.now.state), number)
        except StorageError as error:
            return show((f"No explanation of {kind} {number}", str(error)), status_of(error))
        return PlainTextResponse(found.as_text() + "\n", headers=HEADERS)

    @router.post("/rollback")
    @router.post("/promote")
    @router.post("/approve")
    @router.post("/reject")
    async def move(request: Request) -> Response:
        """Check a form's token and fields, move the ref, and redirect to the page."""
        action = request.url.path.strip("/")
        try:
            _same_site(request)
            form = _form(await _body(request))
            if not same_token(form.get("token", "").strip(), token):
                raise ApiError(401, "unauthorized", "wrong control token: see control.token in the documentation")
            await run_in_threadpool(_move, registry, in_force.now, form, action)
        except (ApiError, StorageError) as error:
            notice = (NOT_DONE[action], str(error))
            return await run_in_threadpool(show, notice, status_of(error))
        return RedirectResponse("/", 303, headers=HEADERS)

    return router


def _move(registry: CheckpointRegistry, settings: Settings, form: dict[str, str], action: str) -> None:
    """Do what the form says. Raises ApiError if it lacks the version that it showed, or a reason."""
    back = action == "rollback"
    to, shown, reason = form.get("to", ""), form.get("serving", ""), form.get("reason", "").strip()
    if not (NUMBER.fullmatch(shown) and ((back and not to) or NUMBER.fullmatch(to))):
        raise ApiError(422, "invalid_request", "serving and to must be version numbers; reload the page")
    if not reason:
        raise ApiError(422, "invalid_request", "a reason is required; the history records it")
    if back:
        target = int(to) if to else None
        promotion.roll_back(registry, to=target, by="operator", reason=reason, expected=int(shown))
    elif action in ("approve", "reject"):
        answer = Answer(approved=action == "approve", by="operator", reason=reason, at=time.time())
        answer_suggestion(registry, settings, int(to), answer)
    else:
        promotion.promote(registry, int(to), by="operator", reason=reason, expected=int(shown))


def _same_site(request: Request) -> None:
    """Raise ApiError if the browser's headers say that the form came from another site."""
    origin, site = request.headers.get("origin"), request.headers.get("sec-fetch-site")
    foreign = origin is not None and origin.partition("://")[2] != request.headers.get("host", "")
    if site is not None:  # says it better: a proxy may change the host that we see
        foreign = site not in ("same-origin", "none")
    if foreign:
        raise ApiError(403, "foreign_site", "the form was sent from another site; open this page and send it from here")


async def _body(request: Request) -> bytes:
    """Return the body. Raises ApiError beyond `MOST_FORM_BYTES`."""
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > MOST_FORM_BYTES:
            raise ApiError(413, "invalid_request", f"a form of more than {MOST_FORM_BYTES} bytes")
    return bytes(data)


def _form(body: bytes) -> dict[str, str]:
    """Return the fields of a urlencoded form, the first of each name. Raises ApiError if it is not one."""
    try:
        fields = parse_qsl(body.decode(), max_num_fields=MOST_FIELDS, keep_blank_values=True)
    except ValueError as error:
        raise ApiError(422, "invalid_request", f"not a form: {error}") from error
    return dict(reversed(fields))
