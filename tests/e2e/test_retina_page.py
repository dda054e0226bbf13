"""The page "Retina photographs" holds: labelled ones of a camera, twenty of another, a daemon and a judged round."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image, ImageDraw

from daemon.cli import main
from daemon.demo.driving import DrivenDaemon

SIDE = 64
TINY = {
    "buffer": {"height": SIDE, "width": SIDE, "reserve_bytes": 0, "advanced": {"tile": 64}},
    "network": {"encoder": "unet_tiny"},
    "pretrain": {"steps": 30, "batch_size": 4, "crop_height": 48, "crop_width": 48},
    "mfm": {"ablation": {"dim": 16, "heads": 4, "blocks": 1}},
    "round": {
        "steps": 2, "batch_size": 2, "crop_height": 48, "crop_width": 48, "device": "cpu",
        "advanced": {"threads": 1, "average_ratios": []},
    },
    "watch": {"stability_seconds": 0.1, "advanced": {"rescan_seconds": 0.5}},
    "observe": {"enabled": False},
    "serving": {"enabled": False},
    "control": {"port": 0},
}  # fmt: skip
"""What makes the written configuration fast enough for a test."""


def photographs(folder: Path, count: int, disc: tuple[int, int, int], *, labelled: bool) -> list[Path]:
    """Draw lines on a disc: dark ones on a disc of that colour; their label beside it when asked for."""
    random, found = np.random.default_rng(count + disc[0]), []
    for number in range(count):
        image, label = Image.new("RGB", (SIDE, SIDE)), Image.new("L", (SIDE, SIDE))
        draw = ImageDraw.Draw(image)
        draw.ellipse((2, 2, SIDE - 3, SIDE - 3), fill=disc)
        for _ in range(6):
            points = [*map(float, random.uniform(12, SIDE - 12, 4))]
            draw.line(points, fill=(disc[0] // 2, disc[1] // 3, disc[2] // 2), width=2)
            ImageDraw.Draw(label).line(points, fill=1, width=2)
        found.append(folder / "images" / f"{number:02d}.png")
        for kind, picture in (("images", image), ("labels", label))[: 1 + labelled]:
            (folder / kind).mkdir(parents=True, exist_ok=True)
            noise = random.integers(0, 9, (SIDE, SIDE, 1)) if kind == "images" else 0
            pixels = (np.asarray(picture).astype(int) + noise).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / kind / f"{number:02d}.png")
    return found


def merged(values: dict, changes: dict) -> dict:
    """Return `values` with `changes` in its sections."""
    nested = {key: merged(values.get(key, {}), change) for key, change in changes.items() if isinstance(change, dict)}
    return {**values, **changes, **nested}


@pytest.mark.disk
def test_twenty_photographs_of_another_camera_get_a_judged_round(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for part, count in (("train", 6), ("validation", 4)):
        photographs(tmp_path / "fundus" / part, count, (200, 110, 60), labelled=True)
    camera = photographs(tmp_path / "camera", 20, (230, 160, 90), labelled=False)
    config = tmp_path / "mfmd.yaml"
    written = ["--config", str(config)]
    assert main(["init", str(tmp_path / "drop"), "--preset", "fundus", *written]) == 0
    said = capsys.readouterr().out
    assert "background, vessel" in said and "then mfmd pretrain" in said
    settings = merged(yaml.safe_load(config.read_text(encoding="utf-8")), TINY)
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    assert main(["pretrain", *written]) == 0
    assert main(["checkpoints", "show", "1", *written]) == 0
    assert "source_iou_vessel" in capsys.readouterr().out
    with DrivenDaemon(config) as driven:
        driven.drop(camera[:8])
        driven.wait_until_committed(8, 60)
        assert main(["adapt", *written]) == 1
        refused = capsys.readouterr().err
        assert "schedule.min_frames is 12" in refused and "drop more images" in refused
        driven.drop(camera[8:])
        verdict = driven.follow_round(1, 120)
    judged = {check.name for check in verdict.checks}  # with how many votes depends on how alike the frames are
    assert judged >= {"completed", "vanished_class", "source_class_iou", "holdout_bursts"}, verdict.reason
    scores = driven.rounds.folder(1).scores()
    assert scores is not None and scores.candidate is not None and len(scores.candidate.area) >= 4
