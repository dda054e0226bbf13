"""Networks of an operator's own package: built, checked, trained, imported; refused with a message that helps."""

import copy
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch import nn

from adapters.checkpoints.checkpoint import load_version, load_weights, save_weights
from adapters.checkpoints.exporting.export import Format, export_version
from adapters.checkpoints.importing import import_checkpoint
from adapters.errors import NetworkMismatch
from adapters.inference.copying import copy_weights
from adapters.networks.activation_checkpointing import checkpoint_encoder
from adapters.networks.build import build_checked, build_network
from adapters.networks.own import CutNetwork, OwnNetwork
from adapters.networks.source_digest import source_digest
from adapters.testing import NetworkContract
from configs.network import Architecture
from storage.errors import CorruptCheckpoint
from storage.registry.registry import CheckpointRegistry

CPU = torch.device("cpu")
BODY = """
import torch
from torch import nn
from torch.nn import functional as F

class Net(nn.Module):
    def __init__(self, num_classes, width=8):
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, width, 3, 4, 1), nn.BatchNorm2d(width), nn.ReLU())
        self.norm = nn.BatchNorm2d(width)
        self.up = nn.Conv2d(width, num_classes, 1)

    def encode(self, images):
        return (self.norm(self.down(images)),)

    def decode(self, features, size):
        return F.interpolate(self.up(features[0]), size)

class Parts(nn.Module):
    def __init__(self, num_classes, width=8):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, width, 3, 4, 1), nn.ReLU())
        self.head = nn.Conv2d(width, num_classes, 1)

class Loose(Net):
    def __init__(self, **options):
        super().__init__(**options)
        self.scale = torch.ones(1)

class Direct(Net):
    def __init__(self, **options):
        super().__init__(**options)
        self.scale = nn.Parameter(torch.ones(1))

class Shared(Net):
    def decode(self, features, size):
        return super().decode((self.norm(features[0]),), size)

class Tokens(Net):
    def encode(self, images):
        return (super().encode(images)[0].flatten(2),)

class Bare(Net):
    def encode(self, images):
        return super().encode(images)[0]

class Small(Net):
    def decode(self, features, size):
        return self.up(features[0])

class Shallow(Net):
    def encode(self, images):
        deep = super().encode(images)[0]
        return F.max_pool2d(deep, 2), deep

class Random(Net):
    def encode(self, images):
        return tuple(F.dropout(level, 0.5) for level in super().encode(images))

class Mixing(Net):
    def encode(self, images):
        return tuple(level - level.mean(0, keepdim=True) for level in super().encode(images))

class Idle(Net):
    def __init__(self, **options):
        super().__init__(**options)
        self.auxiliary = nn.Conv2d(1, 1, 1)

class Drawn(Net):
    def __init__(self, **options):
        super().__init__(**options)
        self.sign = float(torch.randn(()))

    def encode(self, images):
        return (super().encode(images)[0] * self.sign,)

class Growing(Net):
    grown = 0

    def __init__(self, **options):
        Growing.grown += 1
        super().__init__(width=4 * Growing.grown, **options)

def fails(num_classes):
    raise RuntimeError("no luck")

def nothing(num_classes):
    return None

NUMBER = 3
"""


