"""ClassMix: paste half of the classes of a source image over a target image (Olsson et al., arXiv 2007.07936)."""

import torch
from torch import Tensor

from adapters.draws import Draws
from adapters.parallel import sum_over_processes

LABEL_VALUES = 256
"""Labels are bytes; 255 (ignore) counts as a value of its own, as in DACS."""


def class_mask(labels: Tensor, draws: Draws) -> Tensor:
    """Return where the source is pasted: the pixels of ceil(n/2) of the n label values of the whole batch, [B, H, W].

    `labels` [B, H, W] integer 0-255; the whole batch is that of all processes. Each image draws its own half. Only
    random numbers cross to the device, and nothing is read back from it, so the step never waits for the GPU.
    """
    batch = labels.shape[0]
    flat = labels.reshape(batch, -1).long()  # [B, H*W]
    found = torch.zeros(LABEL_VALUES, dtype=torch.int32, device=labels.device).index_fill_(0, flat.flatten(), 1)
    present = sum_over_processes(found) > 0
    noise = draws.per_image(batch, LABEL_VALUES).to(labels.device, non_blocking=True)
    # Rank the values of each image by noise, absent values last: the first ceil(n/2) ranks are a uniform draw.
    rank = noise.masked_fill(~present, 2.0).argsort(dim=1).argsort(dim=1)  # [B, 256]
    chosen = rank < (present.sum() + 1) // 2
    return chosen.gather(1, flat).reshape(labels.shape)


def paste(mask: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """Return `source` where `mask`, else `target`, for images [B, C, H, W] and for labels and weights [B, H, W]."""
    return torch.where(mask.unsqueeze(1) if source.ndim == mask.ndim + 1 else mask, source, target)
