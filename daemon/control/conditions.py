"""Routes of the known conditions: the control API's `/v1/conditions`."""

from collections.abc import Callable
from contextlib import closing
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Path

from daemon.control.messages import LARGEST_NUMBER, Number
from daemon.gate.changes import ConditionChange
from daemon.gate.loop import GateLoop
from daemon.net.json_body import body_schema
from daemon.status.conditions import ConditionDetail, ConditionsStatus, describe_condition, describe_conditions
from storage.buffer.catalog import Catalog
from storage.gate.conditions import ConditionStore
from storage.layout import StateLayout

At = Annotated[int, Path(le=LARGEST_NUMBER)]
"""Number of a condition."""


class MergeRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Body of `POST /v1/conditions/{number}/merge`."""

    into: Number
    """The condition that stays."""


class RenameRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Body of `POST /v1/conditions/{number}/rename`."""

    name: str
    """The new name."""


def create_conditions(gate: GateLoop, layout: StateLayout, read: Callable[[Any], Any]) -> APIRouter:
    """Return the routes; `read` makes the dependency that reads a body."""
    router = APIRouter(prefix="/v1/conditions")
    store = ConditionStore(layout.conditions)

    @router.get("")
    def conditions() -> ConditionsStatus:
        """Return all known conditions, and which one each camera is in."""
        return describe_conditions(store.read())

    @router.get("/{number}")
    def condition(number: At) -> ConditionDetail:
        """Return one condition with its golden frames and its distances from the others."""
        with closing(Catalog.open(layout.catalog, writable=False)) as catalog:
            return describe_condition(store.read(), number, catalog)

    @router.post("/{number}/merge", openapi_extra=body_schema(MergeRequest))
    def merge(number: At, request: Annotated[MergeRequest, read(MergeRequest)]) -> ConditionsStatus:
        """Merge a condition into another one, which keeps its name and its best version."""
        return describe_conditions(gate.change(ConditionChange(kind="merge", number=number, into=request.into)))

    @router.post("/{number}/rename", openapi_extra=body_schema(RenameRequest))
    def rename(number: At, request: Annotated[RenameRequest, read(RenameRequest)]) -> ConditionsStatus:
        """Rename a condition. 422 when the name is taken or cannot be one."""
        return describe_conditions(gate.change(ConditionChange(kind="rename", number=number, name=request.name)))

    @router.post("/{number}/forget")
    def forget(number: At) -> ConditionsStatus:
        """Forget a condition; frames committed before do not open it again. 409 for the labelled or only one."""
        return describe_conditions(gate.change(ConditionChange(kind="forget", number=number)))

    return router
