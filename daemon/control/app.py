"""The control plane's HTTP API: look without a token, change with one. No torch, no long work in a request."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, FastAPI, Header, Path, Query
from fastapi.responses import JSONResponse, Response

from daemon.control.errors import answer_errors
from daemon.control.messages import (
    LARGEST_NUMBER,
    CheckpointList,
    CheckpointSummary,
    PinRequest,
    PromoteRequest,
    RetryRequest,
    RollbackRequest,
    RoundDetail,
    RoundList,
)  # fmt: skip
from daemon.control.page import create_page
from daemon.control.server import ControlGuard
from daemon.gate import promotion
from daemon.ingest.refusals import RetryQueue, Selection
from daemon.metrics import Metrics
from daemon.net.head_requests import HeadRequests
from daemon.rounds.history import summaries, summarise
from daemon.rounds.loop import RoundLoop
from daemon.runtime.health import Health
from daemon.runtime.in_force import Reloaded, SettingsInForce
from daemon.status.collect import Status, collect_status
from storage.errors import StorageError
from storage.layout import StateLayout
from storage.registry.manifest import Ref
from storage.registry.registry import CheckpointRegistry
from storage.rounds.folder import RoundStore

Number = Annotated[int, Path(le=LARGEST_NUMBER)]
"""Of a version or a round."""


@dataclass(frozen=True, slots=True)
class ControlContext:
    """What the API works on."""

    in_force: SettingsInForce
    registry: CheckpointRegistry
    rounds: RoundLoop
    metrics: Metrics
    health: Health
    token: str
    retries: RetryQueue


def create_control_app(context: ControlContext, *, local: bool = False) -> FastAPI:
    """Return the API as an ASGI application; a `local` one asks for no token, because its socket is the owner's."""
    app = FastAPI(title="mfmd control plane", openapi_url="/openapi.json", docs_url=None, redoc_url=None)
    app.include_router(_probes(context))
    app.include_router(_reading(context))
    app.include_router(create_page(context.in_force, context.registry, context.token))
    app.include_router(_changing(context))
    app.add_middleware(ControlGuard, token=None if local else context.token)
    app.add_middleware(HeadRequests)
    answer_errors(app)
    return app


def _probes(context: ControlContext) -> APIRouter:
    router = APIRouter()

    @router.get("/healthz")
    def healthz() -> JSONResponse:
        """Whether the daemon's threads live. Independent of folder, disk, model and children."""
        return _probe(context.health.dead())

    @router.get("/readyz")
    def readyz() -> JSONResponse:
        """Whether the daemon does its work: a version serves, its children run, no part of it has stopped for good."""
        return _probe(context.health.not_ready())

    @router.get("/metrics")
    def metrics(accept: Annotated[str, Header()] = "") -> Response:
        """Prometheus metrics of the control plane."""
        content, content_type = context.metrics.exposition(accept)
        return Response(content, headers={"Content-Type": content_type})

    return router


def _reading(context: ControlContext) -> APIRouter:
    router = APIRouter(prefix="/v1")
    store = RoundStore(StateLayout(context.in_force.now.state).rounds)

    @router.get("/status")
    def status() -> Status:
        """The whole picture, as `mfmd status --json`."""
        return collect_status(context.in_force.now)

    @router.get("/checkpoints")
    def checkpoints() -> CheckpointList:
        """All versions, oldest first, and what the refs name; a damaged ref hides no version."""
        registry = context.registry
        pins = set(registry.pins())
        state = registry.state()
        versions = [
            _checkpoint(registry, version, version in pins, state.marks(version)) for version in registry.versions()
        ]
        refs, damaged = registry.readable_refs()
        return CheckpointList(
            serving=refs.get("serving"), previous=refs.get("previous"), versions=versions, damaged=damaged
        )

    @router.get("/rounds")
    def rounds(limit: Annotated[int, Query(ge=1, le=1000)] = 20) -> RoundList:
        """The newest rounds."""
        return RoundList(
            running=context.rounds.running, rounds=summaries(store, limit, alive=context.rounds.running is not None)
        )

    @router.get("/rounds/{number}")
    def one_round(number: Number) -> RoundDetail:
        """One round with its newest progress and its verdict."""
        folder = store.folder(number)
        summary = summarise(folder, alive=context.rounds.running == number)
        return RoundDetail(summary=summary, progress=folder.last_progress(), verdict=folder.verdict())

    return router


def _changing(context: ControlContext) -> APIRouter:
    router = APIRouter(prefix="/v1")

    @router.post("/rounds", status_code=202)
    def start_round() -> dict[str, int]:
        """Start a round now; its number. 409 when one runs or there is too little to work with."""
        return {"round": context.rounds.request()}

    @router.post("/rollback")
    def rollback(request: RollbackRequest | None = None) -> Ref:
        """Serve an earlier version again; the inference plane follows within `serving.advanced.follow_seconds`.

        409 when another version than `expected` serves, or `to` did not serve before.
        """
        wanted = request or RollbackRequest()
        return promotion.roll_back(
            context.registry, to=wanted.to, by="operator", reason=wanted.reason, expected=wanted.expected
        )

    @router.post("/reload")
    def reload() -> Reloaded:
        """Take over what the configuration file changes in a running daemon; the rest needs a restart.

        409 when the file is not valid; then nothing changes.
        """
        return context.in_force.reload()

    @router.post("/promote")
    def promote(request: PromoteRequest) -> Ref:
        """Serve any version by hand; the version left does not count as rolled back. 409 as `rollback`."""
        return promotion.promote(
            context.registry, request.version, by="operator", reason=request.reason, expected=request.expected
        )

    @router.post("/checkpoints/{version}/pin")
    def pin(version: Number, request: PinRequest | None = None) -> dict[str, list[int]]:
        """Keep a version whatever retention says."""
        context.registry.pin(version, by="operator", reason=request.reason if request else "")
        return {"pinned": context.registry.pins()}

    @router.post("/checkpoints/{version}/unpin")
    def unpin(version: Number, request: PinRequest | None = None) -> dict[str, list[int]]:
        """Leave a version to retention again."""
        context.registry.unpin(version, by="operator", reason=request.reason if request else "")
        return {"pinned": context.registry.pins()}

    @router.post("/refused/retry")
    def retry_refused(request: RetryRequest) -> dict[str, list[str]]:
        """Let ingest take refused files again, out of the quarantine too; their paths."""
        return {"retried": context.retries.ask(Selection(frozenset(request.paths), request.reason))}

    return router


def _checkpoint(registry: CheckpointRegistry, version: int, pinned: bool, marks: list[str]) -> CheckpointSummary:
    try:
        manifest = registry.manifest(version)
    except StorageError as error:
        return CheckpointSummary(
            version=version,
            created=None,
            origin="unknown",
            parent=None,
            round=None,
            pinned=pinned,
            scores={},
            marks=marks,
            damaged=str(error),
        )
    return CheckpointSummary(
        version=version,
        created=manifest.created,
        origin=manifest.origin,
        parent=manifest.parent,
        round=manifest.round,
        pinned=pinned,
        scores=manifest.scores,
        marks=marks,
    )


def _probe(problems: list[str]) -> JSONResponse:
    return JSONResponse({"ok": not problems, "problems": problems}, 503 if problems else 200)
