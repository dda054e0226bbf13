"""Export frames as image files with an index, for labelling and for other tools."""

import io
import shutil
import tarfile
import uuid
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from storage import durable
from storage.buffer.catalog_records import FrameRecord
from storage.buffer.frames import FrameBuffer
from storage.durable.permissions import shared_files
from storage.durable.record import Record
from storage.errors import FrameEvicted, FramesRefused

Format = Literal["png", "jpeg", "webdataset"]
INDEX = "index.jsonl"
JPEG_QUALITY = 95
"""Pillow's quality, with full colour resolution."""
SHARD_FRAMES = 1000
"""Frames in one tar of a WebDataset."""


class ExportedFrame(Record):
    """One line of `index.jsonl`."""

    file: str
    """Image file, relative to the folder; in a WebDataset `TAR/NAME`."""
    frame: int
    """Number of the frame."""
    name: str
    """The file it came from, relative to the drop folder."""
    digest: str
    """Hex SHA-256 of that file."""
    source: str
    """Source label (camera)."""
    captured_at: float
    """Unix time (seconds)."""
    committed_at: float
    """Unix time (seconds)."""
    height: int
    """Height of the exported image (pixels): the part of the frame that holds image."""
    width: int
    """Width of the exported image (pixels)."""
    source_height: int
    """Height of the image in its own file (pixels)."""
    source_width: int
    """Width of the image in its own file (pixels)."""
    holdout: bool
    """Whether rounds never train on it."""


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
    count = 0
    with (folder / INDEX).open("w", encoding="utf-8") as index, closing(_Tars(folder)) as tars:
        for record in records:
            try:
                pixels = buffer.read(record)[: record.valid_height, : record.valid_width]
            except FrameEvicted:
                continue
            name = f"{record.id:08d}.{'png' if format == 'png' else 'jpg'}"
            line, data = _line(record, name), _encoded(pixels, format)
            if format == "webdataset":
                tar = tars.add(count, name, data, line)
                line = line.model_copy(update={"file": f"{tar}/{name}"})
            else:
                (folder / name).write_bytes(data)
            index.write(line.model_dump_json() + "\n")
            count += 1
    return count


def _encoded(pixels: NDArray[np.uint8], format: Format) -> bytes:
    data, image = io.BytesIO(), Image.fromarray(pixels)
    if format == "png":
        image.save(data, "PNG")
    else:
        image.save(data, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return data.getvalue()


def _line(record: FrameRecord, file: str) -> ExportedFrame:
    return ExportedFrame(
        file=file,
        frame=record.id,
        name=record.name,
        digest=record.digest,
        source=record.source,
        captured_at=record.captured_at,
        committed_at=record.committed_at,
        height=record.valid_height,
        width=record.valid_width,
        source_height=record.source_height,
        source_width=record.source_width,
        holdout=record.holdout,
    )


class _Tars:
    """Tar files of `SHARD_FRAMES` frames each: an image and its JSON beside it under one key (webdataset's layout)."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._open = folder, ""
        self._tar: tarfile.TarFile | None = None

    def add(self, number: int, name: str, image: bytes, line: ExportedFrame) -> str:
        wanted = f"frames-{number // SHARD_FRAMES:06d}.tar"
        if wanted != self._open or self._tar is None:
            self.close()
            self._tar, self._open = tarfile.TarFile(self._folder / wanted, "w"), wanted
        for file, data in ((name, image), (f"{Path(name).stem}.json", line.model_dump_json().encode())):
            entry = tarfile.TarInfo(file)
            entry.size, entry.mtime = len(data), int(line.captured_at)
            self._tar.addfile(entry, io.BytesIO(data))
        return wanted

    def close(self) -> None:
        if self._tar is not None:
            self._tar.close()
            self._tar = None
