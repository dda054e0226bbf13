"""ResNet encoders: strides, dilation, published sizes, and the same maps as transformers' own class."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.models.resnet.configuration_resnet import ResNetConfig
from transformers.models.resnet.modeling_resnet import ResNetForImageClassification

from adapters.errors import NetworkMismatch
from adapters.networks.encoders.resnet import (
    RESNET_SPECS,
    BasicBlock,
    BottleneckBlock,
    ResNet,
    ResNetSpec,
    build_resnet,
)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def _classifier_of_transformers(spec: ResNetSpec) -> ResNetForImageClassification:
    """An image classifier of this shape, as people publish them; its running statistics are not the initial ones."""
    kind = "basic" if spec.block is BasicBlock else "bottleneck"
    sizes: dict[str, Any] = {"hidden_sizes": list(spec.widths), "depths": list(spec.depths)}
    model = ResNetForImageClassification(ResNetConfig(layer_type=kind, embedding_size=spec.stem, **sizes))
    model.train()(torch.randn(2, 3, 64, 64))
    return model.eval()


def _maps_of_transformers(model: ResNetForImageClassification, images: Tensor) -> list[Tensor]:
    return list(model.resnet(images, output_hidden_states=True).hidden_states[1:])


@pytest.mark.parametrize("block", [BasicBlock, BottleneckBlock])
@torch.no_grad()
def test_the_maps_are_those_of_transformers(block: type[BasicBlock | BottleneckBlock]) -> None:
    spec = ResNetSpec(block, (2, 1, 2, 1), (16, 32, 48, 64), stem=8)
    theirs, ours = _classifier_of_transformers(spec), ResNet(spec, output_stride=32).eval()
    ours.load_state_dict(theirs.resnet.state_dict())
    images = torch.randn(2, 3, 96, 64)
    torch.testing.assert_close(ours(images), _maps_of_transformers(theirs, images), rtol=0, atol=1e-6)


@torch.no_grad()
def test_published_weights_are_loaded(tmp_path: Path) -> None:
    theirs = _classifier_of_transformers(RESNET_SPECS["resnet_tiny"])
    theirs.save_pretrained(tmp_path)
    images = torch.randn(2, 3, 64, 64)
    first, last = build_resnet("resnet_tiny", 32, (1, 4), tmp_path).eval()(images)
    expected = _maps_of_transformers(theirs, images)
    torch.testing.assert_close([first, last], [expected[0], expected[3]], rtol=0, atol=1e-6)


def test_published_weights_of_another_resnet_are_refused(tmp_path: Path) -> None:
    _classifier_of_transformers(RESNET_SPECS["resnet_tiny"]).save_pretrained(tmp_path)
    with pytest.raises(NetworkMismatch, match=r"has embedding_size 32, network\.encoder needs 64"):
        build_resnet("resnet18", 32, (4,), tmp_path)


@pytest.mark.parametrize(("stride", "side"), [(8, 16), (16, 8), (32, 4)])
def test_output_stride_sets_the_deepest_map(stride: int, side: int) -> None:
    encoder = build_resnet("resnet_tiny", stride, (1, 4), None).eval()
    with torch.no_grad():
        fine, deepest = encoder(torch.randn(1, 3, 128, 128))
    assert fine.shape == (1, 32, 32, 32)
    assert deepest.shape == (1, 128, side, side)


def first_dilation(block: nn.Module) -> int:
    """Dilation of the first 3x3 convolution of a block."""
    layers = (layer for layer in block.modules() if isinstance(layer, nn.Conv2d))
    return next(layer.dilation[0] for layer in layers if layer.kernel_size == (3, 3))


def test_stride_eight_has_the_published_dilations() -> None:
    """As published: strides 1, 2, 1, 1; dilations 1, 1, 2, 4; a stage's first block keeps its predecessor's."""
    stages = build_resnet("resnet50", 8, (4,), None).model.encoder.stages
    dilations = [[first_dilation(block) for block in stage.layers] for stage in stages]
    assert dilations == [[1] * 3, [1] * 4, [1] + [2] * 5, [2] + [4] * 2]


def test_dilation_keeps_the_features_of_the_undilated_network() -> None:
    """Output stride 8 sees, at every fourth position, exactly what stride 32 sees."""
    torch.manual_seed(3)
    coarse = build_resnet("resnet_tiny", 32, (4,), None).eval()
    dense = build_resnet("resnet_tiny", 8, (4,), None).eval()
    dense.load_state_dict(coarse.state_dict())
    images = torch.randn(1, 3, 256, 256)
    with torch.no_grad():
        expected, found = coarse(images)[0], dense(images)[0][..., ::4, ::4]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "millions"),
    [("resnet18", 11.18), ("resnet34", 21.28), ("resnet50", 23.51), ("resnet101", 42.50), ("resnet152", 58.14)],
)
def test_resnet_has_the_published_size(name: str, millions: float) -> None:
    """torchvision's counts without the classifier."""
    with torch.device("meta"):
        encoder = build_resnet(name, 8, (1, 4), None)
    assert sum(weight.numel() for weight in encoder.parameters()) / 1e6 == pytest.approx(millions, rel=0.002)
    assert encoder.feature_channels == ((64, 512) if name in ("resnet18", "resnet34") else (256, 2048))