@pytest.fixture(autouse=True)
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the path with the package `an_own`."""
    torch.set_num_threads(1)
    (tmp_path / "code").mkdir()
    (tmp_path / "code/an_own.py").write_text(BODY, encoding="utf-8")
    (tmp_path / "code/an_own_broken.py").write_text("import a_missing_library", encoding="utf-8")
    (tmp_path / "code/an_own_wrong.py").write_text("1 / 0", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path / "code")
    monkeypatch.delitem(sys.modules, "an_own", raising=False)
    return tmp_path / "code"


def own(name: str, **values: object) -> Architecture:
    return Architecture(name=f"an_own:{name}", **values)


CUT = {"encoder_module": "backbone", "decoder_module": "head"}


class TestNet(NetworkContract):
    network = "an_own:Net"


class TestParts(NetworkContract):
    network, options = "an_own:Parts", {"width": 4}
    encoder_module, decoder_module = "backbone", "head"


def test_encoder_and_decoder_share_nothing_and_a_copy_is_whole() -> None:
    network = build_network(own("Net", options={"width": 4}), 3)
    assert isinstance(network, OwnNetwork) and network.feature_channels == (4,)
    assert {key.rpartition(".")[0] for key in network.state_dict()} == {
        "encoder.down.0", "encoder.down.1", "encoder.norm", "decoder.up"
    }  # fmt: skip
    other = copy.deepcopy(network).eval()
    with torch.no_grad():
        other.encoder.down[0].weight.zero_()
    assert network.encoder.down[0].weight.abs().sum() > 0 and network.training and not other.encoder.training
    other.set_submodule("encoder.norm", nn.Identity())  # as folding does
    assert other.eval()(torch.randn(1, 3, 64, 64)).shape == (1, 3, 64, 64)


def test_a_cut_passes_on_what_the_encoder_returns(package: Path) -> None:
    (package / "an_own_dict.py").write_text(
        "from an_own import *\n"
        "class Maps(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.conv = nn.Conv2d(3, 4, 3, 4, 1)\n"
        "    def forward(self, images):\n        return {'low': self.conv(images)}\n"
        "class Head(nn.Conv2d):\n"
        "    def forward(self, maps):\n        return super().forward(maps['low'])\n"
        "def build(num_classes):\n"
        "    return nn.ModuleDict({'backbone': Maps(), 'head': Head(4, num_classes, 1)})\n"
    )
    network = build_checked(Architecture(name="an_own_dict:build", **CUT), 3)
    assert isinstance(network, CutNetwork) and network(torch.zeros(1, 3, 64, 96)).shape == (1, 3, 64, 96)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("json:loads", "belongs to Python itself"),
        ("a_missing_package.unet:build", r"no module 'a_missing_package'; install its package"),
        ("an_own_broken:build", "no module 'a_missing_library'"),
        ("an_own_wrong:build", "importing an_own_wrong fails with ZeroDivisionError"),
        ("an_own:absent", "has no such name"),
        ("an_own:NUMBER", "has a int there"),
        ("an_own:fails", r"fails\(num_classes\) fails with RuntimeError: no luck"),
        ("an_own:nothing", "returned None, expected a torch.nn.Module"),
        ("an_own:Parts", "without `encode` and `decode`"),
        ("an_own:Loose", "scale is a plain tensor"),
        ("an_own:Direct", "scale is a tensor of the outermost module"),
        ("an_own:Shared", "both use 'norm'"),
        ("an_own:Tokens", r"map 0 of shape \[1, 8, 384\]"),
        ("an_own:Bare", "returned a Tensor, expected a tuple of maps"),
        ("an_own:Small", r"logits \[2, 3, 16, 24\].*expected \[2, 3, 64, 96\]"),
        ("an_own:Shallow", "map 1 is finer"),
        ("an_own:Random", "two passes over the same images differ"),
        ("an_own:Mixing", "depend on the other images"),
        ("an_own:Idle", "auxiliary.weight and 1 more: trained, but no logit"),
        ("an_own:Drawn", "two builds with the same state dict"),
        ("an_own:Growing", "two builds differ"),
    ],
)
def test_what_breaks_the_contract_is_refused(name: str, message: str) -> None:
    with pytest.raises(NetworkMismatch, match=message) as refused:
        build_checked(Architecture(name=name), 3)
    assert str(refused.value).startswith("network.")


def test_names_that_cut_nothing_are_refused() -> None:
    with pytest.raises(
        NetworkMismatch, match=r"encoder_module: an_own:Parts has no submodule 'trunk'; it has backbone"
    ):
        build_network(own("Parts", encoder_module="trunk", decoder_module="head"), 3)
    with pytest.raises(NetworkMismatch, match=r"norm\.\w+ lies in neither 'down' nor 'up'"):
        build_network(own("Net", encoder_module="down", decoder_module="up"), 3)


def test_weights_are_imported_under_their_own_names_and_serve(
    training_state, package: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = training_state.settings(network={"name": "an_own:Parts", "advanced": CUT})
    training_state.layout.create()
    network = build_network(settings.network.architecture(), 3).eval()
    theirs = nn.ModuleDict({"backbone": network.encoder, "head": network.decoder})
    save_weights(theirs, package / "theirs.safetensors")
    registry = CheckpointRegistry(training_state.layout.checkpoints)
    manifest = import_checkpoint(package / "theirs.safetensors", settings, registry)
    assert manifest.network["name"] == "an_own:Parts" and manifest.network["encoder_module"] == "backbone"
    loaded, _ = load_version(registry, manifest.version, CPU)
    images = torch.randn(1, 3, 48, 64)
    with torch.no_grad():
        assert torch.equal(loaded(images), network(images))
    wider = build_network(settings.network.architecture().model_copy(update={"options": {"width": 12}}), 3)
    for load in (load_weights, copy_weights):
        with pytest.raises(
            CorruptCheckpoint, match=r"has a wrong shape for .*; the code of this network may have changed"
        ):
            load(wider, registry.weights_path(manifest.version))
    with caplog.at_level("WARNING"):
        load_version(registry, manifest.version, CPU)
        assert not caplog.messages
        source = (package / "an_own.py").read_text(encoding="utf-8")
        (package / "an_own.py").write_text(source.replace("nn.ReLU()", "nn.GELU()"), encoding="utf-8")
        load_version(registry, manifest.version, CPU)
    assert "version 1: the source files of an_own:Parts are not those" in caplog.messages[0]
    (package / "an_own.py").rename(package / "moved_away.py")
    sys.modules.pop("an_own")
    with pytest.raises(NetworkMismatch, match=r"version 1: network.name: an_own:Parts: no module 'an_own'; install"):
        load_version(registry, manifest.version, CPU)


def test_the_digest_covers_the_classes_of_the_package_and_nothing_else(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page for own networks says so: other files of the package, and other packages, are not among them."""
    (package / "an_own_pack").mkdir()
    files = {"build": "from .parts import Part", "parts": "from torch.nn import Identity\nclass Part(Identity): ..."}
    for name, text in {"__init__": "", "unused": "", **files}.items():
        (package / f"an_own_pack/{name}.py").write_text(text, encoding="utf-8")
        monkeypatch.delitem(sys.modules, f"an_own_pack.{name}", raising=False)
    model = nn.Sequential(import_module("an_own_pack.build").Part())
    import_module("an_own_pack.unused")
    found = [source_digest("an_own_pack.build:make", model)]
    for name in ("unused", "parts", "build"):
        (package / f"an_own_pack/{name}.py").write_text("# changed", encoding="utf-8")
        found.append(source_digest("an_own_pack.build:make", model))
    assert found[0] == found[1] and len(set(found)) == 3


