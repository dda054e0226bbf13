"""Every error of the control API is JSON with a stable `code` and a `message`."""

from collections.abc import Awaitable, Callable

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from configs.errors import ConfigError
from daemon.errors import DaemonError, NotEnoughFrames, RoundRunning, Stopping, describe_error
from storage.errors import CorruptCheckpoint, DurabilityLost, InvalidReason, StorageError, UnknownRound, UnknownVersion

HTTP_CODES = {404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}
"""The same names as on the inference plane."""
STATUS_OF: dict[type[Exception], int] = {
    UnknownVersion: 404,
    UnknownRound: 404,
    DurabilityLost: 500,
    CorruptCheckpoint: 409,
    InvalidReason: 422,
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
        self.status, self.code, self.message = status, code, message


def answer_errors(app: FastAPI) -> None:
    """Install the handlers."""

    async def known(_: Request, error: Exception) -> JSONResponse:
        status = next(number for kind, number in STATUS_OF.items() if isinstance(error, kind))
        return _error(status, getattr(error, "code", "system"), describe_error(error))

    async def api(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, ApiError)
        return api_answer(error)

    async def invalid(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        return _error(422, "invalid_request", f"{field}: {first['msg']}")

    async def http(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        return _error(error.status_code, HTTP_CODES.get(error.status_code, "http_error"), str(error.detail))

    async def unexpected(_: Request, error: Exception) -> JSONResponse:
        return _error(500, "unexpected", f"{type(error).__name__}: {error}; the daemon's log has the traceback")

    handlers: list[tuple[type[Exception], Callable[[Request, Exception], Awaitable[JSONResponse]]]] = [
        *((kind, known) for kind in (ConfigError, StorageError, DaemonError, OSError)),
        (ApiError, api),
        (RequestValidationError, invalid),
        (HTTPException, http),
        (Exception, unexpected),
    ]
    for kind, handler in handlers:
        app.add_exception_handler(kind, handler)


def api_answer(error: ApiError) -> JSONResponse:
    """Return `error` as an HTTP response."""
    headers = {"WWW-Authenticate": "Bearer"} if error.status == 401 else None
    return _error(error.status, error.code, error.message, headers)


def _error(status: int, code: str, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"code": code, "message": message}, status, headers)
