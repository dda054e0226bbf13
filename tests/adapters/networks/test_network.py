"""Networks: shapes, sizes, published dimensions, gradients, pretrained encoders."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from adapters.errors import NetworkMismatch, UnsupportedModel
from adapters.mfm.branch import mfm_loss
from adapters.mfm.rebuilder import build_rebuilder
from adapters.networks.build import build_network
from adapters.networks.encoders.dinov2 import build_dinov2
from adapters.networks.encoders.mit import MIT_SPECS, build_mit
from adapters.networks.initialisation import initialise_convolutions
from adapters.networks.network import SegmentationNetwork
from adapters.networks.step_rng import StepRng
from adapters.testing import NetworkContract
from configs.mfm import MfmSettings
from configs.network import Architecture
from tests.sections import section

TINY = {
    "daformer": Architecture(name="daformer", encoder="mit_tiny", channels=64),
    "deeplabv2": Architecture(name="deeplabv2", encoder="resnet_tiny", channels=64, output_stride=8),
    "deeplabv3plus": Architecture(name="deeplabv3plus", encoder="resnet_tiny", channels=64, output_stride=16),
    "dinov2_pyramid": Architecture(name="daformer", encoder="dinov2_tiny", channels=64),
    "dinov2_map": Architecture(name="deeplabv2", encoder="dinov2_tiny"),
    "unet": Architecture(name="unet", encoder="unet_tiny", dropout=0.0),
}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def parameters_of(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.fixture(params=TINY)
def network(request: pytest.FixtureRequest) -> SegmentationNetwork:
    return build_network(TINY[request.param], num_classes=5)


class TestBuiltIn(NetworkContract):
    """What the author of a network tests holds for those of mfmd."""

    num_classes = 5

    @pytest.fixture(autouse=True, params=TINY)
    def _settings(self, request: pytest.FixtureRequest) -> None:
        self.settings = TINY[request.param]

    def build(self) -> SegmentationNetwork:
        return build_network(self.settings, self.num_classes)


def test_tiny_preset_stays_below_a_million_parameters(network: SegmentationNetwork) -> None:
    assert parameters_of(network) < 1_000_000


def test_forward_is_decode_of_encode_at_image_size(network: SegmentationNetwork) -> None:
    images = torch.randn(2, 3, 90, 122)  # no multiple of any stride
    network.eval()
    with torch.no_grad():
        assert torch.equal(network(images), network.decode(network.encode(images), (90, 122)))


def test_every_parameter_gets_a_gradient(network: SegmentationNetwork) -> None:
    F.cross_entropy(network.train()(torch.randn(2, 3, 64, 96)), torch.randint(0, 5, (2, 64, 96))).backward()
    idle = [name for name, value in network.named_parameters() if value.grad is None or not value.grad.abs().sum() > 0]
    assert idle == []


def test_learns_from_scratch(network: SegmentationNetwork) -> None:
    """Bright and dark halves of random images: fifteen steps must already separate them."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    labels = torch.zeros(2, 64, 64, dtype=torch.long)
    labels[:, :, 32:] = 1
    for _ in range(15):
        images = torch.randn(2, 3, 64, 64) * 0.3 + (labels[:, None] * 2.0 - 1.0)
        loss = F.cross_entropy(network.train()(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    accuracy = (network(images).argmax(1) == labels).float().mean()
    assert accuracy > 0.9


def test_first_predictions_of_small_classifiers_are_nearly_uniform() -> None:
    """DeepLabV2 keeps N(0, 0.01) classifiers (docs/explanation/decisions/0006)."""
    network = build_network(TINY["deeplabv2"], 5)
    assert network.train()(torch.randn(2, 3, 64, 64)).softmax(1).max() < 0.6


def test_first_predictions_know_nothing(network: SegmentationNetwork) -> None:
    """Against random labels an untrained network may lose little more than a uniform guess: log K nats."""
    logits = network.train()(torch.randn(2, 3, 64, 64))
    labels = torch.randint(0, network.num_classes, (2, 64, 64))
    assert F.cross_entropy(logits, labels) < math.log(network.num_classes) + 0.3


def test_seed_fixes_the_initial_weights() -> None:
    first, second = (
        (torch.manual_seed(7), build_network(TINY["daformer"], 3).state_dict())[1] for _ in range(2)
    )  # fmt: skip
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("name", "millions"),
    [("mit_b0", 3.3), ("mit_b1", 13.1), ("mit_b2", 24.2), ("mit_b3", 44.0), ("mit_b4", 60.8), ("mit_b5", 81.4)],
)
def test_mit_has_the_published_size(name: str, millions: float) -> None:
    """SegFormer paper, table 1 (encoder parameters)."""
    with torch.device("meta"):
        encoder = build_mit(name, None)
    assert parameters_of(encoder) / 1e6 == pytest.approx(millions, rel=0.02)
    assert encoder.feature_channels == tuple(MIT_SPECS[name]["hidden_sizes"])


@pytest.mark.parametrize(
    ("name", "millions", "width"),
    [("dinov2_small", 22.06, 384), ("dinov2_base", 86.58, 768), ("dinov2_large", 304.37, 1024)],
)
def test_dinov2_has_the_published_size(name: str, millions: float, width: int) -> None:
    """The released ViT-S/14, B/14 and L/14, without the mask token."""
    with torch.device("meta"):
        encoder, pyramid = build_dinov2(name, None, pyramid=False), build_dinov2(name, None, pyramid=True)
    assert parameters_of(encoder) / 1e6 == pytest.approx(millions, rel=0.001)
    assert encoder.feature_channels == (width,)
    assert pyramid.feature_channels == (width // 4, width // 2, width, width)


@torch.no_grad()
def test_pyramid_has_strides_4_to_32() -> None:
    maps = build_dinov2("dinov2_tiny", None, pyramid=True).eval()(torch.randn(1, 3, 96, 160))
    assert [tuple(level.shape[-2:]) for level in maps] == [(24, 40), (12, 20), (6, 10), (3, 5)]


@torch.no_grad()
def test_dinov2_map_is_that_of_transformers() -> None:
    """Where patches divide the image, the map is the model's last hidden state, with its position code resized."""
    encoder = build_dinov2("dinov2_tiny", None, pyramid=False).eval()
    images = torch.randn(1, 3, 70, 112)
    tokens = encoder.model(images).last_hidden_state[:, 1:]
    torch.testing.assert_close(encoder(images)[0], tokens.transpose(1, 2).reshape(1, -1, 5, 8), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["dinov2_pyramid", "dinov2_map"])
def test_rebuilder_works_on_a_vit(name: str) -> None:
    """One map of stride 14 is MFM's DeepLab path, the pyramid its four-level path."""
    network = build_network(TINY[name], 5).train()
    rebuilder = build_rebuilder(network, (96, 128), section(MfmSettings, dim=32, heads=4, blocks=1))
    images, labels = torch.randn(2, 3, 96, 128), torch.randint(0, 5, (2, 96, 128))
    mfm_loss(network, rebuilder, images, labels, torch.ones(2, 96, 128), StepRng(0)).backward()
    for part in (network.encoder, network.decoder, rebuilder.transformer, rebuilder.projectors):
        assert all(value.grad is not None and value.grad.abs().sum() > 0 for value in part.parameters())


@pytest.mark.parametrize("name", ["dinov2_pyramid", "dinov2_map"])
def test_pretrained_dinov2_is_loaded_and_its_neck_starts_fresh(name: str, tmp_path: Path) -> None:
    from transformers.models.dinov2.modeling_dinov2 import Dinov2ForImageClassification

    config = build_dinov2("dinov2_tiny", None, pyramid=False).model.config
    config.use_mask_token = True  # as the released ones
    saved = Dinov2ForImageClassification(config)
    saved.save_pretrained(tmp_path / "encoder")
    network = build_network(TINY[name].model_copy(update={"pretrained": tmp_path / "encoder"}), 5)
    expected = {key: value for key, value in saved.dinov2.state_dict().items() if not key.endswith("mask_token")}
    loaded = network.encoder.model.state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[key], value) for key, value in expected.items())


