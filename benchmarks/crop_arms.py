"""The crop readers that benchmarks/crops.py compares: our buffer, image files, a torch Dataset, LitData."""

import hashlib
import os
import subprocess
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
import zarr
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Sampler

from configs.buffer import BufferSettings
from storage.buffer.catalog_records import FileFact
from storage.buffer.files import ARRAY
from storage.buffer.frames import FrameBuffer, NewFrame
from storage.layout import StateLayout
from storage.media.images import fit_frame

Pixels = NDArray[np.uint8]


class Spot(NamedTuple):
    """A crop to read, `side` pixels high and wide."""

    frame: int
    top: int
    left: int
    side: int

    def of(self, pixels: Pixels) -> Pixels:
        """Return the crop of a whole image [H, W, 3], as a copy."""
        return pixels[self.top : self.top + self.side, self.left : self.left + self.side].copy()


class Sample(NamedTuple):
    """One crop read."""

    seconds: float
    crc32: int
    """Of its pixels."""


class Arm(Protocol):
    """A reader of crops."""

    name: str
    lossless: bool
    """Whether the pixels must be those that were drawn."""
    stored: float
    """Bytes a frame takes on the disk."""

    def read(self, spot: Spot) -> Sample:
        """Read one crop, timed."""


class Local:
    """A reader within this process."""

    def __init__(self, name: str, lossless: bool, stored: float) -> None:
        self.name, self.lossless, self.stored = name, lossless, stored

    def read(self, spot: Spot) -> Sample:
        """Read one crop, timed."""
        started = time.perf_counter()
        pixels = self.pixels(spot)
        seconds = time.perf_counter() - started
        return Sample(seconds, zlib.crc32(pixels.tobytes()))

    def pixels(self, spot: Spot) -> Pixels:
        """Return the crop, [side, side, 3]."""
        raise NotImplementedError


class Files(Local):
    """Image files: decode the whole image with Pillow, cut the crop out."""

    def __init__(self, name: str, folder: Path) -> None:
        self._paths = sorted(folder.iterdir())
        super().__init__(name, folder.name == "png", folder_bytes(folder) / len(self._paths))

    def pixels(self, spot: Spot) -> Pixels:
        """Return the crop, [side, side, 3]."""
        with Image.open(self._paths[spot.frame]) as image:
            return spot.of(np.asarray(image.convert("RGB")))


class Buffer(Local):
    """Our frame buffer, as training reads it when the frames do not fit into RAM."""

    def __init__(self, name: str, root: Path, compression: str, photos: Sequence[Pixels], held: ExitStack) -> None:
        layout = StateLayout(root)
        layout.create()
        height, width, _ = photos[0].shape
        settings = BufferSettings.model_validate(
            {
                "height": height,
                "width": width,
                "capacity_frames": len(photos),
                "reserve_bytes": 0,
                "advanced": {"compression": compression},
            }
        )
        with FrameBuffer.open(layout, settings, writable=True) as writer:
            writer.append([_new_frame(number, pixels) for number, pixels in enumerate(photos)])
        self._buffer = held.enter_context(FrameBuffer.open(layout, settings, writable=False))
        self._records = self._buffer.records()
        super().__init__(name, True, folder_bytes(layout.frames_zarr) / len(photos))

    def pixels(self, spot: Spot) -> Pixels:
        """Return the crop, [side, side, 3]."""
        return self._buffer.read_crop(self._records[spot.frame], spot.top, spot.left, spot.side, spot.side)


class Zarr(Local):
    """The array of a buffer, read as anyone would with zarr."""

    def __init__(self, name: str, root: Path, frames: int) -> None:
        folder = StateLayout(root).frames_zarr
        self._array = zarr.open_array(folder, path=ARRAY, mode="r")
        super().__init__(name, True, folder_bytes(folder) / frames)

    def pixels(self, spot: Spot) -> Pixels:
        """Return the crop, [side, side, 3]."""
        rows, columns = slice(spot.top, spot.top + spot.side), slice(spot.left, spot.left + spot.side)
        return np.asarray(self._array[spot.frame, rows, columns], np.uint8)


class Folder(Local):
    """Another reader as the map-style Dataset of a DataLoader without workers: a collated tensor, batch of one."""

    def __init__(self, name: str, inner: Local) -> None:
        super().__init__(name, inner.lossless, inner.stored)
        self._asked = _Asked()
        self._batches = iter(DataLoader(_Crops(inner), batch_size=1, sampler=self._asked))

    def pixels(self, spot: Spot) -> Pixels:
        """Return the crop, [side, side, 3]."""
        self._asked.spot = spot
        batch: torch.Tensor = next(self._batches)
        return batch[0].numpy()


class _Crops(Dataset[torch.Tensor]):
    def __init__(self, inner: Local) -> None:
        self._inner = inner

    def __getitem__(self, spot: Spot) -> torch.Tensor:
        return torch.from_numpy(self._inner.pixels(spot))


class _Asked(Sampler[Spot]):
    """Yields the last requested spot."""

    spot: Spot

    def __iter__(self) -> Iterator[Spot]:
        while True:
            yield self.spot


class Peer:
    """The process of `crop_peer.py`."""

    def __init__(self, python: Path, photos: Path, out: Path, held: ExitStack) -> None:
        """Write its data sets and start it. Raises CalledProcessError, or RuntimeError if it does not start."""
        script = str(Path(__file__).with_name("crop_peer.py"))
        surroundings = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        surroundings |= {"OMP_NUM_THREADS": "1"}
        order = [str(python), script, "prepare", str(photos), str(out)]
        subprocess.run(order, check=True, env=surroundings, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        order = [str(python), script, "serve", str(out)]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(order, env=surroundings, stdin=pipe, stdout=pipe, text=True)
        held.callback(self._end)
        self.version = self.answer()

    def ask(self, order: str) -> str:
        """Send a line, wait for the answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(order + "\n")
        self._process.stdin.flush()
        return self.answer()

    def answer(self) -> str:
        """Return the next line that it prints. Raises RuntimeError if it has ended."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the peer's process ended; why stands above")
        return line.strip()

    def _end(self) -> None:
        self._process.communicate()


class Streamed:
    """LitData, in the peer's process, which measures the time."""

    def __init__(self, name: str, peer: Peer, folder: Path, frames: int) -> None:
        self.name, self.lossless, self.stored = name, folder.name == "raw", folder_bytes(folder) / frames
        self._peer, self._form = peer, folder.name

    def read(self, spot: Spot) -> Sample:
        """Read one crop, timed."""
        seconds, crc = self._peer.ask(f"{self._form} {' '.join(map(str, spot))}").split()
        return Sample(float(seconds), int(crc))


def folder_bytes(folder: Path) -> int:
    """Return the bytes of the files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _new_frame(number: int, pixels: Pixels) -> NewFrame:
    height, width, _ = pixels.shape
    digest = hashlib.sha256(pixels.tobytes()).hexdigest()
    frame = fit_frame(pixels, height, width)
    return NewFrame(FileFact(f"{number:05d}.png", 1, number), digest, float(number), height, width, frame)
