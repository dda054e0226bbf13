"""Foundation distance: the published formula, what each encoder sees, what is trained and saved, bad directories."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModel, Dinov2WithRegistersConfig, DINOv3ViTConfig

from adapters.augmentation.augment import normalise_unit, to_unit
from adapters.errors import AdapterError, NetworkMismatch, UnsupportedModel
from adapters.networks.build import build_network
from adapters.networks.encoders.dinov2 import build_dinov2
from adapters.networks.foundation_model import load_foundation_model
from adapters.recipes.foundation import FoundationDistance, feature_distance
from adapters.recipes.recipe import Recipe
from configs.network import Architecture
from tests.adapters.recipes.recipe_steps import CLASSES, CROP, batch, gradients, network, recipe_of
from tests.sections import recipe_settings

EVERYWHERE = torch.ones(2, 5, 8, dtype=torch.bool)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A tiny DINOv2 with random weights, as Hugging Face saves one."""
    torch.manual_seed(5)
    build_dinov2("dinov2_tiny", None, pyramid=False).model.save_pretrained(tmp_path / "dinov2")
    return tmp_path / "dinov2"


def tokens_of(directory: Path, images: torch.Tensor, patch: int = 14, registers: int = 0) -> torch.Tensor:
    """The tokens that transformers gives for images of whole patches, [B, C, rows, columns]."""
    with torch.no_grad():
        hidden = AutoModel.from_pretrained(directory).eval()(images).last_hidden_state[:, 1 + registers :]
    rows, columns = (side // patch for side in images.shape[-2:])
    return hidden.transpose(1, 2).reshape(len(images), -1, rows, columns)


def on(directory: Path, **values: object) -> dict:
    return {"foundation": {"enabled": True, "directory": str(directory), "tokens": 5, **values}}


def term_of(recipe: Recipe) -> FoundationDistance:
    term = recipe.modules()["foundation"]
    assert isinstance(term, FoundationDistance)
    return term


def test_constants_are_the_published_ones_and_it_is_off() -> None:
    settings = recipe_settings().advanced.foundation
    assert not settings.enabled and (settings.weight, 14 * settings.tokens) == (0.1, 406)
    assert (settings.source_weight, settings.block, settings.ratio) == (0.1, 1 / 16, 0.5)


def test_distance_is_a_tenth_smooth_l1_and_the_rest_cosine() -> None:
    generator = np.random.default_rng(0)
    one, other = generator.normal(0, 1.5, (2, 2, 6, 3, 4))
    total, counted = 0.0, generator.random((2, 3, 4)) < 0.6
    for image, row, column in np.ndindex(2, 3, 4):
        if not counted[image, row, column]:
            continue
        a, b = one[image, :, row, column], other[image, :, row, column]
        far = np.abs(a - b)
        smooth = np.where(far < 1, 0.5 * far**2, far - 0.5).mean()
        total += 0.1 * smooth + 0.9 * (1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    found = feature_distance(torch.tensor(one), torch.tensor(other), torch.tensor(counted))
    assert found.item() == pytest.approx(total / counted.sum(), rel=1e-6)
    alike = feature_distance(torch.tensor(one), torch.tensor(one), torch.tensor(counted))
    assert alike.item() == pytest.approx(0.0, abs=1e-12)


def test_the_student_sees_a_masked_image_and_the_frozen_encoder_the_whole_one(directory: Path) -> None:
    student = network()
    recipe = recipe_of(student, **on(directory, source_weight=0.0))
    seen: list[torch.Tensor] = []
    student.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    losses, term = recipe.step(batch()).losses, term_of(recipe)
    clean = normalise_unit(to_unit(batch().target.images))
    hidden = (seen[-1] == 0).all(1)
    assert list(losses) == ["source", "mix", "foundation"] and 0.3 < hidden.float().mean() < 0.7
    assert torch.equal(seen[-1].masked_fill(hidden.unsqueeze(1), 0), clean.masked_fill(hidden.unsqueeze(1), 0))
    resized = torch.nn.functional.interpolate(clean, (70, 112), mode="bilinear", align_corners=False)
    wanted = tokens_of(directory, resized)
    assert wanted.shape == (2, 96, 5, 8)
    projected = term.projection(network().encode(seen[-1])[-1])
    projected = torch.nn.functional.interpolate(projected, (5, 8), mode="bilinear", align_corners=False)
    torch.testing.assert_close(losses["foundation"], 0.1 * feature_distance(projected, wanted, EVERYWHERE).detach())


TINY = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.mark.parametrize(
    ("config", "patch"),
    [
        (Dinov2WithRegistersConfig(**TINY, image_size=112, patch_size=14, num_register_tokens=3), 14),
        (DINOv3ViTConfig(**TINY, patch_size=16, num_register_tokens=3), 16),
    ],
    ids=["dinov2_with_registers", "dinov3_vit"],
)
def test_models_with_registers_give_the_tokens_of_patches(config: Any, patch: int, tmp_path: Path) -> None:
    torch.manual_seed(6)
    AutoModel.from_config(config).save_pretrained(tmp_path)
    images = torch.randn(2, 3, 5 * patch, 8 * patch)
    wanted = tokens_of(tmp_path, images, patch, registers=3)
    assert torch.equal(load_foundation_model(tmp_path)(images, 5), wanted)
    recipe = recipe_of(network(), **on(tmp_path))
    losses = recipe.step(batch()).losses
    assert losses["foundation"] > 0 and losses["foundation_source"] > 0
    assert recipe.modules()["foundation"].projection[-1].out_channels == 24


def test_padding_does_not_count(directory: Path) -> None:
    recipe, step = recipe_of(network(), **on(directory)), batch()
    images, known = to_unit(step.target.images), torch.ones(2, *CROP, dtype=torch.bool)
    known[:, :, CROP[1] // 2 :] = False
    term = term_of(recipe)
    deepest = network().encode(normalise_unit(images))[-1].detach()
    found = term.distance(deepest, images, known)
    wanted = term._frozen[0](normalise_unit(images), 5)
    projected = torch.nn.functional.interpolate(term.projection(deepest), (5, 8), mode="bilinear")
    left = feature_distance(projected[..., :4], wanted[..., :4], EVERYWHERE[..., :4])
    torch.testing.assert_close(found, left)
    assert not torch.isclose(found, feature_distance(projected, wanted, EVERYWHERE))
    assert term.distance(deepest, images, torch.zeros_like(known)) == 0


@pytest.mark.parametrize("blda", [False, pytest.param(True, marks=pytest.mark.nightly)])
def test_the_source_has_the_same_distance_from_its_own_pass(directory: Path, blda: bool) -> None:
    student = network()
    recipe = recipe_of(student, **on(directory, source_weight=0.3), blda={"enabled": blda})
    seen: list[torch.Tensor] = []
    student.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    step = batch()
    losses, term = recipe.step(step).losses, term_of(recipe)
    source = normalise_unit(to_unit(step.source.images))
    assert len(seen) == 3 and torch.equal(seen[0], source), "no pass is added for it"
    projected = term.projection(network().encode(source)[-1])
    projected = torch.nn.functional.interpolate(projected, (5, 8), mode="bilinear", align_corners=False)
    wanted = 0.3 * feature_distance(projected, term._frozen[0](source, 5), EVERYWHERE)
    torch.testing.assert_close(losses["foundation_source"], wanted.detach())


def test_of_context_and_detail_only_the_context_is_encoded(directory: Path) -> None:
    torch.manual_seed(0)
    architecture = Architecture(name="daformer", encoder="mit_tiny", channels=16, dropout=0.0, multi_resolution=True)
    student = build_network(architecture, CLASSES).train()
    recipe = recipe_of(student, **on(directory))
    seen: list[tuple[int, ...]] = []
    student.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape[-2:])))
    recipe.step(batch(source=False))
    assert seen == [(CROP[0] // 2, CROP[1] // 2)] * 3, "context and detail of the mix, then one pass"


def test_projection_and_encoder_learn_and_the_frozen_encoder_is_neither_trained_nor_saved(directory: Path) -> None:
    student, step = network(), batch(source=False)
    nowhere = torch.zeros_like(step.target.trusted)
    recipe = recipe_of(student, **on(directory))
    recipe.step(step._replace(target=step.target._replace(trusted=nowhere)))  # no other loss has a gradient
    term = term_of(recipe)
    assert all(gradient.any() for gradient in gradients(term)) and gradients(student.encoder)[0].any()
    assert not any(gradient.any() for gradient in gradients(student.decoder))
    assert all(name.startswith("projection.") for name in term.state_dict())
    frozen = term._frozen[0]
    assert not frozen.training and not any(parameter.requires_grad for parameter in frozen.parameters())
    assert recipe.finished().state_dict().keys() == network().state_dict().keys()


@pytest.mark.parametrize("count", [4, "4"])
def test_registers_are_those_of_the_model_whatever_else_its_config_says(directory: Path, count: object) -> None:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "num_register_tokens": count}))
    images = torch.randn(1, 3, 70, 112)
    assert torch.equal(load_foundation_model(directory)(images, 5), tokens_of(directory, images))


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_that_are_not_finite_are_refused_by_file_and_name(value: float, tmp_path: Path) -> None:
    model = build_dinov2("dinov2_tiny", None, pyramid=False).model
    model.get_parameter("layernorm.bias").data[3] = value
    model.save_pretrained(tmp_path, max_shard_size="500KB")
    files = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(files.values())) > 1
    where = rf"foundation.directory: .*{files['layernorm.bias']}: layernorm.bias has non-finite values"
    with pytest.raises(NetworkMismatch, match=where):
        recipe_of(network(), **on(tmp_path))


