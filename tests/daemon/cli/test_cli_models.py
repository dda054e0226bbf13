"""`mfmd pretrain`, `import`, `predict` and `evaluate` with a real, tiny network."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs.load import load_settings
from daemon.cli import main
from daemon.exit_codes import ExitCode
from storage.buffer.catalog_records import FileFact
from storage.buffer.frames import FrameBuffer, NewFrame
from storage.layout import StateLayout
from storage.media.images import fit_frame
from storage.registry.registry import CheckpointRegistry

CONFIG = """\
classes: demo
watch: {folder: drop}
source: {images: day, labels: truth}
buffer: {height: 48, width: 64, capacity_frames: 32, reserve_bytes: 0, advanced: {tile: 32}}
network: {name: deeplabv3plus, encoder: resnet_tiny, channels: 16}
pretrain: {steps: 3, batch_size: 2, crop_height: 32, crop_width: 32}
round: {device: cpu, advanced: {threads: 1}}
serving: {port: 0, device: cpu, threads: 1}
"""
SIZE = (60, 80)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose configuration was pretrained by the command; its registry holds version 1."""
    folder = tmp_path_factory.mktemp("trained")
    config = folder / "mfmd.yaml"
    config.write_text(CONFIG, encoding="utf-8")
    random = np.random.default_rng(0)
    for name in ("day", "truth", "drop"):
        (folder / name).mkdir()
    for number in range(12):
        labels = random.integers(0, 8, SIZE, dtype=np.uint8)
        pixels = np.repeat(labels[:, :, None] * 30, 3, axis=2)
        Image.fromarray(pixels).save(folder / "day" / f"{number}.png")
        Image.fromarray(labels).save(folder / "truth" / f"{number}.png")
    assert main(["pretrain", "--config", str(config), "--json"]) == ExitCode.OK
    return folder


