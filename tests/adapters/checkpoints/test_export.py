"""Exports: what others load gives our logits, holds nothing of training, and is there wholly or not at all."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from adapters.checkpoints.checkpoint import load_version, make_manifest, save_weights
from adapters.checkpoints.exporting import export as exporting
from adapters.checkpoints.exporting.export import Format, export_version
from adapters.checkpoints.exporting.programs import free_dimensions
from adapters.checkpoints.importing import import_checkpoint
from adapters.errors import ExportRefused
from adapters.networks.build import build_network
from adapters.networks.network import SegmentationNetwork
from configs.network import Architecture
from configs.settings import Settings
from storage.errors import UnknownVersion
from storage.registry.registry import CheckpointRegistry
from tests.adapters.tiny_models import MASKS, MODELS, NEEDS_SCIPY, model

CPU = torch.device("cpu")
NATIVE = {
    "deeplabv2": Architecture(name="deeplabv2", encoder="resnet_tiny"),
    "dinov2_map": Architecture(name="deeplabv2", encoder="dinov2_tiny"),
    "hrda": Architecture(name="deeplabv2", encoder="resnet_tiny", multi_resolution=True),
    "vfm": Architecture(name="pyramid", encoder="dinov2_adapter_tiny"),
    "convnext": Architecture(name="pyramid", encoder="dinov3_convnext_tiny"),
    "light": Architecture(name="light", encoder="dinov3_tiny"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return tmp_path_factory.mktemp("export")


@pytest.fixture(scope="module")
def settings(folder: Path) -> Settings:
    return Settings.model_validate(
        {
            "state": folder / "state",
            "classes": "demo",
            "watch": {"folder": folder / "drop"},
            "buffer": {"height": 64, "width": 96},
        }
    )


@pytest.fixture(scope="module")
def registry(settings: Settings) -> CheckpointRegistry:
    return CheckpointRegistry(settings.state / "checkpoints")


class Versions(dict[str, int]):
    """A version of each kind that a test asks for; the models of transformers with pixel scalings of their own."""

    def __init__(self, folder: Path, settings: Settings, registry: CheckpointRegistry) -> None:
        super().__init__()
        self._folder, self._settings, self._registry = folder, settings, registry

    def __missing__(self, name: str) -> int:
        self[name] = self._native(name) if name in NATIVE else self._imported(name)
        return self[name]

    def _native(self, name: str) -> int:
        torch.manual_seed(0)
        network, weights = NATIVE[name], self._folder / "weights.safetensors"
        save_weights(build_network(network, len(self._settings.classes)), weights)
        manifest = make_manifest(self._settings, origin="pretrain", network=network)
        return self._registry.add(weights, manifest, by="test").version

    def _imported(self, name: str) -> int:
        directory, number = self._folder / "models" / name, list(MODELS).index(name)
        model(name).save_pretrained(directory)
        processor: dict[str, object] = {"image_mean": [0.5, 0.4, 0.05 * number], "image_std": [0.5, 0.3, 0.2]}
        if name == "mobilevit":
            processor = {"image_processor_type": "MobileViTImageProcessor"}
        (directory / "preprocessor_config.json").write_text(json.dumps(processor))
        return import_checkpoint(directory, self._settings, self._registry).version


@pytest.fixture(scope="module")
def versions(folder: Path, settings: Settings, registry: CheckpointRegistry) -> Versions:
    return Versions(folder, settings, registry)


def network_of(registry: CheckpointRegistry, version: int) -> SegmentationNetwork:
    return load_version(registry, version, CPU)[0]


TRANSFORMERS_ALONE = """
import json
import torch
from pathlib import Path
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoImageProcessor
from transformers import AutoModelForSemanticSegmentation, AutoModelForUniversalSegmentation

