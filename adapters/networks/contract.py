"""The contract of a network, as checks that raise NetworkMismatch: what mfmd relies on without looking again.

`mfmd pretrain` and `mfmd import` check a network of an operator's own package before they use it. `adapters.testing`
has the same checks as tests.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from adapters.errors import NetworkMismatch
from adapters.networks.network import SegmentationNetwork
from adapters.networks.own import as_maps
from adapters.networks.weight_files import misfits

SIZES = ((64, 96), (90, 122))
"""Heights and widths that are tried (pixels): every stride divides the first one, none the second one."""
TOLERANCE = 1e-4
"""Largest difference of logits that other orders of summing explain."""

Build = Callable[[], SegmentationNetwork]


def check_contract(build: Build) -> None:
    """Check what `build` makes, twice. Raises NetworkMismatch with the first thing that is not as it must be."""
    network = build()
    for check in (check_shapes, check_repeats, check_images_are_independent, check_gradients):
        check(network)
    check_state(network, build())


def check_shapes(network: SegmentationNetwork) -> None:
    """Check maps `[B, C_l, H_l, W_l]`, deepest last, that cover the image, and logits `[B, K, H, W]` of its size."""
    for size in SIZES:
        with torch.no_grad():
            maps = as_maps(_ran(network.eval().encode, _images(2, size)), "encode")
            logits = _ran(network.decode, maps, size)
        _check_maps(maps, network.feature_channels, size)
        expected = [2, network.num_classes, *size]
        if list(logits.shape) != expected:
            raise NetworkMismatch(
                f"decode: logits {list(logits.shape)} for images of {size[0]}x{size[1]}, expected {expected}"
            )
        if not bool(torch.isfinite(logits).all()):
            raise NetworkMismatch(f"decode: logits of images of {size[0]}x{size[1]} are not finite")


def check_repeats(network: SegmentationNetwork) -> None:
    """Check that two passes in eval mode agree bit for bit, and that none changes the state."""
    images, before = _images(2, SIZES[0]), {key: value.clone() for key, value in network.state_dict().items()}
    with torch.no_grad():
        first, second = network.eval()(images), network(images)
    if not torch.equal(first, second):
        raise NetworkMismatch(
            "encode, decode: two passes over the same images differ in eval mode; use randomness only while "
            "`self.training` is true"
        )
    if changed := [key for key, value in network.state_dict().items() if not torch.equal(value, before[key])]:
        raise NetworkMismatch(f"encode, decode: {changed[0]} changes in eval mode; change it only in training")


def check_images_are_independent(network: SegmentationNetwork) -> None:
    """Check that an image's logits in eval mode do not depend on the others of its batch: the server batches."""
    images = _images(2, SIZES[0])
    with torch.no_grad():
        together, alone = network.eval()(images), network(images[:1])
    if not torch.allclose(together[:1], alone, atol=TOLERANCE, rtol=TOLERANCE):
        raise NetworkMismatch("encode, decode: an image's logits depend on the other images of its batch in eval mode")


def check_gradients(network: SegmentationNetwork) -> None:
    """Check that one step in train mode, also with one image, gives every trained parameter a gradient.

    The network is left in eval mode, without gradients, with the state that it had.
    """
    state = {key: value.clone() for key, value in network.state_dict().items()}
    try:
        for batch in (2, 1):
            labels = torch.randint(0, network.num_classes, (batch, *SIZES[0]))
            F.cross_entropy(_ran(network.train(), _images(batch, SIZES[0])).float(), labels).backward()
        named = list(network.named_parameters())
        idle = [key for key, value in named if value.requires_grad and value.grad is None]
    finally:
        network.zero_grad(set_to_none=True)
        network.load_state_dict(state)
        network.eval()
    if idle:
        raise NetworkMismatch(
            f"{idle[0]}{f' and {len(idle) - 1} more' if len(idle) > 1 else ''}: trained, but no logit depends on it; "
            "remove it, or set requires_grad=False"
        )
    if not all(any(value.requires_grad for value in part.parameters()) for part in (network.encoder, network.decoder)):
        raise NetworkMismatch("encoder, decoder: each needs parameters that are trained")


def check_state(network: SegmentationNetwork, again: SegmentationNetwork) -> None:
    """Check that weights of `network` make `again`, built a second time, the same: the state dict holds everything."""
    images = _images(1, SIZES[0])
    if problems := misfits(network.state_dict(), again.state_dict()):
        raise NetworkMismatch(f"two builds differ: the second {'; '.join(problems)}; the same options build the same")
    again.load_state_dict(network.state_dict())
    with torch.no_grad():
        same = torch.allclose(network.eval()(images), again.eval()(images), atol=TOLERANCE, rtol=TOLERANCE)
    if not same:
        raise NetworkMismatch(
            "two builds with the same state dict give other logits: something is drawn at build that no tensor of the "
            "state dict holds; register it as a buffer (persistent)"
        )


def _check_maps(maps: Sequence[Tensor], channels: Sequence[int], size: tuple[int, int]) -> None:
    found = [level.shape[1] for level in maps]
    if found != list(channels):
        raise NetworkMismatch(f"encode: maps have {found} channels, and {list(channels)} in another image")
    for place, level in enumerate(maps):
        height, width = level.shape[-2:]
        if level.shape[0] != 2:
            raise NetworkMismatch(f"encode: map {place} has a batch of {level.shape[0]} for 2 images")
        if abs(height * size[1] - width * size[0]) > max(size):
            raise NetworkMismatch(
                f"encode: map {place} is {height}x{width} for an image of {size[0]}x{size[1]}; its cells must be "
                "square, with one stride for both sides"
            )
        if place and height * width > maps[place - 1].shape[-2] * maps[place - 1].shape[-1]:
            raise NetworkMismatch(f"encode: map {place} is finer than the one before; return the deepest map last")
    if min(maps[-1].shape[-2:]) < 2:
        raise NetworkMismatch(
            f"encode: the deepest map of an image of {size[0]}x{size[1]} is {list(maps[-1].shape[-2:])}, too small for "
            "a mask; its stride is at most 32"
        )


def _images(batch: int, size: tuple[int, int]) -> Tensor:
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(0))


def _ran(part: Callable[..., Any], *inputs: object) -> Any:
    """Return what `part` gives for `inputs`. Raises NetworkMismatch for whatever its code raises."""
    try:
        return part(*inputs)
    except Exception as error:
        shapes = [list(item.shape) if isinstance(item, Tensor) else item for item in inputs]
        raise NetworkMismatch(
            f"{getattr(part, '__name__', 'forward')}: fails on {shapes} with {type(error).__name__}: {error}"
        ) from error
