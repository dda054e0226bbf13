"""The parts of the demo around the daemon: scores, report, picture, driving."""

import json
import os
import signal
import subprocess
import sys
import time
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from rich.console import Console

from configs.class_list import ClassInfo
from configs.load import load_settings
from daemon.demo.driving import DriveFailed, DrivenDaemon, DriveTimeout
from daemon.demo.report import CELL, GAP, HEADER, MARGIN, DemoReport, Step, side_by_side, stage
from daemon.demo.scoring import Pair, ServedScore
from daemon.demo.story import BATCHES
from daemon.exit_codes import ExitCode
from storage.rounds.verdict import Verdict

CLASSES = (ClassInfo(name="sky", color=(0, 0, 255)), ClassInfo(name="road", color=(128, 64, 128)))


def score(version: int, *iou: float) -> ServedScore:
    """A score whose only mask has the class `version` - 1 everywhere."""
    return ServedScore(version, np.array(iou), (np.full((4, 6), version - 1, np.uint8),))


def verdict(decision: str) -> Verdict:
    return Verdict.model_validate({"round": 1, "decision": decision, "reason": "because", "checks": [], "at": 0.0})


def test_miou_leaves_out_classes_that_are_nowhere() -> None:
    assert score(1, 0.5, np.nan).miou == 0.5


@pytest.mark.parametrize(
    ("decision", "after", "passed"),
    [("accepted", 0.56, True), ("accepted", 0.54, False), ("inconclusive", 0.56, False), ("rejected", 0.5, False)],
)
def test_the_demo_passes_only_with_a_promotion_and_five_points(decision: str, after: float, passed: bool) -> None:
    steps = [Step(None, score(1, 0.5, 0.5), 60.0), Step(verdict(decision), score(2, after, after), 120.0)]
    report = DemoReport(steps, CLASSES)
    assert report.passed is passed
    assert report.rise == pytest.approx(after - 0.5)


def test_the_report_is_written_and_printed(tmp_path: Path) -> None:
    image, label = tmp_path / "image.png", tmp_path / "label.png"
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(image)
    Image.fromarray(np.zeros((4, 6), np.uint8)).save(label)
    steps = [Step(None, score(1, 0.4, 0.5), 60.0), Step(verdict("accepted"), score(2, 0.6, 0.7), 125.0)]
    report = DemoReport(steps, CLASSES)
    picture = report.write(tmp_path / "out", [Pair(image, label)])
    with Image.open(picture) as sheet:
        assert sheet.width > 4 * 200
    written = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [step["miou"] for step in written["steps"]] == pytest.approx([0.45, 0.65])
    console = Console(width=120, record=True, file=(tmp_path / "printed").open("w"))
    report.print(console)
    text = console.export_text()
    assert "round 1 accepted: because" in text
    assert "+20.0" in text
    assert "2:05" in text
    console.file.close()


def test_the_picture_shows_image_before_after_and_truth_in_class_colours(tmp_path: Path) -> None:
    pair = Pair(tmp_path / "image.png", tmp_path / "label.png")
    Image.fromarray(np.full((4, 6, 3), 200, np.uint8)).save(pair.image)
    Image.fromarray(np.full((4, 6), 255, np.uint8)).save(pair.label)
    sheet = side_by_side([pair], score(1, 0.5), score(2, 0.5), [0, 0], ("a", "b", "c", "d"), CLASSES)
    height = CELL * 4 // 6
    centers = [MARGIN + column * (CELL + GAP) + CELL // 2 for column in range(4)]
    for number in range(2):
        y = MARGIN + HEADER + number * (height + GAP) + height // 2
        colors = [sheet.getpixel((x, y)) for x in centers]
        assert colors == [(200, 200, 200), (0, 0, 255), (128, 64, 128), (0, 0, 0)]


def test_stages_are_lines_where_there_is_no_terminal(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as file, stage(Console(file=file), "Train") as show:
        show("loss 2.0")
        show("loss 1.0")
    assert (tmp_path / "log").read_text() == "Train: loss 1.0 (0 s)\n"


@pytest.fixture
def driven(tmp_path: Path) -> DrivenDaemon:
    config = tmp_path / "mfmd.yaml"
    config.write_text(yaml.safe_dump({"classes": "demo", "watch": {"folder": "drop"}, "control": {"port": 0}}))
    return DrivenDaemon(config)


def test_a_driven_daemon_obeys_only_its_file_but_for_the_log(driven: DrivenDaemon, monkeypatch) -> None:
    monkeypatch.setenv("MFMD_WATCH__FOLDER", "/elsewhere")
    monkeypatch.setenv("MFMD_LOG__LEVEL", "debug")
    done = driven.run_command("config", "show")
    shown = yaml.safe_load(done.stdout)
    assert done.returncode == 0, done.stderr
    assert shown["watch"]["folder"] == str(driven.settings.watch.folder)
    assert shown["log"]["level"] == "debug"


def test_a_daemon_that_ends_is_noticed_at_once_and_its_log_shown(driven: DrivenDaemon) -> None:
    start = time.monotonic()
    with driven, pytest.raises(DriveFailed, match=r"(?s)status 5.*version 1 served.*mfmd import"):
        driven.wait_until_serving(1, 60)
    assert time.monotonic() - start < 50


def test_waiting_ends_at_its_deadline(driven: DrivenDaemon) -> None:
    with pytest.raises(DriveTimeout, match="for a miracle"):
        driven.wait_for(lambda: None, "a miracle", 0.3)


def test_nothing_serves_before_the_start(driven: DrivenDaemon) -> None:
    assert driven.url("serve") is None
    assert driven.served_version() is None
    assert driven.committed() == 0
    assert driven.round(1) is None
    assert driven.stop() is None


def test_the_preset_fits_the_story() -> None:
    preset = str(resources.files("configs") / "presets" / "demo.yaml")
    settings = load_settings(Path(preset))
    frames = BATCHES * settings.schedule.new_frames
    assert frames <= settings.buffer.capacity_frames, "frames would be evicted between rounds"
    assert settings.buffer.holdout_fraction * settings.schedule.new_frames > 2 * settings.gate.advanced.min_holdout
    assert settings.serving.port == settings.control.port == 0


def test_sigterm_removes_the_state_and_ends_with_130(tmp_path: Path) -> None:
    demo = subprocess.Popen(
        [sys.executable, "-m", "daemon.cli", "demo", "--out", str(tmp_path / "out")],
        env=os.environ | {"TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("mfmd-demo-*/source/images/*.png")):
        assert demo.poll() is None, demo.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    demo.send_signal(signal.SIGTERM)
    output, _ = demo.communicate(timeout=60)
    assert demo.returncode == ExitCode.INTERRUPTED, output
    assert "Interrupted" in output
    assert "Traceback" not in output
    assert not list(tmp_path.glob("mfmd-demo-*"))
    assert not (tmp_path / "out").exists()