torch.set_num_threads(1)
frame = load_file("frame.safetensors")["frame"]
for folder in sorted(Path("out").iterdir()):
    processor = json.loads((folder / "preprocessor_config.json").read_text())
    mean, std = (torch.tensor(processor[key]).view(3, 1, 1) for key in ("image_mean", "image_std"))
    pixels = (frame.permute(2, 0, 1) * processor["rescale_factor"] - mean) / std
    if processor["do_flip_channel_order"]:
        pixels = pixels.flip(0)
    kind = AutoConfig.from_pretrained(folder).model_type
    queries = kind in ("mask2former", "maskformer", "oneformer", "eomt", "eomt_dinov3")
    auto = AutoModelForUniversalSegmentation if queries else AutoModelForSemanticSegmentation
    model, report = auto.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"], (folder, report)
    assert model.config.id2label[0] == "sky", model.config.id2label
    with torch.no_grad():
        task = torch.tensor([[49406, 518, 10549, 533, 29119, 1550, 49407] + [0] * 70])
        inputs = {"task_inputs": task} if kind == "oneformer" else {}
        answer, size = model.eval()(pixels[None], **inputs), tuple(frame.shape[:2])
    if queries:  # the processor of the folder itself makes a map of the queries
        post_process = AutoImageProcessor.from_pretrained(folder).post_process_semantic_segmentation
        (found,) = post_process(answer, target_sizes=[size], return_segmentation_scores=True)
        logits = found.segmentation_scores[None].clamp(min=1e-20).log()
    else:
        logits = torch.nn.functional.interpolate(answer.logits, size, mode="bilinear", align_corners=False)
    save_file({"logits": logits}, f"{folder.name}.logits")
"""
WITHOUT_US = """
import sys
ours = {name for name in sys.modules if name.split(".")[0] in ("adapters", "configs", "storage", "daemon")}
assert not ours, ours
"""


def here(folder: Path) -> None:
    """In this process."""
    with contextlib.chdir(folder):
        exec(TRANSFORMERS_ALONE, {})


def without_us(folder: Path) -> None:
    """In a process without mfmd, as every test of the exports that a daemon publishes reads them."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", TRANSFORMERS_ALONE + WITHOUT_US],
        cwd=folder, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize(
    ("names", "read"),
    [
        (("segformer", "mobilevit"), here),
        pytest.param(tuple(MODELS), without_us, marks=[pytest.mark.nightly, NEEDS_SCIPY]),
    ],
    ids=["two", "all"],
)
def test_transformers_alone_gives_our_logits(
    names: tuple[str, ...],
    read: Callable[[Path], None],
    versions: Versions,
    registry: CheckpointRegistry,
    tmp_path: Path,
) -> None:
    """From bytes of an image to logits at its size."""
    from adapters.networks.network import normalise

    frame = torch.randint(0, 256, (96, 96, 3), dtype=torch.uint8)
    save_file({"frame": frame}, tmp_path / "frame.safetensors")
    for name in names:
        export_version(registry, versions[name], "huggingface", tmp_path / "out" / name)
    read(tmp_path)
    for name in names:
        with torch.no_grad():
            expected = network_of(registry, versions[name])(normalise(frame[None]))
        found = load_file(tmp_path / f"{name}.logits")["logits"]
        atol = 1e-5 * max(10.0, float(expected.abs().max()))
        torch.testing.assert_close(found, expected, atol=atol, rtol=1e-3, msg=lambda text, name=name: f"{name}: {text}")


def test_export_and_import_is_a_round_trip(
    versions: Versions, settings: Settings, registry: CheckpointRegistry, tmp_path: Path
) -> None:
    files = export_version(registry, versions["beit"], "huggingface", tmp_path / "out")
    assert files == ["config.json", "mfmd.json", "model.safetensors", "preprocessor_config.json"]
    again = import_checkpoint(tmp_path / "out", settings, registry).version
    before, after = (load_file(registry.weights_path(version)) for version in (versions["beit"], again))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_description_names_classes_and_pixels(
    versions: Versions, settings: Settings, registry: CheckpointRegistry, tmp_path: Path
) -> None:
    export_version(registry, versions["segformer"], "huggingface", tmp_path / "out")
    found = json.loads((tmp_path / "out" / "mfmd.json").read_text())
    assert found["classes"] == [entry.name for entry in settings.classes]
    assert (found["version"], found["size"]) == (versions["segformer"], [64, 96])
    assert (found["fit"], found["resample"]) == ("aspect", "bilinear")
    processor = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
    assert processor["size"] == {"height": 64, "width": 96}
    manifest = registry.manifest(versions["segformer"])
    squashed = manifest.model_copy(update={"version": 0, "input_fit": "squash", "input_resample": "bicubic"})
    again = registry.add(registry.weights_path(manifest.version), squashed, by="test").version
    export_version(registry, again, "huggingface", tmp_path / "squashed")
    found = json.loads((tmp_path / "squashed" / "mfmd.json").read_text())
    assert (found["fit"], found["resample"]) == ("squash", "bicubic")
    assert json.loads((tmp_path / "squashed" / "preprocessor_config.json").read_text())["resample"] == 3


def in_torch_export(folder: Path, images: Tensor) -> Tensor:
    program = torch.export.load(folder / "model.pt2")
    logits: Tensor = program.module()(images)
    return logits


def in_onnx(folder: Path, images: Tensor) -> Tensor:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(folder / "model.onnx", options)
    return torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


