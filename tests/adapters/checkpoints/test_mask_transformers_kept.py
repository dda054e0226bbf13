"""Mask transformers as versions: what a version records, and an export that is the original again."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from adapters.checkpoints.checkpoint import load_version
from adapters.checkpoints.exporting.export import export_version
from adapters.checkpoints.importing import import_checkpoint
from adapters.networks.huggingface.eomt import MASK_FIELD, EomtDecoder
from configs.settings import Settings
from storage.registry.registry import CheckpointRegistry
from tests.adapters.tiny_models import MASKS, NEEDS_SCIPY, model

pytestmark = NEEDS_SCIPY


@torch.no_grad()
def test_where_eomt_masks_attention_is_a_part_of_the_version(
    settings: Settings, registry: CheckpointRegistry, tmp_path: Path
) -> None:
    """It decides what is computed. The weights say it at import, the manifest from then on, and an export has both."""
    original = model("eomt_annealed")
    original.save_pretrained(tmp_path / "model")
    version = import_checkpoint(tmp_path / "model", settings, registry).version
    network, manifest = load_version(registry, version, torch.device("cpu"))
    assert manifest.network["hf_config"][MASK_FIELD] == [0.0, 1.0]
    assert isinstance(network.decoder, EomtDecoder)
    assert network.decoder.masked == (False, True)
    export_version(registry, version, "huggingface", tmp_path / "out")
    assert load_file(tmp_path / "out" / "model.safetensors")[MASK_FIELD].tolist() == [0.0, 1.0]
    assert MASK_FIELD not in json.loads((tmp_path / "out" / "config.json").read_text())


@pytest.mark.parametrize("name", MASKS)
def test_weights_and_names_of_an_export_are_those_of_the_original(
    name: str, settings: Settings, registry: CheckpointRegistry, tmp_path: Path
) -> None:
    model(name).save_pretrained(tmp_path / "in")
    version = import_checkpoint(tmp_path / "in", settings, registry).version
    export_version(registry, version, "huggingface", tmp_path / "out")
    before, after = (load_file(tmp_path / place / "model.safetensors") for place in ("in", "out"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_parts_of_oneformer_for_its_own_training_only_are_kept(
    settings: Settings, registry: CheckpointRegistry, tmp_path: Path
) -> None:
    """A text encoder and a temperature: no logit depends on them, and whoever trains it with transformers has them."""
    drawn = model("oneformer")
    more = {
        "is_training": True,
        "text_encoder_width": 64,
        "text_encoder_num_layers": 1,
        "text_encoder_n_ctx": 2,
        "text_encoder_vocab_size": 64,
    }
    original = type(drawn)(type(drawn.config)(**{**drawn.config.to_dict(), **more}))
    original.save_pretrained(tmp_path / "in")
    version = import_checkpoint(tmp_path / "in", settings, registry).version
    network, _ = load_version(registry, version, torch.device("cpu"))
    assert all(not value.requires_grad for key, value in network.named_parameters() if ".training_only." in key)
    export_version(registry, version, "huggingface", tmp_path / "out")
    before, after = (load_file(tmp_path / place / "model.safetensors") for place in ("in", "out"))
    assert before.keys() == after.keys() and any("text_mapper" in key for key in before)
    assert all(torch.equal(before[key], after[key]) for key in before)
