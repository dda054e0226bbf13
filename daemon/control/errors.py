"""Every error of the control plane is JSON with a stable `code` and a `message`; for a browser, a page with it."""

import json
from collections.abc import Callable

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from configs.errors import ConfigError
from daemon.errors import DaemonError, NotEnoughFrames, RoundRunning, Stopping, describe_error
from storage.errors import (
    CorruptCheckpoint,
    DurabilityLost,
    InvalidName,
    InvalidReason,
    StorageError,
    UnknownCondition,
    UnknownRound,
    UnknownVersion,
)

HTTP_CODES = {404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}
"""The same names as on the inference plane."""
API = "/v1/"
"""What answers with JSON whoever asks, and takes the token in a header; a form of the page has it in its body."""
TITLES = {404: "No such view", 405: "This address takes forms only", 422: "No such view"}
"""Of the pages for browsers; others say that the view cannot be shown."""
Page = Callable[[str, str, int], Response]
"""Makes a page of a title, a message and a status."""
STATUS_OF: dict[type[Exception], int] = {
    UnknownVersion: 404,
    UnknownRound: 404,
    UnknownCondition: 404,
    DurabilityLost: 500,
    CorruptCheckpoint: 409,
    InvalidReason: 422,
    InvalidName: 422,
    ConfigError: 409,
    RoundRunning: 409,
    NotEnoughFrames: 409,
    Stopping: 503,
    StorageError: 409,
    DaemonError: 500,
    OSError: 500,
}
"""HTTP status of each error, most specific first."""


class ApiError(Exception):
    """An answer with a stable `code` and a sentence."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


def answer_errors(app: FastAPI, page: Page) -> None:
    """Install the handlers; `page` makes the answer to a browser that asks for anything but the API."""

    async def answer(request: Request, error: JSONResponse) -> Response:
        if "text/html" not in request.headers.get("accept", "") or request.url.path.startswith(API):
            return error
        message = str(json.loads(bytes(error.body))["message"])
        title = TITLES.get(error.status_code, "This view cannot be shown")
        return await run_in_threadpool(page, title, message, error.status_code)

    @app.exception_handler(ApiError)
    @app.exception_handler(ConfigError)
    @app.exception_handler(StorageError)
    @app.exception_handler(DaemonError)
    @app.exception_handler(OSError)
    async def known(request: Request, error: Exception) -> Response:
        return await answer(request, answer_of(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        return await answer(request, _error(422, "invalid_request", f"{field}: {first['msg']}"))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        code = HTTP_CODES.get(error.status_code, "http_error")
        return await answer(request, _error(error.status_code, code, str(error.detail)))

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> Response:
        message = f"{type(error).__name__}: {error}; the daemon's log has the traceback"
        return await answer(request, _error(500, "unexpected", message))


def status_of(error: Exception) -> int:
    """Return the HTTP status of an ApiError or an error of `STATUS_OF`."""
    if isinstance(error, ApiError):
        return error.status
    return next(status for kind, status in STATUS_OF.items() if isinstance(error, kind))


def answer_of(error: Exception) -> JSONResponse:
    """Return an ApiError or an error of `STATUS_OF` as an HTTP response."""
    return _error(status_of(error), getattr(error, "code", "system"), describe_error(error))


def _error(status: int, code: str, message: str) -> JSONResponse:
    headers = {"X-Content-Type-Options": "nosniff"} | ({"WWW-Authenticate": "Bearer"} if status == 401 else {})
    return JSONResponse({"code": code, "message": message}, status, headers)
