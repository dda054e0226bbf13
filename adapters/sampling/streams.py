"""Endless seeded streams of batches: a batch follows from its number alone, so a position is one integer.

A stream continues from any position without drawing what comes before. Each of several processes draws its rows of the
common batch without touching the rows of the others.
"""

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from adapters.sampling.margins import Pixels, Region
from storage.buffer.frames import FrameBuffer
from storage.buffer.pixel_array import PixelArray

RAM_LIMIT_BYTES = 1 << 30
"""Largest set of images (with labels) that is held in RAM (bytes)."""
_CROPS, _ORDER = 0, 1


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


Batch = TypeVar("Batch", SourceBatch, TargetBatch)
Reader = Callable[[int, Region], Pixels]
"""Gives a region of the image of an index."""


class CropStream(ABC, Generic[Batch]):
    """Endless batches of `crop` (height, width; pixels), with a position that can be saved and restored.

    Pixels are held in RAM when they fit (`RAM_LIMIT_BYTES`), because on a small machine repeated decompression of tiles
    costs more than the network. Otherwise a thread draws one batch ahead of the training step; zarr releases the
    interpreter lock while it decodes. `seed` defines the stream in every process; process `rank` of `processes` draws
    its rows. `pin` puts batches into pinned memory, for a GPU.
    """

    def __init__(
        self,
        sizes: Sequence[tuple[int, int]],
        pixel_bytes: int,
        *,
        crop: tuple[int, int],
        batch_size: int,
        seed: Sequence[int],
        rank: int = 0,
        processes: int = 1,
        pin: bool = False,
    ) -> None:
        """Open the stream over images of `sizes` (height, width) with `pixel_bytes` bytes a pixel, labels included."""
        self.crop, self.batch_size, self._sizes = crop, batch_size, sizes
        self._seed, self._rank, self._processes, self._pin = tuple(seed), rank, processes, pin
        self.in_memory = pixel_bytes * sum(height * width for height, width in sizes) <= RAM_LIMIT_BYTES
        """Whether the pixels are in RAM."""
        self._position = 0
        self._thread = ThreadPoolExecutor(1, "crops")
        self._ahead: Future[Batch] | None = None

    def __next__(self) -> Batch:
        if self.in_memory:
            batch = self._drawn(self._position)
        else:
            batch = (self._ahead or self._thread.submit(self._drawn, self._position)).result()
            self._ahead = self._thread.submit(self._drawn, self._position + 1)
        self._position += 1
        return batch

    def _drawn(self, number: int) -> Batch:
        batch = self._draw(number)
        return type(batch)(*(part.pin_memory() for part in batch)) if self._pin else batch

    @abstractmethod
    def _draw(self, number: int) -> Batch: ...

    def _rows(self, number: int) -> Iterator[tuple[int, np.random.Generator]]:
        """Yield the index of an image and a random generator for each of this process's rows of batch `number`.

        Both follow from the place of the row in the stream, whichever process draws it.
        """
        first = (number * self._processes + self._rank) * self.batch_size
        for row in range(first, first + self.batch_size):
            yield image_of(row, len(self._sizes), self._seed), np.random.default_rng((*self._seed, _CROPS, row))

    def _reader(self, store: FrameBuffer | PixelArray, keys: Sequence[Any]) -> Reader:
        """Return a reader of the images that `store` has under `keys`, from RAM if they fit there."""
        if not self.in_memory:
            return lambda index, region: store.read_crop(keys[index], *region)
        whole = [Region(0, 0, *size) for size in self._sizes]
        held = [region.of(store.read(key)).copy() for region, key in zip(whole, keys, strict=True)]
        return lambda index, region: region.of(held[index])

    def state_dict(self) -> dict[str, int]:
        """Return how many batches were handed out; a batch that was read ahead does not count."""
        return {"batches": self._position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue after that many batches, without drawing them."""
        self._position, self._ahead = state["batches"], None


def image_of(row: int, images: int, seed: tuple[int, ...]) -> int:
    """Return which of `images` images the row `row` of a stream shows; each occurs once in every `images` rows."""
    epoch, place = divmod(row, images)
    return int(_order(images, seed, epoch)[place])


@functools.lru_cache(maxsize=8)
def _order(images: int, seed: tuple[int, ...], epoch: int) -> NDArray[np.int64]:
    return np.random.default_rng((*seed, _ORDER, epoch)).permutation(images)
