"""Open Inference Protocol v2 over HTTP: server, health, model metadata, infer. The one model is called `segmentation`.

A version in the path means that version and no other: it answers as long as it is in memory (the serving one, and the
one that served before it), so a client can compare the two.
"""

from importlib.metadata import version as package_version
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response

from daemon.net.json_body import REFERENCE, body_schema
from daemon.serving.api.answers import class_infos
from daemon.serving.api.problems import problems
from daemon.serving.errors import ApiError, NotReady, VersionNotLoaded
from daemon.serving.oip.messages import (
    CLIENT_HEADERS,
    DATATYPE,
    EXTENSIONS,
    HEADER_LENGTH,
    IMAGE_CHANNELS,
    INPUT,
    MODEL,
    OUTPUT,
    IndexBody,
    IndexEntry,
    InferAnswer,
    ModelConfig,
    ModelMetadata,
    ModelReady,
    ServerLive,
    ServerMetadata,
    ServerReady,
    TensorMetadata,
    VersionParameters,
)
from daemon.serving.oip.tensors import infer_response, parse_infer, read_index
from daemon.serving.plane import InferencePlane
from daemon.serving.versions.slots import Resident

ONE_MODEL = ("/v2/models/{model}", "/v2/models/{model}/versions/{version}")
"""Each route of the model has both prefixes. A router holds its whole prefix itself: metrics name a route by the path
that its own router knows."""
PLATFORM = "pytorch"
BINARY = {"schema": {"type": "string", "format": "binary"}}
INFER_BODY: dict[str, Any] = {
    "parameters": [{"name": HEADER_LENGTH, "in": "header", "required": False, **CLIENT_HEADERS[HEADER_LENGTH]}],
    "requestBody": {
        "required": True,
        "description": "JSON, or JSON and the bytes of the tensor behind it (Triton's binary tensor data).",
        "content": {
            "application/json": {"schema": {"$ref": REFERENCE.format(name="InferBody")}},
            "application/octet-stream": BINARY,
        },
    },
}
INFERRED: dict[int | str, dict[str, Any]] = {
    200: {
        "model": InferAnswer,
        "description": "Labels.",
        "content": {"application/octet-stream": BINARY},
        "headers": CLIENT_HEADERS,
    },
    **problems(400, 404, 408, 413, 415, protocol=True),
}
KNOWN = problems(404, protocol=True)
READ_ONLY = "the registry decides which version serves; use `mfmd promote` or `mfmd rollback`"


def oip_routes(plane: InferencePlane) -> APIRouter:
    """Build the routes under `/v2`."""
    router = APIRouter()
    _add_server_routes(router, plane)
    for prefix in ONE_MODEL:
        router.include_router(_model_routes(plane, prefix))
    router.include_router(_repository_routes(plane))
    return router


def _add_server_routes(router: APIRouter, plane: InferencePlane) -> None:
    @router.get("/v2", responses=problems(protocol=True))
    async def server() -> ServerMetadata:
        """Server metadata."""
        return ServerMetadata(name="mfmd", version=package_version("mfmd"), extensions=[*EXTENSIONS])

    @router.get("/v2/health/live", responses={503: {"model": ServerLive, "description": "A thread crashed."}})
    async def live(response: Response) -> ServerLive:
        """200 while the process answers and its threads live, else 503."""
        alive = not plane.dead
        response.status_code = 200 if alive else 503
        return ServerLive(live=alive)

    @router.get("/v2/health/ready", responses={503: {"model": ServerReady, "description": "Not ready."}})
    async def ready(response: Response) -> ServerReady:
        """200 once a version is loaded, else 503."""
        response.status_code = 200 if plane.ready else 503
        return ServerReady(ready=plane.ready)


