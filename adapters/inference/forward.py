"""A network as it serves: float32 weights that versions are copied into, and the options of `serving` around them."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from adapters.inference.compiled import Compiled
from adapters.inference.copying import copy_weights
from adapters.inference.folded import Folded
from adapters.inference.precision import Precision, computing
from adapters.inference.segment import logits_of
from adapters.networks.network import SegmentationNetwork
from configs.serving import ServingSettings


class ServedForward(nn.Module):
    """Runs `network` as the settings say. Logits are float32 `[B, K, H, W]` whatever it computes with."""

    def __init__(self, network: SegmentationNetwork, settings: ServingSettings, device: torch.device) -> None:
        """Takes `network` over: moves it to `device`, into eval mode and into the memory format of the settings.

        It runs as it is until `load` or `settle`.
        """
        super().__init__()
        self.network = network.to(device).eval()
        if settings.channels_last:
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.device = device
        self.computes: Precision = settings.precision
        """What it computes with."""
        self._channels_last = settings.channels_last
        self._folded = Folded(network) if settings.fold_batch_norm else None
        self._settled = False
        self._compiled = Compiled(network) if settings.compile else None

    @property
    def form(self) -> nn.Module:
        """What runs in float: `network` itself, or with its BatchNorm folded; then `network` is not to be run."""
        return self._folded.form if self._folded is not None else self.network

    @property
    def layers_folded(self) -> int:
        """BatchNorm layers that are part of a convolution now."""
        return len(self._folded) if self._folded is not None else 0

    def forward(self, images: Tensor) -> Tensor:
        """Logits of normalised images `[B, 3, H, W]`."""
        return self._in_format(images, self._compiled or self.form)

    def load(self, path: Path, images: Tensor) -> None:
        """Copy the safetensors file `path` into `network`, which nobody may be using, and `settle`.

        Raises CorruptCheckpoint as `copy_weights` does.
        """
        self._settled = False
        copy_weights(self.network, path)
        if not self.settle(images):
            copy_weights(self.network, path)

    def settle(self, images: Tensor) -> bool:
        """Make what comes from the weights, once: `images` `[B, 3, H, W]` show how the layers of a new network lie.

        False when BatchNorm, folded in versions before, cannot be in this one: `network` runs from now on, and its
        weights must be copied again.
        """
        if self._folded is None or self._settled:
            return True
        before = self.form
        usable = self._folded.renew(images.to(self.device))
        self._settled = True
        if self._compiled is not None and self.form is not before:
            self._compiled = Compiled(self.form)
        return usable

    def warm_up(self, images: Tensor) -> Tensor:
        """Logits of `images`; whatever is made once for a shape is made now."""
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
