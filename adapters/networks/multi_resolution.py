"""HRDA: a network that sees the whole image at half size (context) and windows of it at full size (detail).

Hoyer et al., "HRDA: Context-Aware High-Resolution Domain-Adaptive Semantic Segmentation" (ECCV 2022, arXiv 2204.13132).
Encoder and segmentation decoder are those of a plain network, shared by both; a scale-attention head, which reads the
context, mixes their predictions class by class:

    fused = up((1 - a) * context) + up(a) * detail        inside the window
    fused = up(context)                                   outside

A context is half a crop a side, a window too, as published. The same rule holds here for an image of any size, so a
frame is seen like a training crop, and the cost in full images does not grow with the frame. What differs from the
original: docs/explanation/decisions/0008-multi-resolution.md.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapters.networks.decoders.daformer import ScaleAttention
from adapters.networks.network import MIN_SIDE, Output, SegmentationNetwork, View, Window
from adapters.networks.step_rng import StepRng


class MultiResolutionDecoder(nn.Module):
    """The decoder that both scales share and the attention between them; `forward` decodes the maps of one view.

    The attention is a part of the decoder. So code that trains the decoder faster, freezes it or protects its BatchNorm
    statistics (`adapters.mfm.branch`) has the same effect on the attention.
    """

    def __init__(self, head: nn.Module, attention: ScaleAttention) -> None:
        super().__init__()
        self.head = head
        self.attention = attention

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Return logits `[B, K, h, w]` of the maps of one view."""
        logits: Tensor = self.head(features)
        return logits


class MultiResolutionNetwork(SegmentationNetwork):
    """A network around the encoder and decoder of a plain one; `encode` and `decode` remain those of a single view.

    BatchNorm in train mode: encoder and decoder normalise context and detail separately with the batch's own
    statistics, and record both alike, one record a pass for each. The attention only sees the context. Training passes
    and `forward` agree in that, so nothing drifts between them.
    """

    decoder: MultiResolutionDecoder
    detail_loss_weight = 0.1
    """Share of a training pass's loss that the detail's own prediction has (0-1), as published."""

    def __init__(self, plain: SegmentationNetwork, attention: ScaleAttention) -> None:
        super().__init__(
            plain.encoder,
            MultiResolutionDecoder(plain.decoder, attention),
            num_classes=plain.num_classes,
            feature_channels=plain.feature_channels,
        )

    def view_size(self, crop: tuple[int, int]) -> tuple[int, int]:
        """Return height and width of the context, and of the detail, for images of `crop`."""
        return view_size(crop)

    def views(self, images: Tensor, draws: StepRng) -> tuple[View, ...]:
        """Return the images `[B, 3, H, W]` at half size, and one window of them at full size for the batch."""
        window = random_window(_size(images), draws)
        return View(_context(images), None), View(window.of(images), window)

    def outputs(
        self, features: Sequence[Sequence[Tensor]], views: Sequence[View], size: tuple[int, int]
    ) -> tuple[Output, ...]:
        """Return the fused prediction of everything, and the detail's own prediction of its window."""
        context, detail = features
        window = views[1].window
        assert window is not None
        own = self.decode(detail, (window.height, window.width))
        fused, weight = self._fuse(context, own, window, size), self.detail_loss_weight
        return Output(fused, None, 1.0 - weight), Output(own, window, weight)

    def encode_all(self, images: Tensor) -> tuple[tuple[Tensor, ...], ...]:
        """Return maps of the context `[B, ...]`, and of all overlapped windows, stacked: `[windows * B, ...]`.

        One stack keeps a GPU busy, and in train mode BatchNorm normalises all windows alike.
        """
        windows = [window.of(images) for window in overlapped_windows(_size(images))]
        return self.encode(_context(images)), self.encode(torch.cat(windows))

    def predict(self, features: Sequence[Sequence[Tensor]], size: tuple[int, int]) -> Tensor:
        """Return logits `[B, K, *size]` from the maps of `encode_all`: the windows' mean fused with the context."""
        context, details = features
        return self._fuse(context, self._mean_detail(details, size), Window(0, 0, *size), size)

    def _mean_detail(self, details: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Return logits `[B, K, *size]`, averaged where windows overlap."""
        windows = overlapped_windows(size)
        parts = self.decoder(details).contiguous().chunk(len(windows))  # windows times [B, K, h, w]
        total = parts[0].new_zeros(*parts[0].shape[:2], *size, dtype=torch.float32)  # also under autocast
        count = total.new_zeros(size)
        for window, logits in zip(windows, parts, strict=True):
            window.of(total).add_(_resize(logits, (window.height, window.width)))
            window.of(count).add_(1.0)
        mean: Tensor = total / count
        return mean

    def _fuse(self, context: Sequence[Tensor], detail: Tensor, window: Window, size: tuple[int, int]) -> Tensor:
        """Return logits `[B, K, *size]` of the context's maps and of `detail`, logits `[B, K, h, w]` of `window`."""
        logits = self.decoder(context).contiguous()  # as `decode` has them
        attention = _resize(self.decoder.attention(context).contiguous(), _size(logits))
        rest = window.of(_resize((1.0 - attention) * logits, size))
        inside = rest + window.of(_resize(attention, size)) * detail
        if window == Window(0, 0, *size):
            return inside
        fused = _resize(logits, size)
        window.of(fused).copy_(inside)
        return fused


def _context(images: Tensor) -> Tensor:
    """Return `images` `[B, 3, H, W]` at half size; bilinear, which at exactly half is the mean of 2x2 pixels."""
    return _resize(images, view_size(_size(images)))


def _size(maps: Tensor) -> tuple[int, int]:
    return maps.shape[-2], maps.shape[-1]


def _resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize `maps` `[B, C, h, w]` bilinearly to `size`, in new memory; maps of that size are returned unchanged."""
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


STEP = 8
"""Coordinates of a training window are multiples of this (pixels): cells of a stride-4 map of the half-size image."""


def view_size(size: tuple[int, int]) -> tuple[int, int]:
    """Return height and width of a window, and of the half-size image, for images of `size`: half, rounded up (pixels).

    The result is never below the smallest input of an encoder (`MIN_SIDE`) nor above the image: a small image is one
    window.
    """
    height, width = (min(whole, max(MIN_SIDE, (whole + 1) // 2)) for whole in size)
    return height, width


def random_window(size: tuple[int, int], draws: StepRng) -> Window:
    """Draw one window for a whole batch of images of `size`; its coordinates are multiples of `STEP`."""
    view = view_size(size)
    places = [(whole - part) // STEP + 1 for whole, part in zip(size, view, strict=True)]
    top, left = (STEP * int(count * draw) for count, draw in zip(places, draws.shared(2).tolist(), strict=True))
    return Window(top, left, *view)


def overlapped_windows(size: tuple[int, int]) -> tuple[Window, ...]:
    """Return windows over images of `size`, row by row, each overlapping its neighbours by half.

    The last ones end at the border. There are nine for all but small images.
    """
    height, width = view_size(size)
    rows, columns = _starts(size[0], height), _starts(size[1], width)
    return tuple(Window(top, left, height, width) for top in rows for left in columns)


def _starts(whole: int, part: int) -> list[int]:
    """Return the first pixels of the windows along one side."""
    return [*range(0, whole - part, (part + 1) // 2), whole - part]
