"""UPerNet on backbones beyond those of `tiny_models`: logits of the original, MFM, gradients, refusals."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from adapters.mfm.branch import mfm_loss
from adapters.mfm.feature_mask import grid_of
from adapters.mfm.rebuilder import build_rebuilder
from adapters.networks.huggingface.models import load_huggingface
from adapters.networks.network import SegmentationNetwork
from adapters.networks.step_rng import StepRng
from configs.mfm import MfmSettings
from configs.network import Architecture
from tests.adapters.tiny_models import CLASSES, logits_of
from tests.sections import section

STAGES = ["stage1", "stage2", "stage3", "stage4"]
FOUR = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
VIT = {"hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 3, "image_size": 96, "patch_size": 16}


def swinv2() -> Any:
    from transformers import Swinv2Config

    return Swinv2Config(
        image_size=64, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 2, 2, 4], window_size=4, out_features=STAGES
    )


def convnextv2() -> Any:
    from transformers import ConvNextV2Config

    return ConvNextV2Config(**FOUR, out_features=STAGES)


def pvt_v2() -> Any:
    from transformers import PvtV2Config

    return PvtV2Config(**FOUR, num_attention_heads=[1, 2, 3, 4], out_features=STAGES)


def dinov2() -> Any:
    from transformers import Dinov2Config

    return Dinov2Config(**VIT, out_features=STAGES)


def dinov3_vit() -> Any:
    from transformers import DINOv3ViTConfig

    return DINOv3ViTConfig(**VIT, intermediate_size=32, num_register_tokens=2, out_features=STAGES)


def dinov3_convnext() -> Any:
    from transformers import DINOv3ConvNextConfig

    return DINOv3ConvNextConfig(**FOUR, out_features=STAGES)


def beit() -> Any:
    from transformers import BeitConfig

    return BeitConfig(**VIT, intermediate_size=32, out_features=STAGES, reshape_hidden_states=True, add_fpn=True)


BACKBONES: dict[str, Callable[[], Any]] = {
    make.__name__: make for make in (swinv2, convnextv2, pvt_v2, dinov2, dinov3_vit, dinov3_convnext, beit)
}
FEW = ("pvt_v2", "dinov3_vit")
ROWS = [pytest.param(name, marks=[pytest.mark.nightly] * (name not in FEW)) for name in BACKBONES]


@pytest.fixture(params=ROWS)
def original(request: pytest.FixtureRequest) -> Any:
    from transformers import UperNetConfig, UperNetForSemanticSegmentation

    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = UperNetConfig(
        backbone_config=BACKBONES[request.param](), hidden_size=16, num_labels=CLASSES, use_auxiliary_head=False
    )
    return UperNetForSemanticSegmentation(config).eval()


@pytest.fixture
def network(original: Any, tmp_path: Path) -> SegmentationNetwork:
    original.save_pretrained(tmp_path)
    settings = Architecture(name="huggingface", hf_config=original.config.to_dict())
    return load_huggingface(tmp_path, settings, CLASSES).eval()


@torch.no_grad()
def test_logits_are_those_of_the_original(original: Any, network: SegmentationNetwork) -> None:
    images = torch.randn(2, 3, 96, 96)
    torch.testing.assert_close(network(images), logits_of(original, images), atol=1e-5, rtol=1e-4)
    assert network(torch.randn(1, 3, 90, 122)).shape == (1, CLASSES, 90, 122)


def test_takes_part_in_mfm_and_every_weight_learns(network: SegmentationNetwork) -> None:
    rebuilder = build_rebuilder(network.train(), (64, 96), section(MfmSettings, dim=32, heads=4, blocks=1))
    images, labels = torch.randn(1, 3, 64, 96), torch.randint(0, CLASSES, (1, 64, 96))
    keep = [torch.rand(1, 1, *grid_of(network.encode(images)[-1].shape[-2:], 16)) > 0.4]
    mfm_loss(network, rebuilder, images, labels, torch.ones(1, 64, 96), StepRng(0), keep).backward()
    F.cross_entropy(network(images), labels).backward()
    idle = [key for key, value in network.named_parameters() if value.requires_grad and value.grad is None]
    assert idle == []
