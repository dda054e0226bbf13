"""Answers other than 2xx as a client sees them, and as the OpenAPI page describes them."""

from typing import Any

from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict

from daemon.serving.errors import ApiError
from daemon.serving.metrics import ServingMetrics

OIP_PREFIX = "/v2"
EVERYWHERE = (401, 500, 503)
"""Statuses that any route but health and metrics may answer: no token, a server failure, not ready or out of time."""
MEANINGS = {
    400: "The request cannot be understood; `code` says which part.",
    401: "A bearer token is needed (serving.token).",
    403: "Refused by the server's settings.",
    404: "No such model, or no such version in memory.",
    408: "The body did not arrive within serving.advanced.request_seconds.",
    413: "The body, the image or the batch is too large.",
    415: "Not an image in a format that is read, or a Content-Encoding.",
    422: "The image is damaged.",
    500: "The server failed; see its log.",
    503: "Not ready, busy or out of time; Retry-After says when to try again (seconds).",
}


class Message(BaseModel):
    """A message in JSON; the text under a field is its description in the OpenAPI page."""

    model_config = ConfigDict(use_attribute_docstrings=True, protected_namespaces=())


class Problem(Message):
    """Why a request was not answered; codes are stable."""

    code: str
    """Stable code; docs/reference/errors.md lists them."""
    message: str
    """One sentence: what is wrong and what to do."""


class ProtocolProblem(Problem):
    """The same under `/v2`."""

    error: str
    """The message again, where Open Inference Protocol clients look for it."""


def problem_answer(path: str, error: ApiError, metrics: ServingMetrics) -> JSONResponse:
    """Return the response to a request for `path` that ended with `error`, and count it."""
    metrics.refused.labels(reason=error.code).inc()
    body = {"code": error.code, "message": error.message}
    if path.startswith(OIP_PREFIX):
        body["error"] = error.message
    headers = dict(error.headers or {})
    if error.retry_after is not None:
        headers["Retry-After"] = str(error.retry_after)
    return JSONResponse(body, error.status, headers=headers)


def problems(*statuses: int, protocol: bool = False) -> dict[int | str, dict[str, Any]]:
    """Return `responses` of a route that may answer with these statuses; `protocol` for those under `/v2`."""
    model = ProtocolProblem if protocol else Problem
    described: dict[int | str, dict[str, Any]] = {
        status: {"model": model, "description": MEANINGS[status]} for status in sorted({*statuses, *EVERYWHERE})
    }
    described[503]["headers"] = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}
    return described