def test_depthwise_convolutions_start_at_their_own_fan_out() -> None:
    layer = nn.Conv2d(512, 512, 3, groups=512)
    initialise_convolutions(layer)
    assert layer.weight.std().item() == pytest.approx((2 / 9) ** 0.5, rel=0.1)


@pytest.mark.parametrize(
    ("name", "encoder", "remedy"),
    [
        ("daformer", "resnet50", "mit, dinov2, .* or dinov3_tokens; resnet50 fits deeplabv2 or deeplabv3plus"),
        ("deeplabv2", "mit_b0", "resnet, dinov2 or dinov3; mit_b0 fits daformer"),
        ("deeplabv3plus", "dinov2_small", "resnet; dinov2_small fits daformer, deeplabv2 or light"),
        ("pyramid", "dinov3_base", "dinov2_adapter, .*; dinov3_base fits daformer, deeplabv2 or light"),
        ("light", "dinov2_adapter_base", "dinov2 or dinov3; dinov2_adapter_base fits daformer or pyramid"),
        ("unet", "mit_b0", "unet, .*; mit_b0 fits daformer"),
    ],
)
def test_encoder_that_does_not_fit_is_refused(name: str, encoder: str, remedy: str) -> None:
    with pytest.raises(NetworkMismatch, match=f"{name}.*{encoder}.*{remedy}"):
        build_network(Architecture(name=name, encoder=encoder), 5)


