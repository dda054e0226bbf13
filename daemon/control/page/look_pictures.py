"""Pictures of the view Look: a frame, labels of a version, and where two versions disagree."""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Literal, TypeVar, get_args

from fastapi import APIRouter, Path
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool

from configs.class_list import distinct_colors
from daemon.control.errors import ApiError
from daemon.control.messages import LARGEST_NUMBER
from daemon.control.page.view import HEADERS, View
from daemon.looks.lookup import AT_ONCE, Lookup
from daemon.looks.pictures import Colors, disagreement_png, labels_of, mask_png
from storage.buffer.catalog_records import FrameRecord
from storage.looks.store import Look, NoLook
from storage.registry.manifest import Manifest

Palette = Literal["own", "distinct"]
"""own: the colours of the class list; distinct: colours that colour-blind people tell apart."""
PALETTES: tuple[Palette, ...] = get_args(Palette)
PATIENCE = 10.0
"""How long a picture waits for the observer (seconds): mostly it is there, because the view waited for it."""
NOT_FOUND = ("looks_off", "frame_gone", "version_gone", "no_buffer")
DAMAGED = ("frame_damaged", "version_damaged", "buffer_unusable")
KEPT = {"Cache-Control": "private, max-age=31536000, immutable"}
"""A picture under the address of its content never changes."""
Found = TypeVar("Found")
Number = Annotated[int, Path(ge=1, le=LARGEST_NUMBER)]


def frame_address(record: FrameRecord, *, small: bool = False) -> str:
    """Return the address of a frame's picture; it names the content."""
    return f"/look/{'small' if small else 'frame'}/{record.id}.jpg?v={record.crc32:08x}"


def mask_address(look: Look, palette: Palette) -> str:
    """Return the address of the coloured labels of a look."""
    return f"/look/mask/{look.frame}/{look.version}.png?colors={palette}&v={look.name}"


def difference_address(first: Look, second: Look) -> str:
    """Return the address of the map of where two looks at one frame disagree."""
    return f"/look/difference/{first.frame}/{first.version}/{second.version}.png?v={first.name}_{second.digest}"


def colors_of(manifest: Manifest, palette: Palette) -> Colors:
    """Return the colour of each class of a version."""
    own = [entry["color"] for entry in manifest.classes]
    return [(red, green, blue) for red, green, blue in (own if palette == "own" else distinct_colors()[: len(own)])]


def create_pictures(view: View) -> APIRouter:
    """Return the routes of the pictures."""
    router = APIRouter()
    router.add_api_route("/look/frame/{number}.jpg", _frame(view, small=False), methods=["GET"])
    router.add_api_route("/look/small/{number}.jpg", _frame(view, small=True), methods=["GET"])

    @router.get("/look/mask/{number}/{version}.png")
    async def mask(number: Number, version: Number, colors: Palette = "own", v: str = "") -> Response:
        """Return the labels of a frame by a version in its colours."""
        lookup = _lookup(view)
        record, manifest = await run_in_threadpool(_found, lookup, number, version)
        png = _whole(await lookup.labels(record, manifest, PATIENCE))
        paint = partial(_painted, png, colors_of(manifest, colors))
        return await _png(paint, kept=v == Look.of(record, manifest).name)

    @router.get("/look/difference/{number}/{first}/{second}.png")
    async def difference(number: Number, first: Number, second: Number, v: str = "") -> Response:
        """Return where two versions disagree on a frame."""
        lookup = _lookup(view)
        record, one = await run_in_threadpool(_found, lookup, number, first)
        _, other = await run_in_threadpool(_found, lookup, number, second)
        pngs = [_whole(await lookup.labels(record, manifest, PATIENCE)) for manifest in (one, other)]
        paint = partial(_compared, *pngs)
        name = f"{Look.of(record, one).name}_{Look.of(record, other).digest}"
        return await _png(paint, kept=v == name)

    return router


def _frame(view: View, *, small: bool) -> Callable[..., Response]:
    def frame(number: Number, v: str = "") -> Response:
        """Return a frame without padding."""
        lookup = _lookup(view)
        record = _whole(lookup.frame(number))
        picture = _whole(lookup.picture(record, thumbnail=small))
        return _answer(picture, "image/jpeg", kept=v == f"{record.crc32:08x}")

    return frame


def _lookup(view: View) -> Lookup:
    return Lookup(view.context.in_force.now, view.context.registry)


def _found(lookup: Lookup, number: int, version: int) -> tuple[FrameRecord, Manifest]:
    return _whole(lookup.frame(number)), _whole(lookup.version(version))


def _whole(answer: Found | NoLook) -> Found:
    """Return what was found. Raises ApiError with the reason when it was not."""
    if isinstance(answer, NoLook):
        status = 404 if answer.state in NOT_FOUND else 409 if answer.state in DAMAGED else 503
        raise ApiError(status, "no_picture", f"{answer.state}: {answer.message}")
    return answer


async def _png(paint: Callable[[], bytes], *, kept: bool) -> Response:
    return _answer(await run_in_threadpool(_drawn, paint), "image/png", kept=kept)


def _drawn(paint: Callable[[], bytes]) -> bytes:
    with AT_ONCE:
        return paint()


def _painted(png: bytes, colors: Colors) -> bytes:
    return mask_png(labels_of(png), colors)


def _compared(first: bytes, second: bytes) -> bytes:
    return disagreement_png(labels_of(first), labels_of(second))


def _answer(content: bytes, kind: str, *, kept: bool) -> Response:
    return Response(content, media_type=kind, headers=HEADERS | (KEPT if kept else {}))
