"""Copy new weights into an unused network, in chunks so small that running computations never wait for one."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from adapters.inference.folded import Pair
from adapters.networks.own import changed_code
from adapters.networks.weight_files import misfits
from storage.errors import CorruptCheckpoint

CHUNK_ELEMENTS = 32_768
"""Values copied at once: up to this number torch uses one thread, and the copy takes tens of microseconds."""

TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
"""Types by their names in the file."""


@contextmanager
def low_priority_stream(device: torch.device) -> Iterator[None]:
    """Run work on `device` within the block beside the work of requests.

    On a GPU it uses a stream of its own with the lowest priority, finished when the block ends. On a CPU the nice value
    of the calling thread has this effect.
    """
    if device.type != "cuda":
        yield
        return
    stream = torch.cuda.Stream(device, priority=0)  # 0 is the lowest
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        yield
    stream.synchronize()


def copy_weights(
    network: nn.Module,
    path: Path,
    base: Path | None = None,
    *,
    plain: Mapping[str, Tensor] | None = None,
    pairs: Sequence[Pair] = (),
    held: Collection[str] = (),
) -> None:
    """Copy the safetensors file `path`, and its `base`, into `network`, which nobody may be using; check them first.

    Both together are the weights of a network with the state `plain` (its values are not read), by default the state of
    `network`. The BatchNorm of `pairs` is folded on the way. Tensors in `held` are in place already and are not copied.
    Tensors are copied one after another, without a second copy of the whole. Raises CorruptCheckpoint, naming tensors,
    when a file cannot be read, when they do not fit (then nothing was copied) or when a value is not finite (then part
    of it was).
    """
    targets = network.state_dict()
    with ExitStack() as opened:
        files = _Files([path] if base is None else [path, base], opened)
        if problems := misfits(plain or targets, files.found):
            raise CorruptCheckpoint(f"{path}: {'; '.join(problems)}{changed_code(network)}")
        for pair in pairs:
            _fold(targets, pair, files.read)
        for name, target in targets.items():
            if name not in held and (values := files.read(name)) is not None:
                _copy(target, values)


class _Files:
    """Safetensors files that are one state dict together; errors of reading are CorruptCheckpoint."""

    def __init__(self, paths: Iterable[Path], opened: ExitStack) -> None:
        self._places: dict[str, tuple[Path, Any]] = {}
        self.found: dict[str, Tensor] = {}
        """Shape and type of each tensor, without its values."""
        for path in paths:
            with _reading(path):
                # As numpy: with `framework="pt"` every tensor leaves two integers behind for good (safetensors 0.8.0).
                file = opened.enter_context(safe_open(path, framework="np"))
                for name in file.keys():  # noqa: SIM118 - no mapping
                    if name in self.found:
                        raise CorruptCheckpoint(f"{path}: holds {name}, which is in {self._places[name][0]} too")
                    self.found[name], self._places[name] = _described(file.get_slice(name)), (path, file)

    def read(self, name: str) -> Tensor | None:
        """Return a tensor, of at least one dimension; None when there is none of this name."""
        if name not in self._places:
            return None
        path, file = self._places[name]
        with _reading(path):
            return _read(path, file, name)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise CorruptCheckpoint(f"{path}: missing; roll back to another version") from error
    except (SafetensorError, OSError) as error:
        raise CorruptCheckpoint(f"{path}: not a readable safetensors file: {error}") from error


def _described(part: Any) -> Tensor:
    """Return shape and type of a tensor in the file, without its values; unknown types are complex."""
    return torch.empty(part.get_shape(), dtype=TYPES.get(part.get_dtype(), torch.complex64), device="meta")


def _read(path: Path, file: Any, name: str) -> Tensor:
    """Return a tensor of the file, of at least one dimension. Raises CorruptCheckpoint if not finite."""
    values: Tensor = torch.atleast_1d(torch.from_numpy(file.get_tensor(name)))
    for chunk in values.split(_rows(values)):
        if chunk.is_floating_point() and not bool(torch.isfinite(chunk).all()):
            raise CorruptCheckpoint(f"{path}: has non-finite values in {name}")
    return values


def _rows(tensor: Tensor) -> int:
    """Return the entries of the first dimension in a chunk: whole ones, so any memory format works."""
    return max(1, CHUNK_ELEMENTS // max(1, tensor[:1].numel()))


@torch.no_grad()
def _copy(target: Tensor, source: Tensor) -> None:
    rows = _rows(source)
    for into, chunk in zip(torch.atleast_1d(target).split(rows), source.split(rows), strict=True):
        into.copy_(chunk)


@torch.no_grad()
def _fold(targets: dict[str, Tensor], pair: Pair, read: Callable[[str], Tensor | None]) -> None:
    """Take the convolution of `pair` out of `targets`, and copy into it what both layers do together."""
    into = [targets.pop(f"{pair.convolution}.{part}") for part in ("weight", "bias")]
    values = [read(f"{pair.convolution}.{part}") for part in ("weight", "bias")]
    values += [read(f"{pair.norm}.{part}") for part in ("running_mean", "running_var", "weight", "bias")]
    rows = _rows(into[0])
    chunks = [repeat(None) if tensor is None else tensor.split(rows) for tensor in (*into, *values)]
    for into_weight, into_bias, weight, bias, mean, variance, scale, shift in zip(*chunks, strict=False):
        fused = fuse_conv_bn_weights(weight, bias, mean, variance, pair.eps, scale, shift)
        into_weight.copy_(fused[0])
        into_bias.copy_(fused[1])
