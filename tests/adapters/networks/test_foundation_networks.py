"""Networks of VFM-UDA and VFM-UDA++: DINOv2 and DINOv3 with the ViT-Adapter, ConvNeXt, pyramid and light head."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel, Dinov2WithRegistersConfig, ViTConfig
from transformers.models.dinov2.modeling_dinov2 import Dinov2Model
from transformers.models.dinov3_convnext.modeling_dinov3_convnext import DINOv3ConvNextModel
from transformers.models.dinov3_vit.configuration_dinov3_vit import DINOv3ViTConfig
from transformers.models.dinov3_vit.modeling_dinov3_vit import DINOv3ViTModel

from adapters.errors import AdapterError, NetworkMismatch, UnsupportedModel
from adapters.networks.build import build_network
from adapters.networks.encoders.dinov2 import DINOV2_SPECS, build_dinov2
from adapters.networks.encoders.dinov3 import build_convnext, build_dinov3
from adapters.networks.encoders.vit_adapter import AdaptedVit
from adapters.networks.network import SegmentationNetwork
from adapters.testing import NetworkContract
from configs.network import Architecture
from tests.adapters.recipes.recipe_steps import train

PAIRS = {
    "vfm": ("pyramid", "dinov2_adapter_tiny"),
    "vfm_dinov3": ("pyramid", "dinov3_adapter_tiny"),
    "convnext": ("pyramid", "dinov3_convnext_tiny"),
    "light": ("light", "dinov2_tiny"),
    "light_dinov3": ("light", "dinov3_tiny"),
    "adapter_daformer": ("daformer", "dinov3_adapter_tiny"),
    "dinov3_map": ("deeplabv2", "dinov3_tiny"),
    "dinov3_pyramid": ("daformer", "dinov3_tiny"),
}
TINY = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
ROWS = [pytest.param(name, marks=[pytest.mark.nightly] * (name != "vfm_dinov3")) for name in PAIRS]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def settings_of(name: str, **more: Any) -> Architecture:
    decoder, encoder = PAIRS[name]
    return Architecture(name=decoder, encoder=encoder, channels=32, **more)


def parameters_of(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def opened(network: SegmentationNetwork) -> SegmentationNetwork:
    """The network, with what begins at zero in its adapter away from it: until then no gradient passes there."""
    for name, value in network.named_parameters():
        if name.endswith(("gamma", "offsets.weight", "attention.weights.weight")):
            nn.init.normal_(value, std=0.1)
    return network


class TestContract(NetworkContract):
    """What the author of a network tests."""

    num_classes = 4

    @pytest.fixture(autouse=True, params=ROWS)
    def _settings(self, request: pytest.FixtureRequest) -> None:
        self.settings = settings_of(request.param)

    def build(self) -> SegmentationNetwork:
        return build_network(self.settings, self.num_classes)


@pytest.mark.parametrize("name", ROWS)
def test_a_recipe_with_mfm_trains_every_part(name: str) -> None:
    """One step of a recipe with MFM at 64x96 gives each trained parameter a gradient."""
    network = opened(build_network(settings_of(name, dropout=0.0), 4)).train()
    losses = train(network, steps=1, name="dacs", mfm=True)[0].losses
    assert losses["mfm"] > 0 and losses["source"] > 0
    idle = [key for key, value in network.named_parameters() if value.requires_grad and not _moved(value)]
    assert idle == []


def _moved(value: Tensor) -> bool:
    return value.grad is not None and bool(value.grad.abs().sum() > 0)


@pytest.mark.nightly
@pytest.mark.parametrize("name", PAIRS)
def test_learns_from_scratch(name: str) -> None:
    """Bright and dark halves of random images: twenty steps separate them."""
    network = build_network(settings_of(name, dropout=0.0), 2)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    labels = torch.zeros(2, 64, 64, dtype=torch.long)
    labels[:, :, 32:] = 1
    for _ in range(20):
        images = torch.randn(2, 3, 64, 64) * 0.3 + (labels[:, None] * 2.0 - 1.0)
        loss = F.cross_entropy(network.train()(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (network(images).argmax(1) == labels).float().mean() > 0.9


@pytest.mark.parametrize(
    ("name", "tokens", "maps"),
    [
        ("dinov2_adapter_tiny", 80, [280, 140, 70, 35]),
        pytest.param("dinov3_adapter_tiny", 64, [256, 128, 64, 32], marks=pytest.mark.nightly),
    ],
)
def test_a_crop_of_1024_has_the_published_maps(name: str, tokens: int, maps: list[int]) -> None:
    """VFM-UDA++ scales it to 1120 for DINOv2: 80x80 tokens, maps of 280 to 35 cells a side."""
    with torch.device("meta"):
        network = build_network(Architecture(name="pyramid", encoder=name), 19).eval()
        images = torch.empty(1, 3, 1024, 1024)
        assert [tuple(level.shape) for level in network.encode(images)] == [(1, 96, side, side) for side in maps]
    assert isinstance(network.encoder, AdaptedVit)
    assert network.encoder.vit.DENSE.along(1024) == tokens


@torch.no_grad()
def test_the_adapter_leaves_the_vit_as_it_was_at_first() -> None:
    """Its injectors' factors begin at zero (published), so pretrained tokens reach the maps unchanged."""
    vit = build_dinov3("dinov3_tiny", None, pyramid=False)
    adapted, images = AdaptedVit(vit).eval(), torch.randn(1, 3, 64, 96)
    before = vit.eval()(images)[0]
    seen: list[Tensor] = []
    vit.blocks()[-1].register_forward_hook(lambda block, inputs, output: seen.append(vit.last_norm()(output)))
    adapted(images)
    torch.testing.assert_close(seen[0][:, vit.prefix() :].transpose(1, 2).unflatten(2, (4, 6)), before)
    nn.init.constant_(adapted.get_parameter("injectors.0.gamma"), 0.5)
    adapted(images)
    assert (seen[1] - seen[0]).abs().max() > 1e-3


