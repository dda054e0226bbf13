"""Random crops of the labelled set and of the frame buffer.

Batches are uint8 in the layout of storage, [B, H, W, 3]: a quarter of the bytes to move to a GPU.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from adapters.networks.training_pass import IGNORE_INDEX
from adapters.sampling.margins import Crop, Pixels, Region, choose_crop, random_region, scaled_size, trusted_part
from adapters.sampling.rare_class import RareClasses
from adapters.sampling.streams import CropStream, SourceBatch, TargetBatch
from configs.recipe import RecipeBase
from storage.buffer.catalog_records import FrameRecord
from storage.buffer.frames import FrameBuffer
from storage.source.labelled import LabelledSet


class SourceCrops(CropStream[SourceBatch]):
    """Random, rescaled, flipped crops of labelled images; `scale` is the range of random rescaling.

    Every image is used once before any is used again, unless `rare` draws them.
    """

    def __init__(
        self,
        labelled: LabelledSet,
        indices: Sequence[int],
        *,
        scale: tuple[float, float] = (1.0, 1.0),
        rare: RareClasses | None = None,
        **stream: Any,
    ) -> None:
        """Open the stream with the arguments `stream` of `CropStream`; `rare` counts images by place in `indices`."""
        if not indices:
            raise ValueError("SourceCrops needs at least one labelled image")
        super().__init__([labelled.valid[index] for index in indices], 4, **stream)
        self._scale, self._rare, self._ignored = scale, rare, labelled.ignore_index
        self._image = self._reader(labelled.images, indices)
        self._label = self._reader(labelled.labels, indices)

    def _draw(self, number: int) -> SourceBatch:
        images = np.zeros((self.batch_size, *self.crop, 3), np.uint8)
        labels = np.full((self.batch_size, *self.crop), self._ignored, np.uint8)
        for slot, (index, generator) in enumerate(self._rows(number)):
            self._crop(index, generator, images[slot], labels[slot])
        labels[labels == self._ignored] = IGNORE_INDEX
        return SourceBatch(torch.from_numpy(images), torch.from_numpy(labels))

    def _crop(self, index: int, generator: np.random.Generator, image: Pixels, label: Pixels) -> None:
        """Write one crop of image `index` into `image` [H, W, 3] and `label` [H, W]."""
        enough: Callable[[Pixels], bool] | None = None
        if self._rare is not None:
            wanted, index = self._rare.draw(generator)
            enough = functools.partial(self._rare.enough, wanted=wanted)
        factor, size = generator.uniform(*self._scale), self._sizes[index]
        # many regions may be tried for a rare class: its label is read once
        whole = None if self._rare is None else self._label(index, Region(0, 0, *size))

        def draw() -> Crop:
            region = random_region(size, self.crop, factor, generator)
            return region, self._label(index, region) if whole is None else region.of(whole)

        region, labels = choose_crop(draw, self._ignored, enough)
        scaled = scaled_size(region, factor, self.crop)
        flip = generator.random() < 0.5
        _place(image, _resize(self._image(index, region), scaled, Image.Resampling.BILINEAR), flip)
        _place(label, _resize(labels, scaled, Image.Resampling.NEAREST), flip)


class TargetCrops(CropStream[TargetBatch]):
    """Random, flipped crops of buffered frames, from inside their valid region.

    The margins of `recipe` say where pseudo-labels do not count; they are mirrored with the image.
    """

    def __init__(self, buffer: FrameBuffer, records: Sequence[FrameRecord], recipe: RecipeBase, **stream: Any) -> None:
        """Open the stream with the arguments `stream` of `CropStream`."""
        if not records:
            raise ValueError("TargetCrops needs at least one frame")
        super().__init__([(record.valid_height, record.valid_width) for record in records], 3, **stream)
        self._recipe = recipe
        self._frame = self._reader(buffer, records)

    def _draw(self, number: int) -> TargetBatch:
        images = np.zeros((self.batch_size, *self.crop, 3), np.uint8)
        valid, trusted = np.zeros((2, self.batch_size, *self.crop), np.bool_)
        for slot, (index, generator) in enumerate(self._rows(number)):
            region = random_region(self._sizes[index], self.crop, 1.0, generator)
            flip = generator.random() < 0.5
            _place(images[slot], self._frame(index, region), flip)
            _place(trusted[slot], trusted_part(region, self._sizes[index], self._recipe), flip)
            valid[slot, : region.height, : region.width] = True
        return TargetBatch(torch.from_numpy(images), torch.from_numpy(valid), torch.from_numpy(trusted))


def crop_within(crop: tuple[int, int], frame: tuple[int, int]) -> tuple[int, int]:
    """Return `crop` (height, width), no larger than a `frame`: a larger crop would only add padding."""
    return min(crop[0], frame[0]), min(crop[1], frame[1])


def _resize(pixels: Pixels, size: tuple[int, int], resampling: Image.Resampling) -> Pixels:
    if pixels.shape[:2] == size:
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((size[1], size[0]), resampling))


def _place(target: NDArray[Any], pixels: NDArray[Any], flip: bool) -> None:
    """Write `pixels` top-left into `target`, mirrored left-right when `flip`; the rest of `target` stays padding."""
    height, width = pixels.shape[:2]
    target[:height, :width] = pixels[:, ::-1] if flip else pixels
