"""Weights in 8 bits, with as many steps as this CPU can multiply without overflow.

CPUs with VNNI or AMX add products of 8-bit inputs and weights in 32 bits. Others add them two by two in 16 bits first
and cut off silently what exceeds 32,767: where two products of 255 and 127 meet, half of their sum is lost. Source:
oneDNN, "Nuances of int8 computations".
"""

from functools import cache

import torch
from torch import Tensor

INPUT_STEPS = 255
"""Inputs are unsigned: 0 to 255."""
ALL_STEPS = 127
"""Weights are signed: -127 to 127."""
SAFE_STEPS = 64
"""2 * 255 * 64 = 32,640, which 16 bits hold; costs a weight one of its 8 bits."""


def by_channel(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Weights `[C_out, ...]` as int8, one scale for each output channel, and zero points, all zero."""
    flat, most = weight.detach().flatten(1), weight_steps()
    scales = flat.abs().amax(1).clamp(min=1e-12) / most
    steps = torch.round(flat / scales[:, None]).clamp(-most, most).to(torch.int8).view(weight.shape)
    return steps, scales, torch.zeros(len(scales), dtype=torch.int32)


@cache
def weight_steps() -> int:
    """Greatest step of a weight: 127, or 64 where the largest products come out wrong; tried once, on one of them.

    A try, because the kernel that oneDNN chooses counts, which depends on more than the CPU (`ONEDNN_MAX_CPU_ISA`).
    """
    inputs = torch.full((1, 2), INPUT_STEPS, dtype=torch.uint8)
    weights = torch.full((1, 2), ALL_STEPS, dtype=torch.int8)
    scale, zero = torch.ones(1), torch.zeros(1, dtype=torch.int32)
    packed = torch.ops.onednn.qlinear_prepack(weights, None)
    answer: Tensor = torch.ops.onednn.qlinear_pointwise(
        inputs, 1.0, 0, packed, scale, zero, None, 1.0, 0, torch.float32, "none", [], ""
    )
    return ALL_STEPS if float(answer) == 2.0 * INPUT_STEPS * ALL_STEPS else SAFE_STEPS
