"""Endless seeded streams of random crops, from the labelled set and from the frame buffer.

Pixels are held in RAM when they fit (`RAM_LIMIT_BYTES`), because on a small machine repeated decompression of tiles
costs more than the network. Otherwise a thread reads tile by tile, one batch ahead of the training step. Batches are
uint8 in the layout of storage, [B, H, W, 3]: a quarter of the bytes to move to a GPU. The number of a row alone
determines its content (`adapters.sampling.crops`), so a stream continues from any position.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from adapters.networks.training_pass import IGNORE_INDEX
from adapters.sampling.margins import NO_MARGINS, Crop, Margins, Pixels, Region, choose_crop, random_region, scaled_size
from adapters.sampling.rare_class import RareClasses
from adapters.sampling.stream_rows import ShuffledOrder, StreamRows
from storage.buffer.catalog_records import FrameRecord
from storage.buffer.frames import FrameBuffer
from storage.source.labelled import LabelledSet

RAM_LIMIT_BYTES = 1 << 30
"""Largest set of images (with labels) that is held in RAM (bytes)."""


class SourceBatch(NamedTuple):
    """Labelled crops."""

    images: Tensor
    """[B, H, W, 3] uint8 RGB."""
    labels: Tensor
    """[B, H, W] uint8; `IGNORE_INDEX` on padding and unlabelled pixels, whatever value the files use for that."""


class TargetBatch(NamedTuple):
    """Unlabelled crops."""

    images: Tensor
    """[B, H, W, 3] uint8 RGB."""
    valid: Tensor
    """[B, H, W] bool; False on padding."""
    trusted: Tensor
    """[B, H, W] bool; True where pseudo-labels count: valid and outside the margins of the recipe."""


Reader = Callable[[Region], Pixels]


class SourceCrops(IterableDataset[SourceBatch]):
    """Endless batches of random, rescaled, flipped crops of labelled images.

    Every image is used once before any is used again, unless `rare` draws them. `crop` (height, width) is in pixels,
    `scale` is the range of random rescaling. `seed` defines the stream; process `rank` of `processes` draws its rows.
    `in_memory` says whether the pixels are in RAM.
    """

    def __init__(
        self,
        labelled: LabelledSet,
        indices: Sequence[int],
        *,
        crop: tuple[int, int],
        batch_size: int,
        seed: Sequence[int],
        rank: int = 0,
        processes: int = 1,
        scale: tuple[float, float] = (1.0, 1.0),
        rare: RareClasses | None = None,
    ) -> None:
        """Open the stream; `rare` counts images by their place in `indices`."""
        if not indices:
            raise ValueError("SourceCrops needs at least one labelled image")
        self.crop, self.batch_size, self.scale = crop, batch_size, scale
        self._ignored, self._rare = labelled.ignore_index, rare
        self._seed = tuple(seed)
        self.rows = StreamRows(seed, rank=rank, processes=processes)
        self._sizes = [labelled.valid(index) for index in indices]
        self.in_memory = 4 * _area(self._sizes) <= RAM_LIMIT_BYTES
        self._readers: list[tuple[Reader, Reader]] = [
            self._reader(labelled, index, size) for index, size in zip(indices, self._sizes, strict=True)
        ]

    def _reader(self, labelled: LabelledSet, index: int, size: tuple[int, int]) -> tuple[Reader, Reader]:
        """Return functions that read a region of the image and of its label."""
        if self.in_memory:
            whole = Region(0, 0, *size)
            return _held(whole.of(labelled.image(index)).copy()), _held(whole.of(labelled.label(index)).copy())
        return (
            lambda region: labelled.image_crop(index, region.top, region.left, region.height, region.width),
            lambda region: labelled.label_crop(index, region.top, region.left, region.height, region.width),
        )

    def __iter__(self) -> Iterator[SourceBatch]:
        order = ShuffledOrder(len(self._readers), self._seed)
        for rows in self.rows.batches(self.batch_size):
            images = np.zeros((self.batch_size, *self.crop, 3), np.uint8)
            labels = np.full((self.batch_size, *self.crop), self._ignored, np.uint8)
            for slot, row in enumerate(rows):
                self._draw(order[row.number], row.generator, images[slot], labels[slot])
            labels[labels == self._ignored] = IGNORE_INDEX
            yield SourceBatch(torch.from_numpy(images), torch.from_numpy(labels))

    def _draw(self, index: int, generator: np.random.Generator, image: Pixels, label: Pixels) -> None:
        """Write one crop of image `index` into `image` [H, W, 3] and `label` [H, W]."""
        enough: Callable[[Pixels], bool] | None = None
        if self._rare is not None:
            wanted, index = self._rare.draw(generator)
            enough = functools.partial(self._rare.enough, wanted=wanted)
        read_image, read_label = self._readers[index]
        factor = generator.uniform(*self.scale)
        if self._rare is not None:  # many regions may be tried: read the label once
            read_label = _held(read_label(Region(0, 0, *self._sizes[index])))

        def crop() -> Crop:
            region = random_region(self._sizes[index], self.crop, factor, generator)
            return region, read_label(region)

        region, labels = choose_crop(crop, self._ignored, enough)
        size = scaled_size(region, factor, self.crop)
        flip = generator.random() < 0.5
        _place(image, _resize(read_image(region), size, Image.Resampling.BILINEAR), flip)
        _place(label, _resize(labels, size, Image.Resampling.NEAREST), flip)


class TargetCrops(IterableDataset[TargetBatch]):
    """Endless batches of random, flipped crops of buffered frames, from inside their valid region.

    `margins` say where pseudo-labels do not count; they are mirrored with the image.
    """

    def __init__(
        self,
        buffer: FrameBuffer,
        records: Sequence[FrameRecord],
        *,
        crop: tuple[int, int],
        batch_size: int,
        seed: Sequence[int],
        rank: int = 0,
        processes: int = 1,
        margins: Margins = NO_MARGINS,
    ) -> None:
        if not records:
            raise ValueError("TargetCrops needs at least one frame")
        self.crop, self.batch_size, self._margins = crop, batch_size, margins
        self._seed = tuple(seed)
        self.rows = StreamRows(seed, rank=rank, processes=processes)
        self._sizes = [(record.valid_height, record.valid_width) for record in records]
        self.in_memory = 3 * _area(self._sizes) <= RAM_LIMIT_BYTES
        self._readers = [self._reader(buffer, record) for record in records]

    def _reader(self, buffer: FrameBuffer, record: FrameRecord) -> Reader:
        if self.in_memory:
            return _held(Region(0, 0, record.valid_height, record.valid_width).of(buffer.read(record)).copy())
        return lambda region: buffer.read_crop(record, region.top, region.left, region.height, region.width)

    def __iter__(self) -> Iterator[TargetBatch]:
        order = ShuffledOrder(len(self._readers), self._seed)
        for rows in self.rows.batches(self.batch_size):
            images = np.zeros((self.batch_size, *self.crop, 3), np.uint8)
            valid, trusted = np.zeros((2, self.batch_size, *self.crop), np.bool_)
            for slot, row in enumerate(rows):
                index = order[row.number]
                region = random_region(self._sizes[index], self.crop, 1.0, row.generator)
                flip = row.generator.random() < 0.5
                _place(images[slot], self._readers[index](region), flip)
                _place(trusted[slot], self._margins.trusted(region, self._sizes[index]), flip)
                valid[slot, : region.height, : region.width] = True
            yield TargetBatch(torch.from_numpy(images), torch.from_numpy(valid), torch.from_numpy(trusted))


def crop_within(crop: tuple[int, int], frame: tuple[int, int]) -> tuple[int, int]:
    """Return `crop` (height, width), no larger than a `frame`: a larger crop would only add padding."""
    return min(crop[0], frame[0]), min(crop[1], frame[1])


def _held(pixels: Pixels) -> Reader:
    """Return a reader of `pixels` [H, W, ...] in RAM."""
    return lambda region: region.of(pixels)


def _area(sizes: Sequence[tuple[int, int]]) -> int:
    return sum(height * width for height, width in sizes)


def _resize(pixels: Pixels, size: tuple[int, int], resampling: Image.Resampling) -> Pixels:
    """Resize `pixels` [h, w] or [h, w, 3] to `size` (height, width) with Pillow's bilinear filters."""
    if pixels.shape[:2] == size:
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((size[1], size[0]), resampling))