def _model_routes(plane: InferencePlane, prefix: str) -> APIRouter:
    router = APIRouter(prefix=prefix)

    async def check(model: str, version: str | None = None) -> int | None:
        """Return the version number in a path, if any. Raises ApiError 404 unknown_model, version_not_loaded."""
        if model != MODEL:
            raise ApiError(404, "unknown_model", f"there is no model {model[:64]!r}; the only one is {MODEL!r}")
        loaded = {str(number): number for number in plane.slots.versions}
        if version is not None and version not in loaded:
            raise VersionNotLoaded(version[:64], tuple(loaded.values()))
        return None if version is None else loaded[version]

    Number = Annotated[int | None, Depends(check)]

    @router.get("", responses=KNOWN)
    async def metadata(number: Number) -> ModelMetadata:
        """Metadata of the model, or of one version of it."""
        if plane.slots.live is None:
            return _metadata(plane, None)
        with plane.slots.lease(number) as resident:
            return _metadata(plane, resident)

    @router.get("/ready", responses=KNOWN | {503: {"model": ModelReady, "description": "Not ready."}})
    async def model_ready(number: Number, response: Response) -> ModelReady:
        """200 if the model (that version of it) answers, 503 if not yet; 404 for an unknown model or version."""
        response.status_code = 200 if plane.ready else 503
        return ModelReady(name=MODEL, ready=plane.ready)

    @router.get("/config", responses=KNOWN)
    async def config(number: Number) -> ModelConfig:
        """Return the model's configuration in Triton's words; the batch dimension is in `dims`."""
        described = {"data_type": f"TYPE_{DATATYPE}"}
        return ModelConfig(
            name=MODEL,
            platform=PLATFORM,
            max_batch_size=0,
            input=[{"name": INPUT, "dims": [-1, -1, -1, IMAGE_CHANNELS], **described}],
            output=[{"name": OUTPUT, "dims": [-1, -1, -1], **described}],
        )

    @router.post("/infer", response_class=Response, openapi_extra=INFER_BODY, responses=INFERRED)
    async def infer(number: Number, request: Request) -> Response:
        """Labels for a batch of images, all of one version."""
        if plane.slots.live is None:
            raise NotReady
        plane.batcher.check_room()
        async with plane.bodies.read(request) as body:
            return await _infer(plane, number, body, request.headers.get(HEADER_LENGTH))

    return router


def _metadata(plane: InferencePlane, resident: Resident | None) -> ModelMetadata:
    parameters = None
    if resident is not None:
        parameters = VersionParameters(
            version=resident.version,
            sha256=resident.digest,
            created=resident.manifest.created,
            input_height=resident.manifest.input_height,
            input_width=resident.manifest.input_width,
            classes=[entry.name for entry in class_infos(resident.manifest)],
        )
    return ModelMetadata(
        name=MODEL,
        versions=[str(number) for number in plane.slots.versions],
        platform=PLATFORM,
        inputs=[TensorMetadata(name=INPUT, datatype=DATATYPE, shape=[-1, -1, -1, IMAGE_CHANNELS])],
        outputs=[TensorMetadata(name=OUTPUT, datatype=DATATYPE, shape=[-1, -1, -1])],
        parameters=parameters,
    )


async def _infer(plane: InferencePlane, version: int | None, body: bytes, header_length: str | None) -> Response:
    pixels, images = plane.settings.watch.max_pixels, plane.settings.serving.advanced.queue_images
    request = await plane.in_thread(lambda: parse_infer(body, header_length, pixels, images))
    with plane.slots.lease(version) as resident:
        return await plane.segment(
            resident, lambda: list(request.images), lambda labels: infer_response(request, labels, resident)
        )


def _repository_routes(plane: InferencePlane) -> APIRouter:
    """Build the routes of the model repository (Triton's extension), read-only: the registry decides what serves."""
    router = APIRouter(prefix="/v2/repository")

    @router.post(
        "/index",
        openapi_extra=body_schema(IndexBody, required=False),
        responses=problems(400, 408, 413, 415, protocol=True),
    )
    async def index(request: Request) -> list[IndexEntry]:
        """Every version in the registry or in memory, and whether it answers."""
        async with plane.bodies.read(request) as body:
            wanted = await plane.in_thread(lambda: read_index(body))
        entries = await plane.in_thread(lambda: _entries(plane))
        return [entry for entry in entries if entry.state == "READY" or not wanted.ready]

    @router.post("/models/{model}/load", status_code=403, responses=problems(403, protocol=True))
    @router.post("/models/{model}/unload", status_code=403, responses=problems(403, protocol=True))
    async def change(model: str) -> None:
        """Refuse always: the registry decides which version serves."""
        raise ApiError(403, "repository_read_only", READ_ONLY)

    return router


def _entries(plane: InferencePlane) -> list[IndexEntry]:
    resident, failure = plane.slots.versions, plane.follower.failure
    entries = []
    for version in sorted({*plane.registry.versions(), *resident}):  # what is resident answers, pruned or not
        ready = plane.ready and version in resident
        reason = failure.reason if failure is not None and failure.version == version else "not loaded"
        state = "READY" if ready else "UNAVAILABLE"
        entries.append(IndexEntry(name=MODEL, version=str(version), state=state, reason="" if ready else reason))
    return entries
