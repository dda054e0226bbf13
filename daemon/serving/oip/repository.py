"""The model repository (Triton's extension of the protocol), read-only: the registry decides which version serves."""

from fastapi import APIRouter, Request

from daemon.serving.api.problems import problems
from daemon.serving.errors import ApiError
from daemon.serving.oip.messages import MODEL, IndexBody, IndexEntry
from daemon.serving.oip.tensors import read_json
from daemon.serving.plane import InferencePlane

INDEX_BODY = {
    "requestBody": {
        "required": False,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/IndexBody"}}},
    }
}
READ_ONLY = "the registry decides which version serves; use `mfmd promote` or `mfmd rollback`"


def repository_routes(plane: InferencePlane) -> APIRouter:
    """Build the routes under `/v2/repository`."""
    router = APIRouter(prefix="/repository")

    @router.post("/index", openapi_extra=INDEX_BODY, responses=problems(400, 408, 413, 415, protocol=True))
    async def index(request: Request) -> list[IndexEntry]:
        """Every version in the registry or in memory, and whether it answers."""
        async with plane.bodies.read(request) as body:
            wanted = read_json(body or b"{}", IndexBody)
        entries = await plane.in_thread(lambda: _entries(plane))
        return [entry for entry in entries if entry.state == "READY" or not wanted.ready]

    @router.post("/models/{model}/load", status_code=403, responses=problems(403, protocol=True))
    @router.post("/models/{model}/unload", status_code=403, responses=problems(403, protocol=True))
    async def change(model: str) -> None:
        """Refuse always: the registry decides which version serves."""
        raise ApiError(403, "repository_read_only", READ_ONLY)

    return router


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
    return failure.reason if failure is not None and failure.version == version else "not loaded"
