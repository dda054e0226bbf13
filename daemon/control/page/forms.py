"""Forms that change what serves: each asks for the control token and a reason, and carries the version it showed.

The token is asked for each time and no cookie is set, and the browser's headers show a form of another site. A form
that is sent twice, or after the ref moved, changes nothing.
"""

import re
import time
from collections.abc import Callable, Mapping
from urllib.parse import parse_qsl

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response
from starlette.concurrency import run_in_threadpool

from daemon.control.context import ControlContext
from daemon.control.errors import ApiError, status_of
from daemon.control.page.view import HEADERS, View
from daemon.errors import DaemonError
from daemon.gate import moves
from daemon.gate.suggestion import answer_suggestion
from daemon.net.token import same_token
from daemon.runtime.logs import get_logger
from storage.errors import StorageError
from storage.gate.pause import pause, resume
from storage.rounds.verdict import Answer

log = get_logger(__name__)

MOST_FORM_BYTES = 16 * 1024
MOST_FIELDS = 8
NUMBER = re.compile("[0-9]{1,9}")
BACK = re.compile("/([a-z]+(/[0-9]{1,9})?)?")
"""Where a form may lead back to: a view of this page."""
Form = dict[str, str]
Act = Callable[[ControlContext, Form], object]
"""What a form does. It raises ApiError, StorageError, DaemonError or OSError."""
Actions = Mapping[str, Act]
"""By name, which is the address of the form."""
NOT_DONE = {
    "rollback": "Not rolled back",
    "promote": "Not promoted",
    "approve": "Not approved",
    "reject": "Not rejected",
    "pin": "Not pinned",
    "unpin": "Not unpinned",
    "adapt": "No round begins",
    "pause": "Not paused",
    "resume": "Not resumed",
    "merge": "Not merged",
    "rename": "Not renamed",
    "forget": "Not forgotten",
    "retry": "Not retried",
    "suggest": "Nothing is suggested",
}
"""What the page says when a form could not do it, by its action."""


def create_forms(view: View, actions: Actions) -> APIRouter:
    """Return the routes of forms."""
    router = APIRouter()
    for action, act in actions.items():
        router.add_api_route(f"/{action}", _route(view, action, act), methods=["POST"])
    return router


def _route(view: View, action: str, act: Act) -> Callable[..., object]:
    async def send(request: Request) -> Response:
        try:
            form = await read_form(request, view.context)
            back = form.get("back", "/")
            if not BACK.fullmatch(back):
                raise ApiError(422, "invalid_request", "back must be a view of this page; reload the page")
            await run_in_threadpool(act, view.context, form)
        except (ApiError, StorageError, DaemonError, OSError) as error:
            return await run_in_threadpool(view.problem, NOT_DONE[action], str(error), status_of(error))
        return RedirectResponse(f"{back}?done={action}", 303, headers=HEADERS)

    return send


async def read_form(request: Request, context: ControlContext) -> Form:
    """Return the fields of a form. Raises ApiError for another site, a wrong token, no reason, or what is no form."""
    same_site(request)
    return check_form(_fields(await _body(request)), context)


def check_form(form: Form, context: ControlContext) -> Form:
    """Return a form with its reason stripped. Raises ApiError for a wrong token or no reason."""
    if not same_token(form.get("token", "").strip(), context.token):
        raise ApiError(401, "unauthorized", "wrong control token: see control.token in the documentation")
    form["reason"] = form.get("reason", "").strip()
    if not form["reason"]:
        raise ApiError(422, "invalid_request", "a reason is required; the history records it")
    return form


def number_of(form: Form, name: str) -> int:
    """Return a field that must be a number. Raises ApiError."""
    if not NUMBER.fullmatch(form.get(name, "")):
        raise ApiError(422, "invalid_request", f"{name} must be a number; reload the page")
    return int(form[name])


def same_site(request: Request) -> None:
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


def _fields(body: bytes) -> Form:
    """Return the fields of a urlencoded form, the first of each name. Raises ApiError if it is not one."""
    try:
        fields = parse_qsl(body.decode(), max_num_fields=MOST_FIELDS, keep_blank_values=True)
    except ValueError as error:
        raise ApiError(422, "invalid_request", f"not a form: {error}") from error
    return dict(reversed(fields))


def _roll_back(context: ControlContext, form: Form) -> None:
    shown = number_of(form, "serving")
    target = number_of(form, "to") if form.get("to") else None
    moves.roll_back(context.registry, to=target, by="operator", reason=form["reason"], expected=shown)


def _promote(context: ControlContext, form: Form) -> None:
    version, shown = number_of(form, "to"), number_of(form, "serving")
    moves.promote(context.registry, version, by="operator", reason=form["reason"], expected=shown)


def _decide(context: ControlContext, form: Form, *, approved: bool) -> None:
    number_of(form, "serving")
    answer = Answer(approved=approved, by="operator", reason=form["reason"], at=time.time())
    answer_suggestion(context.registry, context.in_force.now, number_of(form, "to"), answer)


def _adapt(context: ControlContext, form: Form) -> None:
    log.info("round_requested", round=context.rounds.request(), by="operator", reason=form["reason"])


ACTIONS: Actions = {
    "rollback": _roll_back,
    "promote": _promote,
    "approve": lambda context, form: _decide(context, form, approved=True),
    "reject": lambda context, form: _decide(context, form, approved=False),
    "pin": lambda context, form: context.registry.pin(number_of(form, "to"), by="operator", reason=form["reason"]),
    "unpin": lambda context, form: context.registry.unpin(number_of(form, "to"), by="operator", reason=form["reason"]),
    "adapt": _adapt,
    "pause": lambda context, form: pause(context.layout, by="operator", reason=form["reason"]),
    "resume": lambda context, form: resume(context.layout, by="operator", reason=form["reason"]),
}
"""The forms that change what serves."""
