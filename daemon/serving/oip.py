"""Open Inference Protocol v2 over HTTP: server, health, model metadata, infer. The one model is called `segmentation`.

A version in the path means that version and no other: it answers as long as it is in memory (the serving one, and the
one that served before it), so a client can compare the two.
"""

from importlib.metadata import version as package_version

from fastapi import APIRouter, Request, Response

from daemon.serving.body import read_body
from daemon.serving.errors import ApiError, NotReady, VersionNotLoaded
from daemon.serving.instrument import version_headers
from daemon.serving.oip_tensors import (
    DATATYPE,
    HEADER_LENGTH,
    IMAGE_CHANNELS,
    INPUT,
    MODEL,
    OUTPUT,
    format_infer,
    parse_infer,
)
from daemon.serving.plane import InferencePlane

MODEL_PATH = "/v2/models/{model}"
VERSION_PATH = MODEL_PATH + "/versions/{version}"


def oip_routes(plane: InferencePlane) -> APIRouter:
    """The routes under `/v2`."""
    router = APIRouter()
    _add_server_routes(router, plane)
    _add_model_routes(router, plane)
    return router


def _add_server_routes(router: APIRouter, plane: InferencePlane) -> None:
    @router.get("/v2")
    async def server() -> dict[str, object]:
        """Server metadata."""
        return {"name": "mfmd", "version": package_version("mfmd"), "extensions": ["binary_tensor_data"]}

    @router.get("/v2/health/live")
    async def live() -> dict[str, bool]:
        """The process answers."""
        return {"live": True}

    @router.get("/v2/health/ready")
    async def ready(response: Response) -> dict[str, bool]:
        """200 once a version is loaded, else 503."""
        response.status_code = 200 if plane.ready else 503
        return {"ready": plane.ready}


def _add_model_routes(router: APIRouter, plane: InferencePlane) -> None:
    @router.get(MODEL_PATH)
    @router.get(VERSION_PATH)
    async def metadata(model: str, version: str | None = None) -> dict[str, object]:
        """Model metadata; `versions` are those in memory, the serving one first."""
        _check(plane, model, version)
        return {
            "name": MODEL,
            "versions": [str(number) for number in plane.slots.versions],
            "platform": "pytorch",
            "inputs": [{"name": INPUT, "datatype": DATATYPE, "shape": [-1, -1, -1, IMAGE_CHANNELS]}],
            "outputs": [{"name": OUTPUT, "datatype": DATATYPE, "shape": [-1, -1, -1]}],
        }

    @router.get(MODEL_PATH + "/ready")
    @router.get(VERSION_PATH + "/ready")
    async def model_ready(model: str, response: Response, version: str | None = None) -> dict[str, object]:
        """200 if the model (that version of it) answers, 503 if not yet; 404 for an unknown model or version."""
        _check(plane, model, version)
        response.status_code = 200 if plane.ready else 503
        return {"name": MODEL, "ready": plane.ready}

    @router.post(MODEL_PATH + "/infer", response_class=Response)
    @router.post(VERSION_PATH + "/infer", response_class=Response)
    async def infer(request: Request, model: str, version: str | None = None) -> Response:
        """Labels for a batch of images, all of one version."""
        number = _check(plane, model, version)
        if plane.slots.live is None:
            raise NotReady
        plane.batcher.check_room()
        body = await read_body(request, plane.settings.serving.max_body_bytes)
        return await _infer(plane, number, body, request.headers.get(HEADER_LENGTH))


def _check(plane: InferencePlane, model: str, version: str | None) -> int | None:
    """The version number that a path names, if any. Raises ApiError 404 unknown_model, version_not_loaded."""
    if model != MODEL:
        raise ApiError(404, "unknown_model", f"there is no model {model[:64]!r}; the only one is {MODEL!r}")
    if version is None:
        return None
    loaded = plane.slots.versions
    found = next((number for number in loaded if str(number) == version), None)
    if found is None:
        raise VersionNotLoaded(version[:64], loaded)
    return found


async def _infer(plane: InferencePlane, version: int | None, body: bytes, header_length: str | None) -> Response:
    limits = plane.settings.serving
    request = await plane.in_thread(lambda: parse_infer(body, header_length, limits.max_pixels))
    with plane.slots.lease(version) as resident:
        labels = await plane.segment(resident, lambda: list(request.images))
        content, headers, media_type = await plane.in_thread(lambda: format_infer(request, labels, resident.version))
        return Response(content, media_type=media_type, headers=headers | version_headers(resident))
