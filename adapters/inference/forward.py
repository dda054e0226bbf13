"""A network as it serves: float32 weights that versions are copied into, and the options of `serving` around them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from adapters.errors import QuantizationRefused
from adapters.inference.compiled import Compiled
from adapters.inference.copying import copy_weights
from adapters.inference.folded import Folded
from adapters.inference.int8 import quantized
from adapters.inference.precision import computing
from adapters.inference.segment import logits_of
from adapters.networks.network import SegmentationNetwork
from configs.serving import ServingSettings

LEAST_AGREEMENT = 0.99
"""Share of pixels whose label must be the same in int8 as in float32."""


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
        self.precision = settings.precision
        self._channels_last = settings.channels_last
        self._folded = Folded(network) if settings.fold_batch_norm else None
        self._settled = False
        self._compiled = Compiled(network) if settings.compile else None
        self._int8: list[nn.Module] = []  # a list, so that it is no child: its tensors are those of `network`

    @property
    def computes(self) -> Literal["float32", "bf16", "fp16", "int8"]:
        """What it computes with."""
        return "int8" if self._int8 else self.precision

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
        return self._in_format(images, self._int8[0] if self._int8 else self._compiled or self.form)

    def load(self, path: Path, images: Tensor) -> None:
        """Copy the safetensors file `path` into `network`, which nobody may be using, and `settle`.

        Raises CorruptCheckpoint as `copy_weights` does.
        """
        self.use_float()
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

    def use_float(self) -> None:
        """Forget the int8 form: its weights are those of the version before."""
        self._int8.clear()

    def use_int8(self, images: Sequence[Tensor]) -> float:
        """Run in int8 from now on; half of `images` set the ranges, the other half are compared with float32.

        Returns the share of their pixels with the same label. Raises QuantizationRefused, and stays with float32, on a
        GPU, for a network that cannot be exchanged, and when fewer than 99 % of the labels are the same.
        """
        self.use_float()
        if self.device.type != "cpu":
            raise QuantizationRefused(f"int8 runs on a CPU only, not on {self.device}; set serving.quantize: none")
        try:
            twin = quantized(self.form, images[::2])
            agreement = _agreement(self.form, twin, images[1::2] or images)
        except (RuntimeError, AttributeError, TypeError) as error:
            raise QuantizationRefused(
                f"this network does not run in int8: {error}; set serving.quantize: none"
            ) from error
        if agreement < LEAST_AGREEMENT:
            raise QuantizationRefused(
                f"labels in int8 and in float32 are the same on {agreement:.2%} of the pixels, less than "
                f"{LEAST_AGREEMENT:.0%}; it serves in float32; set serving.quantize: none"
            )
        self._int8.append(twin)
        return agreement

    def _in_format(self, images: Tensor, run: Callable[[Tensor], Tensor]) -> Tensor:
        if self._channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        elif self._compiled is not None:  # code is compiled for strides too, and a window of an image has that image's
            images = images.contiguous()
        with computing(self.precision, self.device):
            logits: Tensor = run(images)
        return logits.float()


@torch.inference_mode()
def _agreement(network: nn.Module, twin: nn.Module, images: Sequence[Tensor]) -> float:
    same = [logits_of(network, batch).argmax(1) == logits_of(twin, batch).argmax(1) for batch in images]
    return sum(int(part.sum()) for part in same) / sum(part.numel() for part in same)