@torch.no_grad()
def test_each_map_is_the_prior_and_the_tokens_of_its_quarter() -> None:
    """ViT-Adapter: stride 4 gets the tokens of the first quarter of the blocks, stride 32 those of the last."""
    adapted = AdaptedVit(build_dinov3("dinov3_tiny", None, pyramid=False)).eval()
    tokens: list[Tensor] = []
    for block in adapted.vit.blocks():  # four, one a quarter
        block.register_forward_hook(lambda block, inputs, output: tokens.append(output[:, 5:]))
    kept: dict[str, Any] = {}
    adapted.prior.register_forward_hook(lambda module, inputs, output: kept.update(finest=output[0]))
    adapted.extractors[-1].register_forward_hook(lambda module, inputs, output: kept.update(cells=output))
    maps = adapted(torch.randn(1, 3, 64, 96))
    sides = [(8, 12), (4, 6), (2, 3)]
    parts = kept["cells"].transpose(1, 2).split([rows * columns for rows, columns in sides], dim=2)
    coarser = [part.unflatten(2, size) for part, size in zip(parts, sides, strict=True)]
    for number, level in enumerate([adapted.up(coarser[0]) + kept["finest"], *coarser]):
        seen = tokens[number].transpose(1, 2).unflatten(2, (4, 6))
        expected = level + F.interpolate(seen, level.shape[-2:], mode="bilinear", align_corners=False)
        torch.testing.assert_close(maps[number], adapted.norms[number](expected))