def test_settings_of_an_imported_model_are_refused_elsewhere() -> None:
    with pytest.raises(NetworkMismatch, match=r"hf_config.*daformer"):
        build_network(Architecture(name="daformer", hf_config={"model_type": "beit"}), 5)


@pytest.fixture
def saved_encoder(tmp_path: Path) -> Path:
    """An image classifier of the tiny MiT's architecture, as Hugging Face saves one."""
    from transformers.models.segformer.modeling_segformer import SegformerForImageClassification

    model = SegformerForImageClassification(build_mit("mit_tiny", None).model.config)
    model.save_pretrained(tmp_path / "encoder")
    return tmp_path / "encoder"


def test_pretrained_encoder_weights_are_loaded(saved_encoder: Path) -> None:
    from safetensors.torch import load_file

    network = build_network(TINY["daformer"].model_copy(update={"pretrained": saved_encoder}), 5)
    saved = load_file(saved_encoder / "model.safetensors")
    key = next(name for name in saved if name.endswith("patch_embeddings.0.proj.weight"))
    loaded = {tuple(value.shape): value for name, value in network.encoder.named_parameters() if "patch" in name}
    assert torch.equal(loaded[tuple(saved[key].shape)], saved[key])


def test_pretrained_weights_of_another_architecture_are_refused(saved_encoder: Path) -> None:
    settings = Architecture(name="daformer", encoder="mit_b0", pretrained=saved_encoder)
    with pytest.raises(NetworkMismatch, match="hidden_sizes"):
        build_network(settings, 5)


def test_pretrained_pickle_is_refused(saved_encoder: Path) -> None:
    (saved_encoder / "model.safetensors").rename(saved_encoder / "pytorch_model.bin")
    with pytest.raises(UnsupportedModel, match="cannot be loaded"):
        build_network(TINY["daformer"].model_copy(update={"pretrained": saved_encoder}), 5)


def test_pretrained_directory_that_is_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=r"config\.json"):
        build_network(TINY["daformer"].model_copy(update={"pretrained": tmp_path / "nowhere"}), 5)


def test_pretrained_weights_that_lack_a_tensor_are_refused(saved_encoder: Path) -> None:
    from safetensors.torch import load_file, save_file

    saved = load_file(saved_encoder / "model.safetensors")
    saved.pop(next(name for name in saved if name.endswith("patch_embeddings.0.proj.weight")))
    save_file(saved, saved_encoder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NetworkMismatch, match=r"lack.*proj\.weight"):
        build_network(TINY["daformer"].model_copy(update={"pretrained": saved_encoder}), 5)


def test_unet_base_has_the_weights_of_the_paper() -> None:
    """Figure 1: 64 to 1024 channels; our bilinear resizing has no transposed convolutions and keeps the wider input."""
    network = build_network(Architecture(name="unet", encoder="unet_base"), 2)
    assert network.feature_channels == (64, 128, 256, 512, 1024)

    def pair(inputs: int, outputs: int) -> int:
        return 9 * outputs * (inputs + outputs) + 4 * outputs  # two convolutions, two BatchNorms

    down = pair(3, 64) + pair(64, 128) + pair(128, 256) + pair(256, 512) + pair(512, 1024)
    up = pair(1536, 512) + pair(768, 256) + pair(384, 128) + pair(192, 64)
    assert parameters_of(network) == down + up + 64 * 2 + 2


def test_unet_takes_no_encoder_weights(tmp_path: Path) -> None:
    with pytest.raises(NetworkMismatch, match=r"network\.pretrained: .* leave it out"):
        build_network(Architecture(name="unet", encoder="unet_tiny", pretrained=tmp_path), 2)