def test_a_directory_that_is_none_of_a_dinov2_is_refused_by_name(directory: Path, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="name that of a model in"):
        recipe_settings(foundation={"enabled": True})
    with pytest.raises(UnsupportedModel, match=r"foundation.directory: .*nowhere/config.json: cannot be read"):
        recipe_of(network(), **on(tmp_path / "nowhere"))
    config = json.loads((directory / "config.json").read_text())
    for change, error, message in (
        ({"model_type": "segformer"}, NetworkMismatch, "of type 'segformer'"),
        ({"patch_size": 16}, NetworkMismatch, "projection.weight has shape"),
        ({"patch_size": [14, 14]}, NetworkMismatch, "one number is needed"),
        ({"hidden_size": 48}, AdapterError, "config.json"),
        ({"hidden_size": "96"}, UnsupportedModel, "config.json: .*hidden_size"),
        ({"num_hidden_layers": 0}, UnsupportedModel, "config.json: "),
        ({"layer_norm_eps": 5.0}, UnsupportedModel, "config.json: layer_norm_eps is 5.0; numbers from 0 to 0.1"),
    ):
        (directory / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(error, match=rf"recipe.advanced.foundation.directory: .*{message}"):
            recipe_of(network(), **on(directory))
    (directory / "config.json").write_text("{}")
    with pytest.raises(UnsupportedModel, match="is no configuration"):
        recipe_of(network(), **on(directory))