@pytest.fixture
def in_folder(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The trained folder as working directory."""
    monkeypatch.chdir(trained)
    yield trained


def _run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_pretrain_releases_version_1(in_folder: Path) -> None:
    registry = CheckpointRegistry(StateLayout(load_settings(in_folder / "mfmd.yaml").state).checkpoints)
    serving = registry.serving()
    assert serving is not None and (serving.version, serving.by) == (1, "pretrain")
    assert 0.0 <= registry.manifest(1).scores["source_miou"] <= 1.0


def test_pretrain_tells_what_labels_hold_before_it_trains(in_folder: Path, tmp_path: Path, capsys) -> None:
    config = tmp_path / "mfmd.yaml"
    config.write_text(CONFIG.replace("day", str(in_folder / "day")).replace("steps: 3", "steps: 1"), encoding="utf-8")
    (tmp_path / "truth").mkdir()
    for number in range(12):
        Image.fromarray(np.resize(np.array([1, 2, 255], np.uint8), SIZE)).save(tmp_path / "truth" / f"{number}.png")
    code, out, err = _run(capsys, "pretrain", "--config", str(config))
    table, lines = err.partition("training")[0], out.splitlines()
    assert code == ExitCode.OK and lines[0].split() == ["value", "share", "class"]
    assert lines[1].split() == ["-", "0.00", "%", "sky"] and "1  33.33 %  building" in out
    assert "warning: no label holds a pixel of sky, road" in table
    code, out, err = _run(capsys, "pretrain", "--config", str(config), "--json")
    told = json.loads(out)
    assert {"value": "1", "class": "building", "pixels": 12 * 1600} in told["labels"] and len(told["warnings"]) == 1
    Image.fromarray(np.full(SIZE, 9, np.uint8)).save(tmp_path / "truth" / "7.png")
    code, out, err = _run(capsys, "pretrain", "--config", str(config))
    assert code == ExitCode.FAILURE and "7.png: label value 9 at row 0, column 0" in err and "training" not in err


def test_predict_writes_masks_of_the_images_own_size(in_folder: Path, tmp_path: Path, capsys) -> None:
    code, out, _ = _run(capsys, "predict", "day/1.png", "day/2.png", "--out", str(tmp_path), "--json")
    answers = json.loads(out)
    assert code == ExitCode.OK and [answer["version"] for answer in answers] == [1, 1]
    for answer in answers:
        index = np.asarray(Image.open(answer["index"]))
        assert index.shape == SIZE and index.max() < 8
        assert np.asarray(Image.open(answer["color"])).shape == (*SIZE, 3)


def test_predict_skips_what_is_no_image_and_says_so(in_folder: Path, tmp_path: Path, capsys) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no image")
    code, out, err = _run(capsys, "predict", str(bad), "day/1.png", "--out", str(tmp_path / "masks"))
    assert code == ExitCode.FAILURE
    assert "bad.jpg: skipped: not_an_image" in err and "day/1.png -> " in out
    assert (tmp_path / "masks" / "1.png").exists()


def test_evaluate_tells_the_iou_of_each_class(in_folder: Path, capsys) -> None:
    code, out, _ = _run(capsys, "evaluate", "--images", "day", "--labels", "truth", "--checkpoint", "1", "--json")
    result = json.loads(out)
    assert code == ExitCode.OK and result["images"] == 12 and result["version"] == 1
    present = [value for value in result["iou"].values() if value is not None]
    assert result["miou"] == pytest.approx(float(np.mean(present)))
    code, out, _ = _run(capsys, "evaluate", "--images", "day", "--labels", "truth")
    assert code == ExitCode.OK and "building" in out and "mIoU" in out


def test_unknown_version_is_exit_5(in_folder: Path, tmp_path: Path, capsys) -> None:
    code, _, err = _run(capsys, "predict", "day/1.png", "--out", str(tmp_path), "--checkpoint", "9")
    assert code == ExitCode.NO_CHECKPOINT and "error[version_unknown]: no version 9" in err


def test_import_adds_a_version_that_does_not_push_the_serving_one_out(in_folder: Path, tmp_path: Path, capsys) -> None:
    registry = CheckpointRegistry(StateLayout(load_settings(in_folder / "mfmd.yaml").state).checkpoints)
    code, out, err = _run(capsys, "import", str(registry.weights_path(1)))
    number = registry.versions()[-1]
    assert code == ExitCode.OK, err
    assert f"Version {number}" in out and f"mfmd promote {number}" in out
    serving = registry.serving()
    assert serving is not None and serving.version == 1
    wrong = tmp_path / "weights.pt"
    wrong.write_bytes(b"pickle")
    code, _, err = _run(capsys, "import", str(wrong))
    assert code == ExitCode.FAILURE and "error[unsupported_model]" in err and "safetensors" in err


def test_export_refuses_what_it_cannot_do_and_says_what_it_can(in_folder: Path, tmp_path: Path, capsys) -> None:
    code, _, err = _run(capsys, "export", "--format", "huggingface", "--out", str(tmp_path / "out"))
    assert code == ExitCode.FAILURE and "error[export_refused]" in err and "--format torch-export" in err
    code, _, err = _run(capsys, "export", "99", "--format", "torch-export", "--out", str(tmp_path / "out"))
    assert code == ExitCode.NO_CHECKPOINT and "no version 99" in err
    code, _, err = _run(capsys, "export", "1", "--format", "tensorflow", "--out", str(tmp_path / "out"))
    assert code == ExitCode.USAGE and "tensorflow" in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.nightly
def test_exported_program_labels_as_predict_does(in_folder: Path, tmp_path: Path, capsys) -> None:
    import torch

    code, out, err = _run(capsys, "export", "1", "--format", "torch-export", "--out", str(tmp_path / "out"), "--json")
    assert code == ExitCode.OK, err
    assert json.loads(out)["files"] == ["mfmd.json", "model.pt2"]
    about = json.loads((tmp_path / "out" / "mfmd.json").read_text())
    pixels = np.asarray(Image.open("day/1.png").resize(about["size"][::-1]), np.float32) / 255
    images = torch.from_numpy((pixels - about["mean"]) / about["std"]).float().permute(2, 0, 1)[None]
    logits = torch.export.load(tmp_path / "out" / "model.pt2").module()(images)
    assert logits.shape == (1, 8, 48, 64)
    assert _run(capsys, "predict", "day/1.png", "--out", str(tmp_path / "masks"))[0] == ExitCode.OK
    ours = np.asarray(Image.open(tmp_path / "masks" / "1.png").resize((64, 48), Image.Resampling.NEAREST))
    assert (logits.argmax(1)[0].numpy() == ours).mean() > 0.9


def test_pretrain_names_a_bad_label(in_folder: Path, tmp_path: Path, capsys) -> None:
    config = tmp_path / "mfmd.yaml"
    config.write_text(CONFIG.replace("day", str(in_folder / "day")), encoding="utf-8")
    (tmp_path / "truth").mkdir()
    for number in range(12):
        Image.fromarray(np.full(SIZE, 77, np.uint8)).save(tmp_path / "truth" / f"{number}.png")
    code, _, err = _run(capsys, "pretrain", "--config", str(config))
    assert code == ExitCode.FAILURE and "77" in err and "truth" in err and "Traceback" not in err


def test_pretrain_without_source_says_what_to_do(tmp_path: Path, capsys) -> None:
    config = tmp_path / "mfmd.yaml"
    config.write_text("classes: demo\nwatch: {folder: drop}\n", encoding="utf-8")
    code, _, err = _run(capsys, "pretrain", "--config", str(config))
    assert code == ExitCode.USAGE and "source" in err and "mfmd import" in err
    for command in (["predict", "x.png", "--out", "o"], ["evaluate", "--images", str(tmp_path), "--labels", "y"]):
        code, _, err = _run(capsys, *command, "--config", str(config))
        assert code == ExitCode.NO_CHECKPOINT and "mfmd pretrain" in err, command


@pytest.mark.parametrize("place", ["drop", "drop/masks", "day", "truth/x", "state"])
def test_no_command_writes_where_images_are_read(in_folder: Path, capsys, place: str) -> None:
    for command in (["predict", "day/1.png"], ["export", "--format", "onnx"], ["buffer", "export"]):
        out = [place] if command[0] == "buffer" else ["--out", place]
        code, _, err = _run(capsys, *command, *out)
        assert code == ExitCode.FAILURE and err.startswith(f"error[export_refused]: {place} lies in ")


def test_canary_from_suggestion_to_count(in_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Frames of the buffer are suggested, corrected, added and listed."""
    settings = load_settings(in_folder / "mfmd.yaml")
    code, out, _ = _run(capsys, "canary", "list")
    assert code == ExitCode.OK and "0 canary images count: they can only veto; 5 more decide" in out
    with FrameBuffer.open(StateLayout(settings.state), settings.buffer, writable=True) as buffer:
        for number in range(6):
            pixels = np.full((48, 64, 3), 40 * number, np.uint8)
            fitted = fit_frame(pixels, 48, 64)
            buffer.append([NewFrame(FileFact(f"{number}.png", 1, 1), f"{number:064x}", 1.0, 48, 64, fitted)])
    code, out, error = _run(capsys, "canary", "suggest", "5", "--out", "labels")
    assert code == ExitCode.OK and "5 frames in labels" in out, error
    code, _, error = _run(capsys, "canary", "add", "labels")
    assert code == ExitCode.OK and error.count("the mask is as it was suggested") == 5
    for mask in sorted((in_folder / "labels" / "masks").iterdir()):
        with Image.open(mask) as image:
            drawn, palette = np.array(image), image.getpalette()
        drawn[:9], drawn[9:20] = 3, 4
        corrected = Image.fromarray(drawn, "P")
        corrected.putpalette(palette)
        corrected.save(mask)
    code, out, _ = _run(capsys, "canary", "add", "labels")
    assert code == ExitCode.OK and "value" in out and "5 canary images added. 5 canary images count: they decide" in out
    code, out, _ = _run(capsys, "canary", "list", "--json")
    assert json.loads(out)["count"] == 5
    code, out, _ = _run(capsys, "canary", "suggest", "9", "--out", "more", "--json")
    assert len(json.loads(out)["picks"]) == 1, "what is a canary image already is not suggested"
    code, _, error = _run(capsys, "canary", "suggest", "1", "--out", "labels")
    assert code == ExitCode.FAILURE and "not an empty folder" in error