@pytest.mark.parametrize("format", ["torch-export", pytest.param("onnx", marks=pytest.mark.nightly)])
@pytest.mark.parametrize("name", ["Net", pytest.param("Parts", marks=pytest.mark.nightly)])
def test_a_version_is_exported(training_state, tmp_path: Path, name: str, format: Format) -> None:
    settings = training_state.settings(
        network={"name": f"an_own:{name}", "advanced": CUT if name == "Parts" else {}},
        buffer={"height": 96, "width": 128},
    )
    training_state.register_network(settings)
    registry = CheckpointRegistry(training_state.layout.checkpoints)
    export_version(registry, 1, format, tmp_path / "out")
    if format == "torch-export":
        images, network = torch.randn(3, 3, 80, 100), load_version(registry, 1, CPU)[0]
        program = torch.export.load(tmp_path / "out/model.pt2").module()
        with torch.no_grad():
            torch.testing.assert_close(program(images), network(images))


@pytest.mark.parametrize("name", ["Net", "Parts"])
def test_options_of_a_round_change_no_answer(name: str) -> None:
    """Activation checkpointing reaches the encoder, also in a copy."""
    network = build_network(own(name, **(CUT if name == "Parts" else {})), 3).train()
    images = torch.randn(2, 3, 64, 96)
    expected = network(images)
    checkpoint_encoder(network)
    logits = copy.deepcopy(network)(images)
    logits.sum().backward()
    torch.testing.assert_close(logits, expected)
