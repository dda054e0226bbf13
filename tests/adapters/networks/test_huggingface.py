"""Imported Hugging Face models: same logits as the original, real maps, MFM, any size, pixel scaling, refusals."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from adapters.errors import NetworkMismatch, UnsupportedModel
from adapters.mfm.branch import mfm_loss
from adapters.mfm.feature_mask import grid_of
from adapters.mfm.rebuilder import build_rebuilder
from adapters.networks.huggingface.models import FAMILIES, build_huggingface, load_huggingface
from adapters.networks.huggingface.pixels import pixel_change, scaling_of
from adapters.networks.network import SegmentationNetwork, normalise
from adapters.networks.step_rng import StepRng
from configs.mfm import MfmSettings
from configs.network import Architecture
from tests.adapters.tiny_models import (
    ANY_SIZE,
    CLASSES,
    MASKS,
    MODELS,
    NEEDS_SCIPY,
    ROWS,
    SQUARE_ONLY,
    logits_of,
    model,
)
from tests.sections import section


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def settings_for(original: Any, preprocessor: dict[str, Any] | None = None) -> Architecture:
    return Architecture(name="huggingface", hf_config=original.config.to_dict(), hf_preprocessor=preprocessor)


@pytest.fixture(params=ROWS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def original(name: str) -> Any:
    return model(name)


@pytest.fixture
def network(original: Any, tmp_path: Path) -> SegmentationNetwork:
    original.save_pretrained(tmp_path / "model")
    return load_huggingface(tmp_path / "model", settings_for(original), CLASSES).eval()


@torch.no_grad()
def test_logits_are_those_of_the_original(name: str, original: Any, network: SegmentationNetwork) -> None:
    sizes = [(96, 96)] if name in SQUARE_ONLY else [(96, 96), (64, 96)]
    for size in sizes + [(90, 122)] * (name in ANY_SIZE):
        images = torch.randn(2, 3, *size)
        torch.testing.assert_close(network(images), logits_of(original, images), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_maps_are_maps_and_any_size_works(network: SegmentationNetwork) -> None:
    for size in ((96, 96), (90, 122), (33, 70)):
        features = network.encode(torch.randn(1, 3, *size))
        assert all(level.ndim == 4 for level in features)
        assert tuple(level.shape[1] for level in features) == network.feature_channels
        assert all(fine.shape[-1] >= coarse.shape[-1] for fine, coarse in pairwise(features)), "deepest last"
        assert all(abs(level.shape[-1] / level.shape[-2] - size[1] / size[0]) < 1.0 for level in features)
        assert network(torch.randn(1, 3, *size)).shape == (1, CLASSES, *size)


def test_takes_part_in_mfm_and_trains_one_image(network: SegmentationNetwork) -> None:
    """Every weight that is not frozen learns; what is frozen does not matter to the logits."""
    rebuilder = build_rebuilder(network.train(), (64, 96), section(MfmSettings, dim=32, heads=4, blocks=1))
    images, labels = torch.randn(1, 3, 64, 96), torch.randint(0, CLASSES, (1, 64, 96))
    keep = [torch.rand(1, 1, *grid_of(network.encode(images)[-1].shape[-2:], 16)) > 0.4]
    mfm_loss(network, rebuilder, images, labels, torch.ones(1, 64, 96), StepRng(0), keep).backward()
    F.cross_entropy(network(images), labels).backward()
    idle = [key for key, value in network.named_parameters() if value.requires_grad and value.grad is None]
    assert idle == []
    assert all(value.grad is not None for value in rebuilder.embedding.parameters())


@torch.no_grad()
def test_frozen_weights_do_not_matter(network: SegmentationNetwork) -> None:
    images = torch.randn(1, 3, 64, 64)
    before = network(images)
    for value in network.parameters():
        if not value.requires_grad:
            value.add_(1.0)
    assert torch.equal(network(images), before)


NAN = float("nan")
ODD: dict[str, dict[str, list[Any]]] = {
    "segformer": {
        "depths": [[], None, "x", -1, [1], [None] * 4, [0] * 4, [-1] * 4],
        "hidden_sizes": [[8, 16]],
        "hidden_act": ["x", 1],
        "sr_ratios": [[0] * 4, [-8, -4, -2, -1]],
        "attention_probs_dropout_prob": [-0.001, 1.5, NAN, None],
        "drop_path_rate": [1.5, True],
        "layer_norm_eps": [1.5, -1e-6, NAN, True],
    },
    "beit": {
        "hidden_size": [-1, None, [], 1.5],
        "num_attention_heads": [0, "3"],
        "patch_size": [0, -1, [16]],
        "layer_scale_init_value": [-0.1, NAN],
        "num_hidden_layers": [10**9],
        "use_relative_position_bias": ["false", "true"],
        "out_indices": [[2, 2, 3, 4], [0, 1, 2, 3], [3, 4, 5, 7]],
        "pool_scales": [[0] * 4],
    },
    "data2vec": {"hidden_act": ["x"], "num_hidden_layers": [None, "5"], "out_indices": [[0] * 4, [2] * 4]},
    "dpt": {
        "num_attention_heads": [0],
        "backbone_out_indices": ["x", [0, 1, 2], [0, 1, 2, 5]],
        "neck_hidden_sizes": [[]],
    },
    "mask2former": {
        "hidden_dim": [0, "x"],
        "num_queries": [0, -1, 10**9],
        "dropout": [1.5],
        "backbone_config": [None, "swin"],
    },
    "eomt": {
        "num_blocks": [0, 4, "x"],
        "num_register_tokens": [-1],
        "layer_norm_eps": [1.5],
        "image_size": [0, "x"],
        "use_swiglu_ffn": ["no"],
    },
    "mobilenetv2": {"depth_multiplier": ["x", None, -1.0], "hidden_act": ["x"]},
    "mobilevit": {"hidden_sizes": [[], [-1, -1, -1]], "neck_hidden_sizes": [[1]], "atrous_rates": [[0] * 3]},
    "mobilevitv2": {"base_attn_unit_dims": [[], "x"], "output_stride": [0, 10**9]},
    "upernet_convnext": {"depths": [[], [-1], [0] * 4], "hidden_sizes": [[8]], "layer_scale_init_value": [-1e-6]},
}


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=[NEEDS_SCIPY] * (kind in MASKS)) for kind in ODD])
def test_an_odd_value_of_the_config_is_named(kind: str) -> None:
    config = model(kind).config.to_dict()
    inside = "backbone_config" if kind.startswith("upernet") else None
    for field, values in ODD[kind].items():
        for value in values:
            odd = {**config, inside: {**config[inside], field: value}} if inside else {**config, field: value}
            with pytest.raises(UnsupportedModel, match=rf"^config.json: .*\b{field}\b"):
                build_huggingface(Architecture(name="huggingface", hf_config=odd), CLASSES)


LEFT_OUT = {
    "upernet_swin": ("qkv_bias", False),
    "dpt": ("qkv_bias", False),
    "upernet_convnext": ("layer_scale_init_value", 0.0),
}


@pytest.mark.parametrize("kind", LEFT_OUT)
def test_weights_that_the_config_leaves_out_are_refused(tmp_path: Path, kind: str) -> None:
    """transformers builds the model without them, and it answers otherwise."""
    original, (field, value) = model(kind), LEFT_OUT[kind]
    original.save_pretrained(tmp_path)
    config = original.config.to_dict()
    (config["backbone_config"] if kind.startswith("upernet") else config)[field] = value
    with pytest.raises(NetworkMismatch, match=r"model\.safetensors: holds .* config\.json is of another model"):
        load_huggingface(tmp_path, Architecture(name="huggingface", hf_config=config), CLASSES)


def test_what_a_call_returns_is_no_matter_of_the_config() -> None:
    config = {**model("segformer").config.to_dict(), "return_dict": False, "output_attentions": True}
    network, _ = build_huggingface(Architecture(name="huggingface", hf_config=config), CLASSES)
    assert network(torch.zeros(1, 3, 64, 64)).shape == (1, CLASSES, 64, 64)


@NEEDS_SCIPY
def test_every_family_has_a_tiny_model() -> None:
    assert {model(name).config.model_type for name in MODELS} == set(FAMILIES)


PREPROCESSORS: dict[str, dict[str, Any]] = {
    "beit": {"image_processor_type": "BeitImageProcessor", "image_mean": [0.5] * 3, "image_std": [0.5] * 3},
    "mobilevit": {"image_processor_type": "MobileViTImageProcessor"},
    "dpt": {"feature_extractor_type": "DPTFeatureExtractor"},
    "segformer": {"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 2, 3], "do_rescale": False},
}


@pytest.mark.parametrize("kind", PREPROCESSORS)
@torch.no_grad()
def test_pixels_reach_the_model_as_transformers_scales_them(kind: str) -> None:
    """Against the image processor of transformers itself."""
    from transformers.models.beit.image_processing_pil_beit import BeitImageProcessorPil
    from transformers.models.dpt.image_processing_pil_dpt import DPTImageProcessorPil
    from transformers.models.mobilevit.image_processing_pil_mobilevit import MobileViTImageProcessorPil
    from transformers.models.segformer.image_processing_pil_segformer import SegformerImageProcessorPil

    processors = {
        "beit": BeitImageProcessorPil,
        "dpt": DPTImageProcessorPil,
        "mobilevit": MobileViTImageProcessorPil,
        "segformer": SegformerImageProcessorPil,
    }
    frame = torch.randint(0, 256, (32, 48, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    options = {key: value for key, value in PREPROCESSORS[kind].items() if not key.endswith("_type")}
    processor = processors[kind](**options, do_resize=False, do_center_crop=False)
    expected = torch.as_tensor(processor(frame.numpy(), return_tensors="pt")["pixel_values"], dtype=torch.float32)
    found = pixel_change(PREPROCESSORS[kind])(normalise(frame[None]))
    torch.testing.assert_close(found, expected, atol=1e-3 * float(expected.abs().max()), rtol=1e-4)


def test_own_scaling_changes_nothing() -> None:
    """Bit for bit, and the network keeps its keys whatever the scaling."""
    assert isinstance(pixel_change({"image_processor_type": "SegformerImageProcessor"}), torch.nn.Identity)
    original = model("segformer")
    plain, scaled = (
        build_huggingface(settings_for(original, preprocessor), CLASSES)[0]
        for preprocessor in (None, {"image_processor_type": "BeitImageProcessor"})
    )
    assert plain.state_dict().keys() == scaled.state_dict().keys()


@pytest.mark.parametrize(
    "content", [{"image_mean": [0.5, 0.5]}, {"do_normalize": True}, {"image_mean": "grey", "image_std": 1}]
)
def test_unclear_pixel_scaling_is_refused(content: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedModel, match=r"preprocessor_config\.json: image_(mean|std)"):
        scaling_of(content)


@pytest.mark.parametrize("kind", ["detr", "videomt", None])
def test_what_cannot_be_split_is_refused_by_name(kind: str | None) -> None:
    with pytest.raises(UnsupportedModel, match=rf"{kind}.*beit, data2vec-vision, dpt.*segformer.*upernet"):
        build_huggingface(Architecture(name="huggingface", hf_config={"model_type": kind}), CLASSES)


@pytest.mark.parametrize(
    ("hf_config", "reason"),
    [
        ({"model_type": "dpt", "is_hybrid": True}, "hybrid"),
        ({"model_type": "dpt", "backbone_config": {"model_type": "dinov2"}}, r"plain ViT in its place; use an upernet"),
        ({"model_type": "upernet"}, "backbone_config"),
        ({"model_type": "detr"}, "objects.*use mask2former"),
        ({"model_type": "videomt"}, "several frames.*use eomt"),
    ],
)
def test_variants_that_cannot_be_split_are_refused(hf_config: dict[str, Any], reason: str) -> None:
    with pytest.raises(UnsupportedModel, match=reason):
        build_huggingface(Architecture(name="huggingface", hf_config=hf_config), CLASSES)


def test_other_class_count_is_refused() -> None:
    with pytest.raises(NetworkMismatch, match=r"8 classes.*lists 5"):
        build_huggingface(settings_for(model("segformer")), 5)


@pytest.mark.parametrize("change", [{"hidden_sizes": "abc"}, {"depths": [1]}, {"model_type": ["segformer"]}])
def test_odd_configs_are_refused_by_name(change: dict[str, Any]) -> None:
    config = {**model("segformer").config.to_dict(), **change}
    with pytest.raises(UnsupportedModel, match=r"config\.json"):
        build_huggingface(Architecture(name="huggingface", hf_config=config), CLASSES)
