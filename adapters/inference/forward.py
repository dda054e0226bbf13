"""A network as it serves: float32 weights that versions are copied into, and the options of `serving` around them."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from adapters.inference.copying import copy_weights
from adapters.inference.folded import fold_batch_norm
from adapters.inference.segment import logits_of
from adapters.networks.network import SegmentationNetwork
from adapters.networks.weight_files import tensor_names
from configs.serving import ServingSettings


class ServedForward(nn.Module):
    """Runs `network` as the settings say. Logits are float32 `[B, K, H, W]` in any precision."""

    def __init__(self, network: SegmentationNetwork, settings: ServingSettings, device: torch.device) -> None:
        """Take `network` from a CPU: set eval mode, form and memory format of the settings, and move it to `device`."""
        super().__init__()
        self.device = device
        self.computes: Precision = settings.precision
        """What it computes with."""
        self._channels_last = settings.advanced.channels_last
        self._plain = {name: tensor.to("meta") for name, tensor in network.state_dict().items()}
        self._pairs = fold_batch_norm(network.eval()) if settings.advanced.fold_batch_norm else ()
        self.network = network.eval().to(device)
        if settings.advanced.channels_last:
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._compiled = Compiled(network) if settings.advanced.compile else None
        self._base: Path | None = None
        self._of_base: frozenset[str] = frozenset()
        """Tensors of `network` that hold that base now."""
        self._shares = False

    def forward(self, images: Tensor) -> Tensor:
        """Return logits of normalised images `[B, 3, H, W]`."""
        return self._in_format(images, self._compiled or self.network)

    def load(self, path: Path, base: Path | None = None) -> None:
        """Copy the safetensors file `path`, and its `base`, into `network`, which nobody may be using.

        A base that it holds already is not read again: its name is the digest of its content. Raises CorruptCheckpoint
        as `copy_weights` does, RuntimeError when memory that another network shares would get another base.
        """
        held = self._of_base if base == self._base else frozenset[str]()
        if self._shares and not held:
            raise RuntimeError(f"{base}: the network shares the memory of {self._base}; build another one")
        if not held:
            self._base, self._of_base = None, held
        copy_weights(self.network, path, base, plain=self._plain, pairs=self._pairs, held=held)
        if base is not None and not held:
            self._base, self._of_base = base, self._unfolded(tensor_names(base))

    def share_base(self, other: "ServedForward", base: Path) -> None:
        """Hold `base` in the memory of `other`, a network of the same architecture, if it is loaded there."""
        if other._base != base:
            return
        theirs = dict(other.network.named_parameters())
        mine = {name: value for name, value in self.network.named_parameters() if name in other._of_base}
        for name, value in mine.items():
            value.data = theirs[name].data
        self._base, self._of_base = base, frozenset(mine)
        self._shares = other._shares = bool(mine)

    def _unfolded(self, names: frozenset[str]) -> frozenset[str]:
        """Return those of `names` that `network` has as they are stored: no convolution with a BatchNorm in it."""
        folded = {f"{pair.convolution}.{part}" for pair in self._pairs for part in ("weight", "bias")}
        return frozenset(names & self.network.state_dict().keys() - folded)

    def warm_up(self, images: Tensor) -> Tensor:
        """Return logits of `images`; everything that is prepared once per shape is prepared now."""
        if self._compiled is not None:
            self._in_format(images, self._compiled.prepare)
        return logits_of(self, images)

    def _in_format(self, images: Tensor, run: Callable[[Tensor], Tensor]) -> Tensor:
        if self._channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        elif self._compiled is not None:  # code is compiled for strides too, and a window of an image has that image's
            images = images.contiguous()
        with computing(self.computes, self.device):
            logits: Tensor = run(images)
        return logits.float()


Precision = Literal["float32", "bf16", "fp16"]

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def computing(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Return a context in which convolutions and matrix products on `device` use `precision`; weights stay float32.

    fp16 is for GPUs: a CPU without fp16 arithmetic is many times slower than with float32. The cache of cast weights is
    off, because it belongs to one context and would only hold a second copy of the weights while a batch runs.
    """
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=_DTYPES[precision], cache_enabled=False)


KEPT = 64
"""Number of shapes for which torch may keep compiled code; its own limit of 8 is below two slots with their sizes."""


class Compiled:
    """Runs a network compiled for the prepared shapes, and uncompiled for all others.

    New weights are copied into the same tensors, so the compiled code stays valid from version to version.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._compiled = torch.compile(network, dynamic=False)
        self._shapes: set[tuple[int, ...]] = set()

    def prepare(self, images: Tensor) -> Tensor:
        """Compile for the shape of `images` unless it is compiled; return the logits of the compiled code."""
        with torch._dynamo.config.patch(recompile_limit=KEPT):
            logits: Tensor = self._compiled(images)
        self._shapes.add(tuple(images.shape))
        return logits

    def __call__(self, images: Tensor) -> Tensor:
        """Return logits of `images`."""
        run = self._compiled if tuple(images.shape) in self._shapes else self._network
        logits: Tensor = run(images)
        return logits
