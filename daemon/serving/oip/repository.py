"""The model repository (Triton's extension of the protocol): index for everybody, load and unload by token.

What a load loads is what the registry's serving ref names: a client cannot choose a version here, only say that it
should answer (again) now, or that nothing should.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Request

from daemon.net.token import bearer_of, repository_token, same_token
from daemon.serving.api.problems import problems
from daemon.serving.errors import ApiError
from daemon.serving.oip.messages import MODEL, IndexBody, IndexEntry, RepositoryBody
from daemon.serving.oip.tensors import Message, read_json
from daemon.serving.plane import InferencePlane
from storage.errors import StorageError
from storage.registry.registry import CheckpointRegistry

POLL_SECONDS = 0.01
"""How often a load or unload looks whether the follower's thread has done it (seconds)."""
BY_REQUEST = frozenset({"unload_dependents"})
"""Parameters that are understood; the others would change what is loaded."""


def _body(model: str, required: bool = False) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{model}"}}}
    return {"requestBody": {"required": required, "content": content}}


CHANGES = problems(400, 403, 404, 408, 409, 413, 415, protocol=True)


def repository_routes(plane: InferencePlane) -> APIRouter:
    """The routes under `/v2/repository`."""
    router = APIRouter(prefix="/v2/repository")
    token = repository_token(plane.settings.serving)

    @router.post("/index", openapi_extra=_body("IndexBody"), responses=problems(400, 408, 413, 415, protocol=True))
    async def index(request: Request) -> list[IndexEntry]:
        """Every version in the registry or in memory, and whether it answers."""
        wanted = await _read(plane, request, IndexBody)
        entries = await plane.in_thread(lambda: _entries(plane))
        return [entry for entry in entries if entry.state == "READY" or not wanted.ready]

    @router.post("/models/{model}/load", openapi_extra=_body("RepositoryBody"), responses=CHANGES)
    async def load(request: Request, model: str) -> None:
        """Let the version that the serving ref names answer now; a load that failed is tried again at once."""
        _check(token, request, model)
        _check_parameters(await _read(plane, request, RepositoryBody))
        await _load(plane)

    @router.post("/models/{model}/unload", openapi_extra=_body("RepositoryBody"), responses=CHANGES)
    async def unload(request: Request, model: str) -> None:
        """Stop answering and free the weights, until a load or a restart; requests in flight are still answered."""
        _check(token, request, model)
        _check_parameters(await _read(plane, request, RepositoryBody))
        plane.follower.suspend()
        await _until(lambda: plane.slots.live is None)

    return router


def _check(token: str | None, request: Request, model: str) -> None:
    """Raises ApiError: 403 repository_read_only, 401 unauthorized, 404 unknown_model."""
    if token is None:
        message = "load and unload are off; set serving.repository_token to allow them"
        raise ApiError(403, "repository_read_only", message)
    given = bearer_of(request.headers.get("authorization", ""))
    if given is None or not same_token(given, token):
        message = "load and unload want `Authorization: Bearer` with serving.repository_token"
        raise ApiError(401, "unauthorized", message, headers={"WWW-Authenticate": "Bearer"})
    if model != MODEL:
        raise ApiError(404, "unknown_model", f"there is no model {model[:64]!r}; the only one is {MODEL!r}")


def _check_parameters(body: RepositoryBody) -> None:
    """Raises ApiError 400 unsupported_parameter."""
    unknown = sorted(set(body.parameters) - BY_REQUEST)
    if unknown:
        message = f"parameter {unknown[0][:64]!r} is not offered: what is loaded is what the serving ref names"
        raise ApiError(400, "unsupported_parameter", message)


async def _read(plane: InferencePlane, request: Request, kind: type[Message]) -> Message:
    """The request's JSON; an empty body is an empty object."""
    async with plane.bodies.read(request) as body:
        return read_json(body or b"{}", kind)


def _entries(plane: InferencePlane) -> list[IndexEntry]:
    resident = plane.slots.versions
    entries = []
    for version in sorted({*plane.registry.versions(), *resident}):  # what is resident answers, pruned or not
        ready = plane.ready and version in resident
        reason = "" if ready else _reason(plane, version)
        state = "READY" if ready else "UNAVAILABLE"
        entries.append(IndexEntry(name=MODEL, version=str(version), state=state, reason=reason))
    return entries


def _reason(plane: InferencePlane, version: int) -> str:
    failure = plane.follower.failure
    if failure is not None and failure.version == version:
        return failure.reason
    return "unloaded by request" if plane.follower.suspended else "not loaded"


async def _load(plane: InferencePlane) -> None:
    """Raises ApiError 409 load_failed."""
    follower = plane.follower
    before = follower.resume()
    await _until(lambda: follower.looks > before + 1)  # one look may have begun before the resume
    wanted = await plane.in_thread(lambda: _named(plane.registry))
    live, failure = plane.slots.live, follower.failure
    if live is None or live.version != wanted:
        reason = failure.reason if failure and failure.version == wanted else "it is being loaded"
        raise ApiError(409, "load_failed", f"version {wanted} does not serve: {reason}")


def _named(registry: CheckpointRegistry) -> int:
    """The version that the serving ref names now; what the follower failed at before says nothing of it.

    Raises ApiError 409 load_failed when there is none, or when it cannot be read.
    """
    try:
        serving = registry.serving()
    except (StorageError, OSError) as error:
        raise ApiError(409, "load_failed", f"it is not known what to load: {error}") from error
    if serving is None:
        message = "nothing to load: no version was made to serve yet; `mfmd checkpoints list` shows what there is"
        raise ApiError(409, "load_failed", message)
    return serving.version


async def _until(done: Callable[[], bool]) -> None:
    """Wait for the follower's thread; serving.request_seconds ends the wait, not what the thread does."""
    while not done():
        await asyncio.sleep(POLL_SECONDS)