def _place(target: NDArray[Any], pixels: NDArray[Any], flip: bool) -> None:
    """Write `pixels` top-left into `target`, mirrored left-right when `flip`; the rest of `target` stays padding."""
    height, width = pixels.shape[:2]
    target[:height, :width] = pixels[:, ::-1] if flip else pixels


Batch = TypeVar("Batch", SourceBatch, TargetBatch)


def batches(crops: IterableDataset[Batch], device: torch.device) -> Iterator[Batch]:
    """Return the stream of `crops` through a DataLoader, pinned for `device`; from disk it is read one batch ahead.

    It uses no worker processes: crops from RAM cost microseconds, and zarr releases the interpreter lock while it
    decodes, so one thread is enough. It ends when the iterator is closed or collected. The random state of dropout does
    not change: a DataLoader draws a seed for workers, here from a generator of its own.
    """
    pinned, own = device.type == "cuda", torch.Generator()
    loader: Iterator[Batch] = iter(DataLoader(crops, batch_size=None, pin_memory=pinned, generator=own))
    return loader if getattr(crops, "in_memory", True) else _one_ahead(loader)


def _one_ahead(loader: Iterator[Batch]) -> Iterator[Batch]:
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="crops") as pool:
        pending = pool.submit(next, loader)
        while True:
            batch = pending.result()
            pending = pool.submit(next, loader)
            yield batch


class CropStream(Generic[Batch]):
    """Endless batches of `crops`, with a position that can be saved and restored."""

    def __init__(self, crops: SourceCrops | TargetCrops, device: torch.device) -> None:
        """Open the stream: pinned for `device`, read ahead from disk (`adapters.sampling.crops.batches`)."""
        self._crops, self._device = crops, device
        self._read = crops.rows.start
        self._batches = batches(crops, device)  # type: ignore[type-var]

    def __next__(self) -> Batch:
        batch: Batch = next(self._batches)  # type: ignore[assignment]  # of the kind that `crops` give
        self._read += 1
        return batch

    def state_dict(self) -> dict[str, int]:
        """Return how many batches were handed out; batches read ahead do not count."""
        return {"batches": self._read}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue after that many batches, without drawing them."""
        self._read = self._crops.rows.start = state["batches"]
        self._batches = batches(self._crops, self._device)  # type: ignore[type-var]