@torch.no_grad()
def test_dinov3_map_is_that_of_transformers() -> None:
    encoder, images = build_dinov3("dinov3_tiny", None, pyramid=False).eval(), torch.randn(1, 3, 80, 112)
    tokens = encoder.model(images).last_hidden_state[:, 5:]
    torch.testing.assert_close(encoder(images)[0], tokens.transpose(1, 2).reshape(1, -1, 5, 7), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_convnext_maps_are_those_of_transformers() -> None:
    encoder, images = build_convnext("dinov3_convnext_tiny", None).eval(), torch.randn(1, 3, 64, 96)
    theirs = encoder.model(images, output_hidden_states=True)
    maps = encoder(images)
    assert [tuple(level.shape[-2:]) for level in maps] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    last = theirs.last_hidden_state[:, 1:].transpose(1, 2).reshape(1, -1, 2, 3)
    for found, expected in zip(maps, [*theirs.hidden_states[-4:-1], last], strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("dinov3_small", 21.6),
        ("dinov3_base", 85.7),
        pytest.param("dinov3_large", 303.1, marks=pytest.mark.nightly),
        ("dinov3_convnext_t", 28),
        pytest.param("dinov3_convnext_s", 50, marks=pytest.mark.nightly),
        pytest.param("dinov3_convnext_b", 88, marks=pytest.mark.nightly),
        pytest.param("dinov3_convnext_l", 196, marks=pytest.mark.nightly),
    ],
)
def test_dinov3_has_the_published_size(name: str, millions: float) -> None:
    """The released models (arXiv 2508.10104, table of the family)."""
    with torch.device("meta"):
        made = build_convnext(name, None) if "convnext" in name else build_dinov3(name, None, pyramid=False)
    assert parameters_of(made) / 1e6 == pytest.approx(millions, rel=0.02)


@pytest.mark.parametrize(
    ("name", "width"),
    [
        ("dinov2_adapter_base", 768),
        pytest.param("dinov2_adapter_small", 384, marks=pytest.mark.nightly),
        pytest.param("dinov2_adapter_large", 1024, marks=pytest.mark.nightly),
    ],
)
def test_adapter_and_pyramid_head_have_the_weights_of_the_papers(name: str, width: int) -> None:
    with torch.device("meta"):
        network = build_network(Architecture(name="pyramid", encoder=name), 19)
        vit = build_dinov2(name.replace("_adapter", ""), None, pyramid=False)
    assert parameters_of(network.encoder) - parameters_of(vit) == weights_of_the_adapter(width)
    assert parameters_of(network.decoder) == weights_of_the_head(width, 19)


def linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def attention(width: int, levels: int) -> int:
    """Places and weights of width / 64 heads with 4 points a level, half the width read, two norms before it."""
    places = width // 64 * levels * 4
    inner = width // 2
    return linear(width, 2 * places) + linear(width, places) + linear(width, inner) + linear(inner, width) + 4 * width


def weights_of_the_adapter(width: int) -> int:
    hidden = width // 4
    convolutions = [(3, 64), (64, 64), (64, 64), (64, 128), (128, 256), (256, 256)]
    prior = sum(9 * inputs * outputs + 2 * outputs for inputs, outputs in convolutions)
    prior += sum(linear(inner, width) for inner in (64, 128, 256, 256)) + 3 * width
    injector = attention(width, 3) + width
    extractor = attention(width, 1) + 2 * width + linear(width, hidden) + 10 * hidden + linear(hidden, width)
    return prior + 4 * injector + 6 * extractor + 4 * width * width + width + 4 * 2 * width


def weights_of_the_head(width: int, classes: int) -> int:
    total = 0
    for wide in (width, width // 2, width // 4):
        half = wide // 2
        total += 4 * wide * half + half + linear(width, half) + 9 * half * half + 2 * half
    last = width // 8
    return total + 9 * last * last + last + last * classes


SAVED: dict[str, Any] = {
    "vfm": lambda: Dinov2Model(build_dinov2("dinov2_tiny", None, pyramid=False).model.config),
    "vfm_dinov3": lambda: DINOv3ViTModel(build_dinov3("dinov3_tiny", None, pyramid=False).model.config),
    "convnext": lambda: DINOv3ConvNextModel(build_convnext("dinov3_convnext_tiny", None).model.config),
}


@pytest.mark.parametrize("name", SAVED)
def test_pretrained_weights_are_loaded_below_the_adapter(name: str, tmp_path: Path) -> None:
    saved = SAVED[name]()
    saved.save_pretrained(tmp_path)
    network = build_network(settings_of(name, pretrained=tmp_path), 5)
    loaded = getattr(network.encoder, "vit", network.encoder).model.state_dict()
    assert loaded.keys() == saved.state_dict().keys()
    assert all(torch.equal(loaded[key], value) for key, value in saved.state_dict().items())


@pytest.mark.parametrize("name", SAVED)
def test_a_pretrained_directory_that_is_missing_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=r"^network\.pretrained: .*nowhere/config\.json: cannot be read"):
        build_network(settings_of(name, pretrained=tmp_path / "nowhere"), 5)


