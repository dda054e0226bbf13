"""The FastAPI application of the inference plane: routes, health, metrics, and errors as `{code, message}`."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

from daemon.logs import get_logger
from daemon.serving.errors import ApiError
from daemon.serving.guard import Guard, tokens_of
from daemon.serving.instrument import Instrument
from daemon.serving.oip import oip_routes
from daemon.serving.plane import InferencePlane
from daemon.serving.segment import segment_routes
from daemon.token import repository_token, serving_token

HTTP_CODES = {404: "not_found", 405: "method_not_allowed"}

log = get_logger(__name__)


def create_app(plane: InferencePlane) -> FastAPI:
    """The application over `plane`; its threads start and stop with it. Raises ConfigError for an unusable token."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        plane.start()
        yield
        plane.stop()

    app = FastAPI(title="mfmd inference plane", docs_url=None, redoc_url=None, lifespan=lifespan)
    serving = plane.settings.serving
    tokens = tokens_of(serving_token(serving), repository_token(serving))
    app.add_middleware(Guard, tokens=tokens, metrics=plane.metrics)  # inside of what counts requests
    app.add_middleware(Instrument, metrics=plane.metrics, live=lambda: plane.slots.live)
    app.include_router(segment_routes(plane))
    app.include_router(oip_routes(plane))
    _add_health(app, plane)
    _add_errors(app, plane)
    return app


def _add_health(app: FastAPI, plane: InferencePlane) -> None:
    @app.get("/healthz")
    async def live() -> dict[str, str]:
        """The process answers; says nothing about a version."""
        return {"status": "ok"}

    @app.get("/readyz")
    async def ready(response: Response) -> dict[str, bool]:
        """200 once a version is loaded, 503 before that and while the process stops."""
        response.status_code = 200 if plane.ready else 503
        return {"ready": plane.ready}

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Prometheus metrics."""
        wanted = plane.follower.wanted
        plane.metrics.wanted.set(wanted.version if wanted else 0)
        return Response(plane.metrics.render(), media_type=CONTENT_TYPE_LATEST)


def _add_errors(app: FastAPI, plane: InferencePlane) -> None:
    def answer(request: Request, raised: Exception) -> JSONResponse:
        error = _as_api_error(request, raised)
        plane.metrics.refused.labels(reason=error.code).inc()
        body = {"code": error.code, "message": error.message}
        if request.url.path.startswith("/v2"):
            body["error"] = error.message  # the field that Open Inference Protocol clients read
        headers = {"Retry-After": str(error.retry_after)} if error.retry_after is not None else None
        return JSONResponse(body, error.status, headers=headers)

    for kind in (ApiError, HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(kind, answer)


def _as_api_error(request: Request, error: Exception) -> ApiError:
    """What a client is told about `error`; the server's own failures are not spelled out to it."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, HTTPException):
        asked = f"{request.method} {request.url.path}: {error.detail}; GET /openapi.json lists what there is"
        return ApiError(error.status_code, HTTP_CODES.get(error.status_code, "http_error"), asked)
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        return ApiError(422, "invalid_request", f"{'.'.join(map(str, first['loc']))}: {first['msg']}")
    log.error("request_failed", path=request.url.path, error=repr(error))
    return ApiError(500, "internal", "the server failed on this request; its log says why")
