"""New weights into a network that is not in use, in chunks so small that who computes meanwhile waits for none."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from adapters.checkpoints.checkpoint import misfits
from storage.errors import CorruptCheckpoint

CHUNK_ELEMENTS = 32_768
"""Values copied at once: up to here torch keeps to one thread, and the copy takes tens of microseconds."""


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

    The file is mapped, not read: no second copy of it is made. Raises CorruptCheckpoint, naming tensors, when it cannot
    be read, when it does not fit (then nothing was copied) or when a value is not finite (then it was in part).
    """
    try:
        with safe_open(path, framework="pt") as file:
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError) as error:
        raise CorruptCheckpoint(f"{path}: not a readable safetensors file: {error}") from error
    expected = network.state_dict()
    if problems := misfits(expected, found):
        raise CorruptCheckpoint(f"{path}: {'; '.join(problems)}")
    _copy_all(expected, found, path)


@torch.no_grad()
def _copy_all(targets: Mapping[str, Tensor], found: Mapping[str, Tensor], path: Path) -> None:
    for name, target in targets.items():
        for into, chunk in _chunks(target, found[name]):
            if chunk.is_floating_point() and not bool(torch.isfinite(chunk).all()):
                raise CorruptCheckpoint(f"{path}: has values that are not finite in {name}")
            into.copy_(chunk)


def _chunks(target: Tensor, source: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs of matching parts along the first dimension, so that any memory format of `target` will do."""
    if target.dim() == 0:
        yield target, source
        return
    rows = max(1, CHUNK_ELEMENTS // max(1, target[:1].numel()))
    yield from zip(target.split(rows), source.split(rows), strict=True)
