"""New weights into a network that is not in use, in chunks so small that who computes meanwhile waits for none."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from adapters.checkpoints.checkpoint import misfits
from storage.errors import CorruptCheckpoint

CHUNK_ELEMENTS = 32_768
"""Values copied at once: up to here torch keeps to one thread, and the copy takes tens of microseconds."""

TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
"""Types by their names in the file."""


@contextmanager
def aside(device: torch.device) -> Iterator[None]:
    """Work on `device` within the block goes beside the requests': on a GPU to a stream of its own, of the lowest
    priority, finished when the block ends; on a CPU the calling thread's niceness does that.
    """
    if device.type != "cuda":
        yield
        return
    stream = torch.cuda.Stream(device, priority=0)  # 0 is the lowest
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        yield
    stream.synchronize()


def copy_weights(network: nn.Module, path: Path) -> None:
    """Copy the safetensors file `path` into `network`, which nobody may be using; names, shapes and types first.

    One tensor after the other: no second copy of the whole is made. Raises CorruptCheckpoint, naming tensors, when it
    cannot be read, when it does not fit (then nothing was copied) or when a value is not finite (then it was in part).
    """
    targets = network.state_dict()
    try:
        # As numpy: with `framework="pt"` every tensor leaves two integers behind for good (safetensors 0.8.0).
        with safe_open(path, framework="np") as file:
            found = {name: _described(file.get_slice(name)) for name in file.keys()}  # noqa: SIM118 - no mapping
            if problems := misfits(targets, found):
                raise CorruptCheckpoint(f"{path}: {'; '.join(problems)}")
            for name, target in targets.items():
                _copy(
                    target, torch.from_numpy(file.get_tensor(name)), f"{path}: has values that are not finite in {name}"
                )
    except FileNotFoundError as error:
        raise CorruptCheckpoint(f"{path}: missing; roll back to another version") from error
    except (SafetensorError, OSError) as error:
        raise CorruptCheckpoint(f"{path}: not a readable safetensors file: {error}") from error


def _described(part: Any) -> Tensor:
    """Shape and type of a tensor in the file, without its values. A type that no network has counts as complex."""
    return torch.empty(part.get_shape(), dtype=TYPES.get(part.get_dtype(), torch.complex64), device="meta")


@torch.no_grad()
def _copy(target: Tensor, source: Tensor, complaint: str) -> None:
    for into, chunk in chunks(target, source):
        if chunk.is_floating_point() and not bool(torch.isfinite(chunk).all()):
            raise CorruptCheckpoint(complaint)
        into.copy_(chunk)


def chunks(target: Tensor, source: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs of matching parts along the first dimension, so that any memory format of `target` will do."""
    if target.dim() == 0:
        yield target, source
        return
    rows = max(1, CHUNK_ELEMENTS // max(1, target[:1].numel()))
    yield from zip(target.split(rows), source.split(rows), strict=True)
