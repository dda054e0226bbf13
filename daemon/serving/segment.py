"""`POST /v1/segment` (an image in, a mask out), `GET /v1/classes`, `GET /v1/serving`."""

import numpy as np
from fastapi import APIRouter, Request, Response
from numpy.typing import NDArray

from daemon.serving.answers import AnswerFormat, choose_format, render
from daemon.serving.body import read_body
from daemon.serving.errors import NotReady, refused
from daemon.serving.instrument import version_headers
from daemon.serving.multipart import image_part, is_multipart
from daemon.serving.plane import InferencePlane
from daemon.serving.status import ServingStatus, describe
from storage.errors import RefusedImage
from storage.images import decode_image

IMAGE_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "image/*": {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {
                "schema": {"type": "object", "properties": {"image": {"type": "string", "format": "binary"}}}
            },
        },
    },
    "responses": {"200": {"content": {"image/png": {}, "application/json": {}}}},
}


def segment_routes(plane: InferencePlane) -> APIRouter:
    """The routes of mfmd's own protocol."""
    router = APIRouter()

    @router.post("/v1/segment", response_class=Response, openapi_extra=IMAGE_BODY)
    async def segment(request: Request, format: str | None = None) -> Response:
        """Segment one image. The answer has the image's own size; `X-Checkpoint-Version` says which version gave it."""
        kind = choose_format(format, request.headers.get("accept", ""))
        if plane.slots.live is None:
            raise NotReady  # before the body is read
        plane.batcher.check_room()
        content_type = request.headers.get("content-type", "")
        body = await read_body(request, plane.settings.serving.max_body_bytes)
        with plane.slots.lease() as resident:
            [labels] = await plane.segment(resident, lambda: [_decode(plane, content_type, body)])
            # An overlay decodes again: pixels kept while a request waits would be memory without a bound.
            content = await plane.in_thread(
                lambda: render(
                    kind,
                    labels,
                    resident.manifest,
                    _decode(plane, content_type, body) if kind is AnswerFormat.OVERLAY else None,
                )
            )
            return Response(content, media_type=kind.media_type, headers=version_headers(resident))

    @router.get("/v1/classes")
    async def classes() -> dict[str, object]:
        """The class list: index in the mask, name and colour."""
        live = plane.slots.live
        listed = live.manifest.classes if live else [item.model_dump(mode="json") for item in plane.settings.classes]
        rows = [{"index": index, **entry} for index, entry in enumerate(listed)]
        return {"version": live.version if live else None, "classes": rows}

    @router.get("/v1/serving")
    async def serving() -> ServingStatus:
        """Which version serves, which one should, and why the last swap failed."""
        return describe(plane)

    return router


def _decode(plane: InferencePlane, content_type: str, body: bytes) -> NDArray[np.uint8]:
    """The image of a raw or multipart body, RGB `[h, w, 3]`; ApiError 4xx when there is none."""
    limits = plane.settings.serving
    content = image_part(content_type, body) if is_multipart(content_type) else body
    try:
        return decode_image(content, max_bytes=limits.max_body_bytes, max_pixels=limits.max_pixels)
    except RefusedImage as error:
        raise refused(error) from error
