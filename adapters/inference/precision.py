"""Number formats of a served forward pass: autocast over float32 weights."""

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch

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
