"""A network as it serves: float32 weights that versions are copied into, and the options of `serving` around them."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from adapters.inference.compiled import Compiled
from adapters.inference.copying import copy_weights
from adapters.inference.folded import fold_batch_norm
from adapters.inference.precision import Precision, computing
from adapters.inference.segment import logits_of
from adapters.networks.network import SegmentationNetwork
from configs.serving import ServingSettings


class ServedForward(nn.Module):
    """Runs `network` as the settings say. Logits are float32 `[B, K, H, W]` whatever it computes with."""

    def __init__(self, network: SegmentationNetwork, settings: ServingSettings, device: torch.device) -> None:
        """Takes `network` over from a CPU: into eval mode, form and memory format of the settings, and to `device`."""
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

    def forward(self, images: Tensor) -> Tensor:
        """Logits of normalised images `[B, 3, H, W]`."""
        return self._in_format(images, self._compiled or self.network)

    def load(self, path: Path) -> None:
        """Copy the safetensors file `path` into `network`, which nobody may be using.

        Raises CorruptCheckpoint as `copy_weights` does.
        """
        copy_weights(self.network, path, self._plain, self._pairs)

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
