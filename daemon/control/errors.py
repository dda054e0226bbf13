"""Every error of the control API is JSON with a stable `code` and a `message`."""

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
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


def answer_errors(app: FastAPI) -> None:
    """Install the handlers."""

    @app.exception_handler(ApiError)
    @app.exception_handler(ConfigError)
    @app.exception_handler(StorageError)
    @app.exception_handler(DaemonError)
    @app.exception_handler(OSError)
    async def known(_: Request, error: Exception) -> JSONResponse:
        return answer_of(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        return _error(422, "invalid_request", f"{field}: {first['msg']}")

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> JSONResponse:
        return _error(error.status_code, HTTP_CODES.get(error.status_code, "http_error"), str(error.detail))

    @app.exception_handler(Exception)
    async def unexpected(_: Request, error: Exception) -> JSONResponse:
        return _error(500, "unexpected", f"{type(error).__name__}: {error}; the daemon's log has the traceback")


def status_of(error: Exception) -> int:
    """Return the HTTP status of an ApiError or an error of `STATUS_OF`."""
    if isinstance(error, ApiError):
        return error.status
    return next(status for kind, status in STATUS_OF.items() if isinstance(error, kind))


def answer_of(error: Exception) -> JSONResponse:
    """Return an ApiError or an error of `STATUS_OF` as an HTTP response."""
    return _error(status_of(error), getattr(error, "code", "system"), describe_error(error))


def _error(status: int, code: str, message: str) -> JSONResponse:
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else None
    return JSONResponse({"code": code, "message": message}, status, headers)
