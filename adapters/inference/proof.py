"""Prove that a network serves: one forward pass as the inference plane would run it, before anything is registered."""

import numpy as np
import torch
from torch import Tensor

from adapters.errors import ModelFails
from adapters.inference.forward import ServedForward
from adapters.inference.segment import choose_device
from adapters.networks.network import SegmentationNetwork, normalise
from configs.settings import Settings


def noise(size: tuple[int, int], seed: int = 0) -> Tensor:
    """Return a normalised image `[1, 3, h, w]` of random bytes, the same for the same `seed`."""
    pixels = np.random.default_rng(seed).integers(0, 256, (1, *size, 3), dtype=np.uint8)
    return normalise(torch.from_numpy(pixels))


def prove(network: SegmentationNetwork, settings: Settings, what: str) -> None:
    """Run `network` once at the served size, device and precision. It is changed as serving changes it: save it before.

    Nothing is compiled. Raises ModelFails, naming `what`, when the pass fails or its logits have another shape or are
    not finite.
    """
    size = settings.buffer.height, settings.buffer.width
    device = choose_device(settings.serving.device)
    where = f"{what}: a first forward pass at {size[0]}x{size[1]} on {device.type}"
    advanced = settings.serving.advanced.model_copy(update={"compile": False})
    serving = settings.serving.model_copy(update={"advanced": advanced})
    try:
        with torch.no_grad():  # transformers keeps some tensors: made in inference mode, they could not be trained with
            logits = ServedForward(network, serving, device).warm_up(noise(size).to(device))
            finite = bool(torch.isfinite(logits).all())
    except Exception as error:  # whatever the modules of a model raise
        said = " ".join(str(error).split()) or "no message"
        raise ModelFails(
            f"{where} fails with {type(error).__name__}: {said}; nothing was registered; a model that is made for one "
            "size of images needs buffer.height and buffer.width to be that size"
        ) from error
    expected = (1, len(settings.classes), *size)
    if tuple(logits.shape) != expected:
        raise ModelFails(
            f"{where} gives logits {list(logits.shape)}, expected {list(expected)}; nothing was registered"
        )
    if not finite:
        raise ModelFails(
            f"{where}, precision {settings.serving.precision}, gives values that are not finite; nothing was "
            "registered; check the weights, and serving.precision"
        )
