"""Export programs that run without mfmd: `torch.export` (.pt2) and ONNX, from normalised images to logits.

The logits have the size of the image.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.export import Dim, ExportedProgram

from adapters.errors import ExportRefused
from adapters.networks.network import SegmentationNetwork
from configs.network import Architecture
from storage.registry.manifest import Manifest

PROGRAM, ONNX = "model.pt2", "model.onnx"
INPUT, OUTPUT = "images", "logits"
"""Names of the program's input `[B, 3, H, W]` and output `[B, K, H, W]`."""
_INSIDE_BYTES = 1_500_000_000
"""Larger weights are stored beside `model.onnx`, because its format ends at 2 GB (bytes)."""
_ALL = ("batch", "height", "width")
_BATCH = ("batch",)
_SIDES_FIXED = (
    "beit",
    "data2vec-vision",
    "dpt",
    "eomt",
    "eomt_dinov3",
    "mask2former",
    "maskformer",
    "mobilenet_v2",
    "mobilevit",
    "mobilevitv2",
    "oneformer",
    "sapiens2",
    "swin",
    "tipsv2_dpt",
)
"""Kinds whose code in transformers computes sizes in a way that torch.export can only record as constants."""


def write_torch_export(network: SegmentationNetwork, manifest: Manifest, folder: Path) -> tuple[str, ...]:
    """Write `model.pt2`, to be read by `torch.export.load`."""
    program, free = _program(network, manifest)
    with _quiet():
        torch.export.save(program, folder / PROGRAM)
    return free


def write_onnx(network: SegmentationNetwork, manifest: Manifest, folder: Path) -> tuple[str, ...]:
    """Write `model.onnx` with its weights inside, or beside it when too large. Raises ExportRefused without onnx."""
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise ExportRefused(f"--format onnx needs the package {error.name}: pip install 'mfmd[export]'") from error
    _spell_out_attention(network)
    program, free = _program(network, manifest)
    with _quiet():
        torch.onnx.export(
            program,
            f=folder / ONNX,
            input_names=[INPUT],
            output_names=[OUTPUT],
            external_data=sum(tensor.nbytes for tensor in network.state_dict().values()) > _INSIDE_BYTES,
            optimize=free == _ALL,  # a rewrite of onnxscript 0.7 fails on HRDA's windows; runtimes optimise anyway
            verbose=False,
        )
    return free


def free_dimensions(settings: Architecture) -> tuple[str, ...]:
    """Return which dimensions of the images `[batch, 3, height, width]` stay free in an exported program."""
    if settings.multi_resolution:
        return _BATCH
    if settings.hf_config is None:
        return _ALL
    parts = (settings.hf_config, settings.hf_config.get("backbone_config") or {})
    return _BATCH if any(part.get("model_type") in _SIDES_FIXED for part in parts) else _ALL


def _spell_out_attention(network: SegmentationNetwork) -> None:
    """Use attention as plain products: the memory layout of torch's fused attention cannot be converted."""
    for module in network.modules():
        config = getattr(module, "config", None)
        if config is not None and hasattr(config, "_attn_implementation"):
            config._attn_implementation = "eager"


def _program(network: SegmentationNetwork, manifest: Manifest) -> tuple[ExportedProgram, tuple[str, ...]]:
    """Return the network as a program, and its free dimensions."""
    own = (manifest.input_height, manifest.input_width)
    if "height" in free_dimensions(Architecture.model_validate(manifest.network)):
        # Odd sides: no stride divides them, so nothing is written down that holds for multiples only.
        program = _exported(network, (own[0] | 1, own[1] | 1), _ALL)
        if _takes(program, own):
            return program, _ALL
    return _exported(network, own, _BATCH), _BATCH


def _exported(network: SegmentationNetwork, size: tuple[int, int], free: tuple[str, ...]) -> ExportedProgram:
    dynamic = {place: Dim.DYNAMIC for place, name in ((0, "batch"), (2, "height"), (3, "width")) if name in free}
    with _quiet(), torch.no_grad():
        return torch.export.export(
            network.eval(), (torch.zeros(2, 3, *size),), dynamic_shapes={INPUT: dynamic}, strict=False
        )


def _takes(program: ExportedProgram, size: tuple[int, int]) -> bool:
    """Return whether images of `size` pass the guards of the program, which are too strict for very small images."""
    try:
        with _quiet(), torch.no_grad():
            program.module()(torch.zeros(2, 3, *size))
    except AssertionError:
        return False
    return True


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep warnings of the exporters off stderr; they are addressed to the exporters' developers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