@pytest.mark.parametrize(
    ("encoder", "field"),
    [("dinov3_adapter_small", "hidden_size"), ("dinov3_convnext_t", "hidden_sizes")],
)
def test_pretrained_weights_of_another_size_are_refused(encoder: str, field: str, tmp_path: Path) -> None:
    SAVED["convnext" if "convnext" in encoder else "vfm_dinov3"]().save_pretrained(tmp_path)
    with pytest.raises(NetworkMismatch, match=rf"network\.pretrained: .* has {field}.*choose the encoder"):
        build_network(Architecture(name="pyramid", encoder=encoder, pretrained=tmp_path), 5)


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("vit", ViTConfig(**TINY, intermediate_size=48)),  # what MAE and RETFound are
        ("dinov2_with_registers", Dinov2WithRegistersConfig(**TINY, mlp_ratio=2)),
    ],
)
def test_a_model_of_another_kind_is_named_before_its_weights_are_read(
    kind: str, config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """They have every size of the encoder."""
    monkeypatch.setitem(DINOV2_SPECS, "dinov2_tiny", {**TINY, "mlp_ratio": 2})
    AutoModel.from_config(config).save_pretrained(tmp_path)
    capfd.readouterr()
    with pytest.raises(NetworkMismatch) as caught:
        build_dinov2("dinov2_tiny", tmp_path, pyramid=False)
    assert str(caught.value).startswith(f"network.pretrained: {tmp_path} holds a model of type {kind!r}, network.encod")
    assert "needs 'dinov2'; give" in str(caught.value) and capfd.readouterr() == ("", "")


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_every_error_of_the_directory_names_the_setting_once(device: str, tmp_path: Path) -> None:
    """On the meta device, too, which reads the headers of the weights alone."""
    SAVED["vfm"]().save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    whole = weights.read_bytes()
    with torch.device(device):
        network = build_network(settings_of("vfm", pretrained=tmp_path), 5)
    assert {value.device.type for value in network.parameters()} == {device}
    lacking, wrong = load_file(weights), load_file(weights)
    del lacking["layernorm.weight"]
    wrong["layernorm.weight"] = torch.zeros(3)
    for content in (whole[:-1], save(lacking, {"format": "pt"}), save(wrong, {"format": "pt"})):
        weights.write_bytes(content)
        with torch.device(device), pytest.raises(AdapterError) as caught:
            build_network(settings_of("vfm", pretrained=tmp_path), 5)
        assert re.match(r"network\.pretrained: (?!.*network\.pretrained).*model\.safetensors", str(caught.value))


def test_a_field_of_the_wrong_type_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "dinov3_vit", "hidden_size": "96"}')
    with pytest.raises(UnsupportedModel, match=r"network\.pretrained: .*hidden_size"):
        build_network(settings_of("vfm_dinov3", pretrained=tmp_path), 5)


def test_a_directory_without_registers_is_refused(tmp_path: Path) -> None:
    config: DINOv3ViTConfig = build_dinov3("dinov3_tiny", None, pyramid=False).model.config
    config.num_register_tokens = 0
    DINOv3ViTModel(config).save_pretrained(tmp_path)
    with pytest.raises(NetworkMismatch, match=r"has num_register_tokens 0, network\.encoder needs 4"):
        build_network(settings_of("vfm_dinov3", pretrained=tmp_path), 5)
