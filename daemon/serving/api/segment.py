"""`POST /v1/segment` (an image in, a mask out), `GET /v1/classes`, `GET /v1/serving`."""

from dataclasses import replace
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Query, Request, Response
from numpy.typing import NDArray

from configs.class_list import ClassInfo
from daemon.serving.api.answers import AnswerFormat, SegmentSummary, choose_format, render
from daemon.serving.api.multipart import image_part, is_multipart
from daemon.serving.api.problems import Message, problems
from daemon.serving.errors import ApiError, NotReady, refused
from daemon.serving.middleware import version_headers
from daemon.serving.plane import InferencePlane
from daemon.serving.versions.follower import SwapFailure
from storage.errors import RefusedImage
from storage.media.bounded import DecodeLimits, decode_bounded
from storage.media.decode_cost import is_cheap

BINARY = {"schema": {"type": "string", "format": "binary"}}
FORM = {"schema": {"type": "object", "properties": {"image": BINARY["schema"]}, "required": ["image"]}}
IMAGE_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "An image file as it is, or a form with one part named `image`. Any format that ingest reads.",
        "content": {"image/jpeg": BINARY, "image/png": BINARY, "image/webp": BINARY, "multipart/form-data": FORM},
    },
}
ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"model": SegmentSummary, "description": "Mask, overlay or areas.", "content": {"image/png": BINARY}},
    **problems(400, 408, 413, 415, 422),
}
Format = Annotated[
    str | None,
    Query(
        description="What to answer; without it JSON if Accept names it, else `index`.",
        json_schema_extra={"enum": [*AnswerFormat]},
    ),
]


class ListedClass(ClassInfo):
    """A class and its index in masks."""

    index: int
    """Index in the mask."""


class ClassList(Message):
    """The classes of masks."""

    version: int | None
    """Version of these classes; None before the first: then those of the configuration."""
    classes: list[ListedClass]
    """In index order."""


class ServingStatus(Message):
    """The serving version, the wanted version, and the queue."""

    ready: bool
    """Whether requests are answered."""
    problems: list[str]
    """Why it does not work: a thread that ended by a bug (then `/healthz` is 503 too)."""
    version: int | None
    """Version that answers new requests; None before the first."""
    sha256: str | None
    """SHA-256 of its weights."""
    wanted: int | None
    """Version that the serving ref names; differs from `version` during a swap and after a failed one."""
    wanted_by: str | None
    """Who moved the ref there."""
    wanted_reason: str | None
    """Why."""
    resident: list[int]
    """Versions in memory, the live one first; a swap to one of them reads nothing from disk."""
    last_failure: SwapFailure | None
    """The last swap that failed since the start; current if its version is `wanted`."""
    queue_images: int
    """Images that wait for a forward pass."""
    queue_limit: int
    """Images that may wait."""
    device: str
    """Where the network runs."""
    computes: str | None
    """Number format of the serving version: float32, bf16 or fp16."""
    started: float
    """Unix time of the start (seconds)."""


def segment_routes(plane: InferencePlane) -> APIRouter:
    """Build the routes of mfmd's own protocol."""
    router = APIRouter()

    @router.post("/v1/segment", response_class=Response, openapi_extra=IMAGE_BODY, responses=ANSWERS)
    async def segment(request: Request, format: Format = None) -> Response:
        """Segment one image; the answer has the image's own size.

        `format` decides what comes back: `index` (class indices, PNG), `color`, `overlay` (PNG) or `json` (area of each
        class, and the mask). Without it `Accept: application/json` gives JSON, and anything else the index mask.
        """
        kind = choose_format(format, ",".join(request.headers.getlist("accept")))
        if plane.slots.live is None:
            raise NotReady  # before the body is read
        plane.batcher.check_room()
        async with plane.bodies.read(request) as body:
            return await _segment(plane, kind, request.headers.get("content-type", ""), body)

    @router.get("/v1/classes", responses=problems())
    async def classes() -> ClassList:
        """Return the class list: index in the mask, name and colour."""
        live = plane.slots.live
        listed = live.manifest.classes if live else [item.model_dump(mode="json") for item in plane.settings.classes]
        rows = [ListedClass.model_validate({"index": index, **entry}) for index, entry in enumerate(listed)]
        return ClassList(version=live.version if live else None, classes=rows)

    @router.get("/v1/serving", responses=problems())
    async def serving() -> ServingStatus:
        """Which version serves, which one should, and why the last swap failed."""
        return _status(plane)

    return router


async def _segment(plane: InferencePlane, kind: AnswerFormat, content_type: str, body: bytes) -> Response:
    if is_multipart(content_type):
        body = await plane.in_thread(lambda: image_part(content_type, body))
    slow = not is_cheap(body)
    with plane.slots.lease() as resident:
        # An overlay decodes again: pixels kept while a request waits would be memory without a bound.
        content = await plane.segment(
            resident,
            lambda: [_decode(plane, body)],
            lambda labels: render(kind, labels[0], resident.manifest, lambda: _decode(plane, body)),
            slow=slow,
            slow_answer=slow and kind is AnswerFormat.OVERLAY,
        )
        return Response(content, media_type=kind.media_type, headers=version_headers(resident))


def _decode(plane: InferencePlane, content: bytes) -> NDArray[np.uint8]:
    """Return the image in `content`, RGB `[h, w, 3]`; ApiError 4xx without one."""
    limits = replace(DecodeLimits.of(plane.settings.watch), max_bytes=plane.settings.serving.advanced.max_body_bytes)
    try:
        return decode_bounded(content, limits).pixels
    except RefusedImage as error:
        raise refused(error) from error
    except OSError as error:
        raise ApiError(503, "decode_interrupted", f"{error.strerror}; send it again", retry_after=1) from error


def _status(plane: InferencePlane) -> ServingStatus:
    live, wanted = plane.slots.live, plane.follower.wanted
    return ServingStatus(
        ready=plane.ready,
        problems=plane.dead,
        version=live.version if live else None,
        sha256=live.digest if live else None,
        wanted=wanted.version if wanted else None,
        wanted_by=wanted.by if wanted else None,
        wanted_reason=wanted.reason if wanted else None,
        resident=list(plane.slots.versions),
        last_failure=plane.follower.failure,
        queue_images=plane.batcher.depth,
        queue_limit=plane.settings.serving.advanced.queue_images,
        device=str(plane.device),
        computes=live.forward.computes if live else None,
        started=plane.started,
    )