RUNNERS = {"torch-export": in_torch_export, "onnx": in_onnx}
ONCE = [("hrda", "torch-export"), ("deeplabv2", "onnx")]
"""Each program once; the second has free sizes, the first has not."""


@pytest.mark.parametrize(
    ("name", "form"),
    [
        pytest.param(
            name,
            form,
            marks=[NEEDS_SCIPY] * (name in MASKS) + [pytest.mark.nightly] * ((name, form) not in ONCE),
        )
        for name in (*NATIVE, "beit", "segformer", "mask2former", "eomt", "eomt_dinov3")
        for form in RUNNERS
        if (name, form) != ("segformer", "torch-export")
    ],
)
def test_programs_give_our_logits_at_other_sizes(
    name: str, form: Format, versions: Versions, registry: CheckpointRegistry, tmp_path: Path
) -> None:
    network = network_of(registry, versions[name])
    sizes = [(1, 64, 96), (3, 64, 96)]
    fixed = name in ("beit", "hrda", *MASKS)
    if not fixed:
        sizes += [(1, 98, 70), (2, 224, 224)]  # no multiple of most strides; all patches of DINOv2's own image size
    export_version(registry, versions[name], form, tmp_path / form)
    described = json.loads((tmp_path / form / "mfmd.json").read_text())["free_dimensions"]
    assert described == (["batch"] if fixed else ["batch", "height", "width"])
    for batch, height, width in sizes:
        images = torch.randn(batch, 3, height, width)
        with torch.no_grad():
            expected = network(images)
        found = RUNNERS[form](tmp_path / form, images)
        if name in MASKS:  # attention stops where a mask crosses zero: rounding alone moves some pixels
            assert (found.argmax(1) != expected.argmax(1)).float().mean() < 0.02
        else:
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    "names",
    [
        ("segformer", "beit", "hrda", "deeplabv2"),
        pytest.param((*NATIVE, *MODELS), marks=[pytest.mark.nightly, NEEDS_SCIPY]),
    ],
    ids=["few", "all"],
)
def test_free_dimensions_follow_the_kind(
    names: tuple[str, ...], versions: Versions, registry: CheckpointRegistry
) -> None:
    free = {
        name: free_dimensions(Architecture.model_validate(registry.manifest(versions[name]).network)) for name in names
    }
    fixed = {
        "hrda",
        "beit",
        "beit_shared",
        "data2vec",
        "dpt",
        "mobilenetv2",
        "mobilevit",
        "mobilevitv2",
        "sapiens",
        "tips",
        "upernet_swin",
        *MASKS,
    }
    assert {name for name, dimensions in free.items() if dimensions == ("batch",)} == fixed & free.keys()


def test_networks_without_a_class_in_transformers_are_refused(
    versions: Versions, registry: CheckpointRegistry, tmp_path: Path
) -> None:
    with pytest.raises(ExportRefused, match=r"deeplabv2 network.*torch-export.*onnx"):
        export_version(registry, versions["deeplabv2"], "huggingface", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_already_is_kept(versions: Versions, registry: CheckpointRegistry, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for target, reason in (("full", "holds files already"), ("file", "is a file")):
        with pytest.raises(ExportRefused, match=reason):
            export_version(registry, versions["segformer"], "huggingface", tmp_path / target)
    assert (tmp_path / "full" / "notes.txt").read_text() == (tmp_path / "file").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    assert export_version(registry, versions["segformer"], "huggingface", tmp_path / "empty")


def test_unknown_version_is_refused(registry: CheckpointRegistry, tmp_path: Path) -> None:
    with pytest.raises(UnknownVersion, match="99"):
        export_version(registry, 99, "huggingface", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_failed_export_leaves_nothing(
    versions: Versions, registry: CheckpointRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(network: object, manifest: object, folder: Path) -> tuple[str, ...]:
        (folder / "half").write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setitem(exporting._WRITERS, "huggingface", fail)
    with pytest.raises(OSError, match="no space"):
        export_version(registry, versions["segformer"], "huggingface", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_killed_export_leaves_nothing_at_the_target(
    versions: Versions, registry: CheckpointRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(network: object, manifest: object, folder: Path) -> tuple[str, ...]:
        (folder / "model.safetensors").write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
        return ()

    monkeypatch.setitem(exporting._WRITERS, "huggingface", die)
    child = os.fork()
    if child == 0:
        export_version(registry, versions["segformer"], "huggingface", tmp_path / "out")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    assert export_version(registry, versions["segformer"], "huggingface", tmp_path / "out"), "and the next one works"
