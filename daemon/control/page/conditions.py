"""The view Conditions: what is known of the stream, the version that is best in each condition, and golden frames."""

from collections.abc import Sequence
from contextlib import closing
from typing import Annotated

from fastapi import APIRouter, Path
from fastapi.responses import HTMLResponse

from daemon.control.context import ControlContext
from daemon.control.errors import status_of
from daemon.control.messages import LARGEST_NUMBER
from daemon.control.page.forms import Actions, Form, create_forms, number_of
from daemon.control.page.look_pictures import frame_address
from daemon.control.page.view import View
from daemon.gate.changes import ConditionChange
from daemon.runtime.logs import get_logger
from daemon.status.conditions import ConditionsStatus, describe_condition, describe_conditions
from storage.buffer.catalog import Catalog
from storage.errors import StorageError
from storage.gate.conditions import ConditionStore

Number = Annotated[int, Path(ge=1, le=LARGEST_NUMBER)]

log = get_logger(__name__)


def create_conditions(view: View) -> APIRouter:
    """Return the routes of the view and of its forms."""
    router = APIRouter()
    router.include_router(create_forms(view, ACTIONS))
    context = view.context
    store = ConditionStore(context.layout.conditions)

    @router.get("/conditions")
    def conditions(done: str = "") -> HTMLResponse:
        """Show all known conditions."""
        try:
            known = describe_conditions(store.read())
        except StorageError as error:
            return view.problem("The conditions cannot be read", str(error), status_of(error))
        strays = _strays(known)
        return view.show("conditions.html", active="conditions", done=done, known=known, strays=strays)

    @router.get("/conditions/{number}")
    def condition(number: Number, done: str = "") -> HTMLResponse:
        """Show one condition, its golden frames and its distances from the others."""
        try:
            known = store.read()
            with closing(Catalog.open(context.layout.catalog, writable=False)) as catalog:
                told = describe_condition(known, number, catalog)
                records = catalog.records(ids=list(told.golden_frames))
        except StorageError as error:
            return view.problem(f"No view of condition {number}", str(error), status_of(error))
        return view.show(
            "condition.html",
            active="conditions",
            done=done,
            told=told,
            item=told.summary,
            pictures={record.id: frame_address(record, small=True) for record in records},
            others=[item for item in describe_conditions(known).conditions if item.number != number],
        )

    return router


def _strays(known: ConditionsStatus) -> Sequence[str]:
    """Return the cameras whose newest frames are of no known condition."""
    numbers = {item.number for item in known.conditions}
    return [camera or "(no label)" for camera, number in known.cameras.items() if number not in numbers]


def _change(context: ControlContext, form: Form, change: ConditionChange) -> None:
    context.gate.change(change)
    log.info("condition_changed", by="operator", reason=form["reason"], **change.model_dump(exclude_defaults=True))


def _merge(context: ControlContext, form: Form) -> None:
    number, into = number_of(form, "number"), number_of(form, "into")
    _change(context, form, ConditionChange(kind="merge", number=number, into=into))


def _rename(context: ControlContext, form: Form) -> None:
    name = form.get("name", "").strip()
    _change(context, form, ConditionChange(kind="rename", number=number_of(form, "number"), name=name))


def _forget(context: ControlContext, form: Form) -> None:
    _change(context, form, ConditionChange(kind="forget", number=number_of(form, "number")))


ACTIONS: Actions = {"merge": _merge, "rename": _rename, "forget": _forget}
"""The forms that change conditions."""
