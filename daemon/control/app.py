"""The control plane's HTTP API: reads need no token, changes need one. No torch, no long work in a request."""

import time
from functools import cache, partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Header, Path, Query, Request
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool

from daemon.control.conditions import MergeRequest, RenameRequest, create_conditions
from daemon.control.context import ControlContext
from daemon.control.errors import ApiError, answer_errors
from daemon.control.messages import (
    LARGEST_NUMBER,
    MOST_VALUES,
    READ_MESSAGES,
    AnswerRequest,
    CheckpointList,
    CheckpointSummary,
    PauseRequest,
    PinRequest,
    PromoteRequest,
    RetryRequest,
    RollbackRequest,
    RoundDetail,
    RoundList,
)  # fmt: skip
from daemon.control.page.routes import create_page
from daemon.control.page.view import View
from daemon.control.server import ControlGuard
from daemon.gate import moves
from daemon.gate.suggestion import answer_suggestion
from daemon.ingest.refusals import Selection
from daemon.net.hosts import known_hosts
from daemon.net.json_body import InvalidBody, body_schema, json_schemas, read_json
from daemon.net.middleware import HeadRequests, LastAnswers
from daemon.rounds.history import summaries, summarise
from daemon.runtime.activity import Activity
from daemon.runtime.in_force import Reloaded
from daemon.status.collect import Status, collect_status
from storage.errors import StorageError
from storage.gate.pause import Pause, pause, resume
from storage.layout import StateLayout
from storage.registry.history import RegistryState
from storage.registry.manifest import Ref
from storage.registry.registry import CheckpointRegistry
from storage.rounds.folder import RoundStore
from storage.rounds.verdict import Answer, Verdict

Number = Annotated[int, Path(le=LARGEST_NUMBER)]
"""Of a version or a round."""


def create_control_app(context: ControlContext, *, local: bool = False) -> FastAPI:
    """Return the API as an ASGI application; a `local` one needs no token, because only the owner opens its socket."""
    app = FastAPI(title="mfmd control plane", openapi_url="/openapi.json", docs_url=None, redoc_url=None)
    app.include_router(_probes(context))
    app.include_router(_reading(context))
    view = View(context)
    app.include_router(create_page(view))
    app.include_router(_changing(context))
    app.include_router(_answering(context))
    app.include_router(create_conditions(context.gate, StateLayout(context.in_force.now.state), _read))
    app.add_middleware(
        ControlGuard,
        token=None if local else context.token,
        hosts=None if local else known_hosts(context.in_force.now.control),
    )
    app.add_middleware(LastAnswers)
    app.add_middleware(HeadRequests)
    answer_errors(app, view.problem)
    app.openapi = cache(partial(_describe, app))  # type: ignore[method-assign]
    return app


def _probes(context: ControlContext) -> APIRouter:
    router = APIRouter()

    @router.get("/healthz")
    def healthz() -> JSONResponse:
        """Report whether the daemon's threads live. Independent of folder, disk, model and children."""
        return _probe(context.health.dead())

    @router.get("/readyz")
    def readyz() -> JSONResponse:
        """Report whether the daemon works: a version serves, children run, no part has stopped for good."""
        return _probe(context.health.not_ready())

    @router.get("/metrics")
    def metrics(accept: Annotated[str, Header()] = "") -> Response:
        """Return the Prometheus metrics of the control plane."""
        content, content_type = context.metrics.exposition(accept)
        return Response(content, headers={"Content-Type": content_type})

    return router


def _reading(context: ControlContext) -> APIRouter:
    router = APIRouter(prefix="/v1")
    store = RoundStore(StateLayout(context.in_force.now.state).rounds)

    @router.get("/status")
    def status() -> Status:
        """Return the whole status, as `mfmd status --json`."""
        return collect_status(context.in_force.now)

    @router.get("/activity")
    def activity() -> Activity:
        """Return what only the running daemon knows: folder, ingest, children, mirrors, failing parts."""
        return context.activity()

    @router.get("/checkpoints")
    def checkpoints() -> CheckpointList:
        """Return all versions, oldest first, and the refs; a damaged ref hides no version."""
        registry = context.registry
        pins = set(registry.pins())
        state = registry.state()
        versions = [_checkpoint(registry, version, pins, state) for version in registry.versions()]
        refs, damaged = registry.readable_refs()
        return CheckpointList(
            serving=refs.get("serving"), previous=refs.get("previous"), versions=versions, damaged=damaged
        )

    @router.get("/rounds")
    def rounds(limit: Annotated[int, Query(ge=1, le=1000)] = 20) -> RoundList:
        """Return the newest rounds."""
        return RoundList(
            running=context.rounds.running, rounds=summaries(store, limit, alive=context.rounds.running is not None)
        )

    @router.get("/rounds/{number}")
    def one_round(number: Number) -> RoundDetail:
        """Return one round with its newest progress and its verdict."""
        folder = store.folder(number)
        summary = summarise(folder, alive=context.rounds.running == number)
        return RoundDetail(summary=summary, progress=folder.last_progress(), verdict=folder.verdict())

    return router


