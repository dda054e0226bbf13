"""A damaged file is named, with what it is instead of weights; config.json is named only when it is the cause."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapters.checkpoints.checkpoint import load_version
from adapters.checkpoints.importing import import_checkpoint
from adapters.errors import AdapterError, NetworkMismatch, UnsupportedModel
from configs.settings import Settings
from storage.registry.registry import CheckpointRegistry

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 14884776\n"
Damage = Callable[[bytes], bytes]
DAMAGES: dict[str, tuple[Damage, str]] = {
    "empty": (lambda whole: b"", "0 bytes"),
    "one byte": (lambda whole: whole[:1], "cut off"),
    "header cut": (lambda whole: whole[:100], "cut off"),
    "end cut": (lambda whole: whole[:-1000], "cut off"),
    "more": (lambda whole: whole + b"\0" * 8, "damaged"),
    "zeros": (lambda whole: bytes(len(whole)), "zeros"),
    "pointer": (lambda whole: POINTER, "git lfs pull"),
    "page": (lambda whole: b"\n<!DOCTYPE html><html><body>Sign in</body></html>", "web page"),
    "answer": (lambda whole: b'{"error": "Repository not found"}', "text"),
    "sentence": (lambda whole: b"Access to model is restricted.\n", "text"),
    "huge": (lambda whole: (1 << 60).to_bytes(8, "little") + whole[8:], "damaged"),
    "flipped header": (lambda whole: whole[:9] + b"\xff" * 20 + whole[29:], "damaged"),
}


@pytest.mark.parametrize("name", DAMAGES)
@pytest.mark.parametrize("kind", ["directory", "file"])
def test_damaged_safetensors_are_named(
    saved: Path, settings: Settings, registry: CheckpointRegistry, kind: str, name: str
) -> None:
    damage, reason = DAMAGES[name]
    path = saved / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(AdapterError, match=rf"model\.safetensors: .*{reason}") as caught:
        import_checkpoint(saved if kind == "directory" else path, settings, registry)
    assert "config.json: transformers" not in str(caught.value)
    assert registry.versions() == []


@pytest.mark.parametrize("name", ["empty", "zeros", "pointer", "page", "answer"])
def test_what_stands_in_place_of_a_pickle_is_named(
    tmp_path: Path, settings: Settings, registry: CheckpointRegistry, name: str
) -> None:
    damage, reason = DAMAGES[name]
    (tmp_path / "weights.pt").write_bytes(damage(b"1" * 100))
    with pytest.raises(UnsupportedModel, match=rf"weights\.pt: .*{reason}"):
        import_checkpoint(tmp_path / "weights.pt", settings, registry, unsafe_pickle=pytest.fail)


@pytest.fixture
def sharded(saved: Path) -> Path:
    """The same model in two files with an index."""
    tensors = load_file(saved / "model.safetensors")
    names = sorted(tensors)
    parts = {"part-1.safetensors": names[::2], "part-2.safetensors": names[1::2]}
    for file, held in parts.items():
        save_file({name: tensors[name] for name in held}, saved / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, held in parts.items() for name in held}}
    (saved / "model.safetensors.index.json").write_text(json.dumps(index))
    (saved / "model.safetensors").unlink()
    return saved


def test_two_files_with_an_index_are_one_model(sharded: Path, settings: Settings, registry: CheckpointRegistry) -> None:
    assert import_checkpoint(sharded, settings, registry).version == 1


def test_a_missing_or_damaged_part_is_named(sharded: Path, settings: Settings, registry: CheckpointRegistry) -> None:
    (sharded / "part-2.safetensors").write_bytes(POINTER)
    with pytest.raises(UnsupportedModel, match=r"part-2\.safetensors: a Git LFS pointer"):
        import_checkpoint(sharded, settings, registry)
    (sharded / "part-2.safetensors").unlink()
    with pytest.raises(UnsupportedModel, match=r"part-2\.safetensors: missing.*index\.json names it"):
        import_checkpoint(sharded, settings, registry)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": "../../up.safetensors"}}']
)
def test_a_damaged_index_is_named(sharded: Path, settings: Settings, registry: CheckpointRegistry, text: str) -> None:
    (sharded / "model.safetensors.index.json").write_text(text)
    with pytest.raises(UnsupportedModel, match=r"model\.safetensors\.index\.json: "):
        import_checkpoint(sharded, settings, registry)


def test_files_of_other_names_are_listed(saved: Path, settings: Settings, registry: CheckpointRegistry) -> None:
    (saved / "model.safetensors").rename(saved / "model_ema.safetensors")
    (saved / "other.safetensors").write_bytes(b"")
    with pytest.raises(UnsupportedModel, match=r"model_ema\.safetensors, other\.safetensors, but neither"):
        import_checkpoint(saved, settings, registry)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_floats_of_other_widths_become_float32(
    saved: Path, settings: Settings, registry: CheckpointRegistry, kind: torch.dtype
) -> None:
    _rewrite(saved, lambda tensor: tensor.to(kind) if tensor.is_floating_point() else tensor)
    version = import_checkpoint(saved, settings, registry).version
    network, _ = load_version(registry, version, torch.device("cpu"))
    assert {value.dtype for value in network.parameters()} == {torch.float32}


@pytest.mark.parametrize("kind", [torch.int8, torch.int64, torch.float8_e4m3fn])
def test_quantised_weights_are_refused(
    saved: Path, settings: Settings, registry: CheckpointRegistry, kind: torch.dtype
) -> None:
    _rewrite(saved, lambda tensor: tensor.to(kind))
    with pytest.raises(UnsupportedModel, match=r"model\.safetensors: .*quantised"):
        import_checkpoint(saved, settings, registry)


def test_weights_of_more_layers_or_classes_than_configured_are_refused(
    saved: Path, settings: Settings, registry: CheckpointRegistry
) -> None:
    tensors = load_file(saved / "model.safetensors")
    last = [name for name in tensors if "block.3.0" in name]
    deeper = {name.replace("block.3.0", "block.3.1"): tensors[name].clone() for name in last}
    save_file(tensors | deeper, saved / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NetworkMismatch, match=r"model\.safetensors: holds layers beyond"):
        import_checkpoint(saved, settings, registry)
    wider = tensors | {"decode_head.classifier.bias": torch.zeros(9)}
    save_file(wider, saved / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NetworkMismatch, match=r"classifier\.bias has shape \[9\], config\.json needs \[8\]"):
        import_checkpoint(saved, settings, registry)


def _rewrite(folder: Path, change: Callable[[torch.Tensor], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    changed = {name: change(tensor) for name, tensor in tensors.items()}
    save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
