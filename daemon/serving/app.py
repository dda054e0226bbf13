"""The FastAPI application of the inference plane: routes, health, metrics, and errors as `{code, message}`."""

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

from fastapi import FastAPI, Request, Response
from fastapi.responses import PlainTextResponse
from starlette.exceptions import HTTPException

from adapters.tracing import spans
from daemon.net.middleware import HeadRequests, LastAnswers
from daemon.net.token import serving_token
from daemon.runtime.logs import get_logger
from daemon.runtime.metric_table import expose
from daemon.serving.api.openapi import describe_routes
from daemon.serving.api.problems import Message, problem_answer
from daemon.serving.api.segment import segment_routes
from daemon.serving.errors import ApiError
from daemon.serving.middleware import OPEN, Guard, Instrument, Lifetime
from daemon.serving.oip.routes import oip_routes
from daemon.serving.plane import InferencePlane

HTTP_CODES = {404: "not_found", 405: "method_not_allowed"}

log = get_logger(__name__)


class Health(Message):
    """The process answers."""

    status: Literal["ok", "dead"]
    """dead: a thread ended by a bug, and only a restart repairs that."""
    problems: list[str]
    """Which, and what it means."""


class Readiness(Message):
    """Whether requests are answered."""

    ready: bool


def create_app(plane: InferencePlane) -> FastAPI:
    """Build the application over `plane`; its threads start and stop with it.

    Raises ConfigError for an unusable token.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        plane.start()
        yield
        plane.stop()

    async def answer(request: Request, raised: Exception) -> Response:
        return problem_answer(request.url.path, _as_api_error(request, raised), plane.metrics)

    serving = plane.settings.serving
    app = FastAPI(
        title="mfmd inference plane",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        exception_handlers={ApiError: answer, HTTPException: answer},
        telemetry={  # a span for each request, which joins the trace of its `traceparent`
            "tracer_provider": spans.provider(),
            "operation_spans": False,
            "exclude": lambda scope: scope.get("path") in OPEN,
        },
    )
    app.add_middleware(Lifetime, seconds=serving.advanced.request_seconds)
    app.add_middleware(Guard, token=serving_token(serving))
    app.add_middleware(LastAnswers)
    app.add_middleware(Instrument, plane=plane, failed=answer)  # around both: it counts and answers what they refuse
    app.add_middleware(HeadRequests)
    app.include_router(segment_routes(plane))
    app.include_router(oip_routes(plane))
    _add_health(app, plane)
    describe_routes(app)
    return app


def _add_health(app: FastAPI, plane: InferencePlane) -> None:
    @app.get("/healthz", responses={503: {"model": Health, "description": "A thread crashed."}})
    async def live(response: Response) -> Health:
        """200 while the process answers and its threads live, 503 after one ended; says nothing about a version."""
        dead = plane.dead
        response.status_code = 503 if dead else 200
        return Health(status="dead" if dead else "ok", problems=dead)

    @app.get("/readyz", responses={503: {"model": Readiness, "description": "Not ready."}})
    async def ready(response: Response) -> Readiness:
        """200 once a version is loaded, 503 before that and while the process stops."""
        response.status_code = 200 if plane.ready else 503
        return Readiness(ready=plane.ready)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics(request: Request) -> Response:
        """Prometheus metrics."""
        wanted = plane.follower.wanted
        known = wanted.version if wanted else 0
        plane.metrics.wanted.set(math.nan if plane.follower.unreadable else known)
        content, content_type = expose(plane.metrics.registry, request.headers.get("accept", ""))
        return Response(content, headers={"Content-Type": content_type})


def _as_api_error(request: Request, error: Exception) -> ApiError:
    """Return what a client sees of `error`; the server's own failures are not detailed."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, HTTPException):
        asked = f"{request.method} {request.url.path}: {error.detail}; GET /openapi.json lists the paths"
        code = HTTP_CODES.get(error.status_code, "http_error")
        return ApiError(error.status_code, code, asked, headers=error.headers)
    log.error("request_failed", path=request.url.path, error=repr(error), exc_info=error)
    return ApiError(500, "internal", "the server failed on this request; see its log")