def _changing(context: ControlContext) -> APIRouter:
    router = APIRouter(prefix="/v1")

    @router.post("/rounds", status_code=202)
    def start_round() -> dict[str, int]:
        """Start a round now; return its number. 409 if one runs or there are too few frames."""
        return {"round": context.rounds.request()}

    @router.post("/rollback", openapi_extra=body_schema(RollbackRequest, required=False))
    def rollback(wanted: Annotated[RollbackRequest | None, _read(RollbackRequest | None)]) -> Ref:
        """Serve an earlier version again; the inference plane follows within `serving.advanced.follow_seconds`.

        409 if a version other than `expected` serves, or `to` did not serve before.
        """
        wanted = wanted or RollbackRequest()
        return moves.roll_back(
            context.registry, to=wanted.to, by="operator", reason=wanted.reason, expected=wanted.expected
        )

    @router.post("/reload")
    def reload() -> Reloaded:
        """Reload the configuration file; return the changes that need a restart.

        409 if the file is not valid; then nothing changes.
        """
        return context.in_force.reload()

    @router.post("/promote", openapi_extra=body_schema(PromoteRequest))
    def promote(request: Annotated[PromoteRequest, _read(PromoteRequest)]) -> Ref:
        """Serve any version by hand; the one before is not marked as rolled back. 409 as for `rollback`."""
        return moves.promote(
            context.registry, request.version, by="operator", reason=request.reason, expected=request.expected
        )

    @router.post("/checkpoints/{version}/pin", openapi_extra=body_schema(PinRequest, required=False))
    def pin(version: Number, request: Annotated[PinRequest | None, _read(PinRequest | None)]) -> dict[str, list[int]]:
        """Pin a version, so that retention never removes it."""
        context.registry.pin(version, by="operator", reason=request.reason if request else "")
        return {"pinned": context.registry.pins()}

    @router.post("/checkpoints/{version}/unpin", openapi_extra=body_schema(PinRequest, required=False))
    def unpin(version: Number, request: Annotated[PinRequest | None, _read(PinRequest | None)]) -> dict[str, list[int]]:
        """Unpin a version, so that retention may remove it."""
        context.registry.unpin(version, by="operator", reason=request.reason if request else "")
        return {"pinned": context.registry.pins()}

    @router.post("/refused/retry", openapi_extra=body_schema(RetryRequest))
    def retry_refused(request: Annotated[RetryRequest, _read(RetryRequest)]) -> dict[str, list[str]]:
        """Retry refused files, quarantined ones too; return their paths."""
        return {"retried": context.retries.ask(Selection(frozenset(request.paths), request.reason))}

    return router


def _answering(context: ControlContext) -> APIRouter:
    router = APIRouter(prefix="/v1")

    @router.post("/approve", openapi_extra=body_schema(AnswerRequest))
    def approve(request: Annotated[AnswerRequest, _read(AnswerRequest)]) -> Verdict:
        """Serve a version that waits for a decision; return its round's final verdict. 409 if it does not wait."""
        return _answered(context, request, approved=True)

    @router.post("/reject", openapi_extra=body_schema(AnswerRequest))
    def reject(request: Annotated[AnswerRequest, _read(AnswerRequest)]) -> Verdict:
        """Reject a version that waits for a decision; return its round's final verdict. 409 if it does not wait."""
        return _answered(context, request, approved=False)

    @router.post("/pause", openapi_extra=body_schema(PauseRequest))
    def begin_pause(request: Annotated[PauseRequest, _read(PauseRequest)]) -> Pause:
        """Begin no round and recall no version until `resume`."""
        return pause(context.layout, by="operator", reason=request.reason)

    @router.post("/resume", openapi_extra=body_schema(PauseRequest))
    def end_pause(request: Annotated[PauseRequest, _read(PauseRequest)]) -> dict[str, bool]:
        """End the pause; return whether there was one."""
        return {"resumed": resume(context.layout, by="operator", reason=request.reason)}

    return router


def _answered(context: ControlContext, request: AnswerRequest, *, approved: bool) -> Verdict:
    answer = Answer(approved=approved, by="operator", reason=request.reason, at=time.time())
    return answer_suggestion(context.registry, context.in_force.now, request.version, answer)


def _read(kind: Any) -> Any:
    """Return the dependency that reads a `kind` from the body, in a thread. Raises ApiError 413 and 422."""

    async def read(request: Request) -> Any:
        body = await request.body()
        if body.count(b",") > MOST_VALUES:
            raise ApiError(413, "body_too_large", f"the body has more than {MOST_VALUES} values or commas; split it")
        try:
            return await run_in_threadpool(read_json, body or b"null", kind)
        except InvalidBody as error:
            raise ApiError(422, "invalid_request", str(error)) from error

    return Depends(read)


def _describe(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI page, with the bodies that routes read themselves."""
    page = get_openapi(title=app.title, version=app.version, routes=app.routes)
    page["components"]["schemas"] |= json_schemas(*READ_MESSAGES, MergeRequest, RenameRequest)
    return page


def _checkpoint(registry: CheckpointRegistry, version: int, pins: set[int], state: RegistryState) -> CheckpointSummary:
    known = CheckpointSummary(version=version, pinned=version in pins, marks=state.marks(version))
    try:
        manifest = registry.manifest(version)
    except StorageError as error:
        return known.model_copy(update={"damaged": str(error)})
    return known.model_copy(update=manifest.model_dump(include={"created", "origin", "parent", "round", "scores"}))


def _probe(problems: list[str]) -> JSONResponse:
    return JSONResponse({"ok": not problems, "problems": problems}, 503 if problems else 200)
