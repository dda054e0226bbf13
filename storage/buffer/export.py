"""Export frames as image files with an index, for labelling and for other tools."""

import io
import json
import shutil
import tarfile
import uuid
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from storage import durable
from storage.buffer.catalog_records import FrameRecord
from storage.buffer.frames import FrameBuffer
from storage.durable.permissions import shared_files
from storage.errors import FrameEvicted, FramesRefused

Format = Literal["png", "jpeg", "webdataset"]
INDEX = "index.jsonl"
JPEG_QUALITY = 95
"""Pillow's quality, with full colour resolution."""
SHARD_FRAMES = 1000
"""Frames in one tar of a WebDataset."""


@shared_files()
def export_frames(
    buffer: FrameBuffer, target: Path, format: Format, *, holdout: bool | None = None, limit: int | None = None
) -> int:
    """Write frames (the newest `limit`, if given) to the folder `target`, new or empty; return how many.

    The folder appears complete or not at all. Frames evicted meanwhile are omitted. Raises FramesRefused when `target`
    holds something, CorruptBuffer for a damaged frame.
    """
    target = target.resolve()
    _check_target(target)
    records = buffer.records(holdout=holdout)
    records = records if limit is None else records[max(0, len(records) - limit) :]
    durable.make_directory(target.parent)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}{durable.PARTIAL}")
    temporary.mkdir()
    try:
        count = _write(buffer, records, temporary, format)
        if target.exists():
            target.rmdir()
        durable.publish_directory(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return count


def _check_target(target: Path) -> None:
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        what = "holds files already" if target.is_dir() else "is a file"
        raise FramesRefused(f"{target}: {what}; name a new or an empty folder")


def _write(buffer: FrameBuffer, records: Sequence[FrameRecord], folder: Path, format: Format) -> int:
    count, shard = 0, ""
    with (folder / INDEX).open("w", encoding="utf-8") as index, ExitStack() as tars:
        for record in records:
            try:
                pixels = buffer.read(record)[: record.valid_height, : record.valid_width]
            except FrameEvicted:
                continue
            name = f"{record.id:08d}.{'png' if format == 'png' else 'jpg'}"
            line, data = _line(record, name), _encoded(pixels, format)
            if format == "webdataset":
                if count % SHARD_FRAMES == 0:
                    tars.close()
                    shard = f"frames-{count // SHARD_FRAMES:06d}.tar"
                    tar = tars.enter_context(tarfile.TarFile(folder / shard, "w"))
                _add(tar, line, data)
                line["file"] = f"{shard}/{name}"
            else:
                (folder / name).write_bytes(data)
            index.write(_json(line) + "\n")
            count += 1
    return count


def _encoded(pixels: NDArray[np.uint8], format: Format) -> bytes:
    data, image = io.BytesIO(), Image.fromarray(pixels)
    if format == "png":
        image.save(data, "PNG")
    else:
        image.save(data, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return data.getvalue()


def _line(record: FrameRecord, file: str) -> dict[str, Any]:
    """Return a line of the index; sizes are of the exported image and of the image in its own file (pixels)."""
    return {
        "file": file,
        "frame": record.id,
        "name": record.name,
        "digest": record.digest,
        "source": record.source,
        "captured_at": record.captured_at,
        "committed_at": record.committed_at,
        "height": record.valid_height,
        "width": record.valid_width,
        "source_height": record.source_height,
        "source_width": record.source_width,
        "holdout": record.holdout,
    }


def _json(line: dict[str, Any]) -> str:
    return json.dumps(line, ensure_ascii=False, separators=(",", ":"))


def _add(tar: tarfile.TarFile, line: dict[str, Any], image: bytes) -> None:
    """Add an image and its JSON, under one key (the layout of webdataset)."""
    for file, data in ((line["file"], image), (f"{Path(line['file']).stem}.json", _json(line).encode())):
        entry = tarfile.TarInfo(file)
        entry.size, entry.mtime = len(data), int(line["captured_at"])
        tar.addfile(entry, io.BytesIO(data))
