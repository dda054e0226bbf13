"""An import runs once as it would serve, before it is registered; what cannot run is refused by name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapters.checkpoints.checkpoint import save_weights
from adapters.checkpoints.importing import import_checkpoint
from adapters.errors import ModelFails, UnsupportedModel
from adapters.inference.proof import prove
from adapters.networks.build import build_network
from configs.settings import Settings
from storage.registry.registry import CheckpointRegistry
from tests.adapters.tiny_models import CLASSES


@pytest.mark.parametrize("channels", [1, 4])
def test_other_channels_than_three_are_refused(
    saved: Path, configure: Callable[..., None], settings: Settings, registry: CheckpointRegistry, channels: int
) -> None:
    tensors = load_file(saved / "model.safetensors")
    name = next(key for key, value in tensors.items() if value.dim() == 4 and value.shape[1] == 3)
    tensors[name] = tensors[name][:, :1].repeat(1, channels, 1, 1)
    save_file(tensors, saved / "model.safetensors", metadata={"format": "pt"})
    configure(num_channels=channels)
    with pytest.raises(UnsupportedModel, match=rf"num_channels is {channels}"):
        import_checkpoint(saved, settings, registry)
    assert registry.versions() == []


def test_a_backbone_of_one_size_is_refused_at_another(
    tmp_path: Path, settings: Settings, registry: CheckpointRegistry
) -> None:
    _upernet_on_hiera().save_pretrained(tmp_path / "model")
    with pytest.raises(
        ModelFails, match=r"model: a first forward pass at 64x96 on cpu fails with \w+: .*buffer\.height"
    ):
        import_checkpoint(tmp_path / "model", settings, registry)
    assert registry.versions() == []
    square = settings.model_copy(update={"buffer": settings.buffer.model_copy(update={"width": 64})})
    assert import_checkpoint(tmp_path / "model", square, registry).version == 1


@pytest.mark.parametrize("kind", ["file", "pickle"])
def test_own_weights_whose_logits_are_not_finite_are_refused(
    tmp_path: Path, settings: Settings, registry: CheckpointRegistry, kind: str
) -> None:
    network = build_network(settings.network.architecture(), CLASSES)
    with torch.no_grad():
        for value in network.parameters():
            value.fill_(3e38)
    path = tmp_path / ("weights.safetensors" if kind == "file" else "weights.pt")
    if kind == "file":
        save_weights(network, path)
    else:
        torch.save(network.state_dict(), path)
    with pytest.raises(ModelFails, match=r"weights\.\w+: .*not finite"):
        import_checkpoint(path, settings, registry, unsafe_pickle=lambda _: None)
    assert registry.versions() == []


def test_logits_of_another_count_are_refused(settings: Settings) -> None:
    with pytest.raises(ModelFails, match=r"logits \[1, 9, 64, 96\], expected \[1, 8, 64, 96\]"):
        prove(build_network(settings.network.architecture(), CLASSES + 1), settings, "it")


@pytest.mark.parametrize(
    "values",
    [
        {"image_std": [0.0, 1.0, 1.0]},
        {"image_std": [float("nan")] * 3},
        {"image_std": [-1.0] * 3},
        {"image_mean": ["a"] * 3, "image_std": [1.0] * 3},
        {"image_mean": [True] * 3, "image_std": [1.0] * 3},
        {"rescale_factor": 0, "image_mean": 0.5, "image_std": 0.5},
        {"rescale_factor": "1/255", "image_mean": 0.5, "image_std": 0.5},
    ],
)
def test_pixel_scaling_that_cannot_be_meant_is_refused(
    saved: Path, settings: Settings, registry: CheckpointRegistry, values: dict[str, Any]
) -> None:
    (saved / "preprocessor_config.json").write_text(json.dumps(values))
    with pytest.raises(UnsupportedModel, match=r"preprocessor_config\.json: (image_|rescale_)"):
        import_checkpoint(saved, settings, registry)


def test_the_file_of_transformers_5_is_read_and_none_is_said(
    saved: Path, settings: Settings, registry: CheckpointRegistry
) -> None:
    heard: list[str] = []
    import_checkpoint(saved, settings, registry, note=heard.append)
    assert any("preprocessor_config.json" in text for text in heard)
    scaling = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    (saved / "processor_config.json").write_text(json.dumps({"image_processor": scaling}))
    manifest = import_checkpoint(saved, settings, registry)
    assert manifest.network["hf_preprocessor"] == scaling


def _upernet_on_hiera() -> Any:
    """A backbone with positions for 64x64 pixels only."""
    from transformers import HieraConfig, UperNetConfig, UperNetForSemanticSegmentation

    torch.manual_seed(0)
    backbone = HieraConfig(
        embed_dim=8, image_size=[64, 64], depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], masked_unit_size=[8, 8],
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = UperNetConfig(backbone_config=backbone, hidden_size=16, num_labels=CLASSES, use_auxiliary_head=False)
    return UperNetForSemanticSegmentation(config)
