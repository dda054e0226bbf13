"""Canary labels decide about a round whose frames are squashed: labels, frames and scores are of the same pixels."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from adapters.checkpoints.checkpoint import load_version
from adapters.inference.palette import class_map
from adapters.inference.segment import logits_of
from adapters.networks.network import normalise
from adapters.rounds.source_training import pretrain
from adapters.scoring.scores.counts import count_images
from daemon.demo.driving import DrivenDaemon
from daemon.gate.moves import release
from storage.buffer.frames import FrameBuffer
from storage.canary.images import IGNORED, CanaryImage, import_canary
from storage.media.images import Fit, fit_frame, fit_label
from tests.e2e.conftest import HEIGHT, SETTINGS, WIDTH

WIDE, FRAMES, LABELLED = 2 * WIDTH, 24, 6
SQUASHED = Fit("squash", "bicubic")
CHANGES = {
    "buffer": {"advanced": {"tile": 48, "fit": "squash", "resample": "bicubic"}},
    "pretrain": {"steps": 4},
    "round": {"steps": 2},
    "gate": {"policy": "canary"},
    "observe": {"enabled": False},
}
"""The models need not be good: what they are scored on is compared."""


def photographs(folder: Path, first: int, count: int) -> list[Path]:
    """Write coloured blocks, twice as wide as a frame is, and their labels."""
    colours = np.random.default_rng(0).integers(0, 256, (8, 3), np.uint8)
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        random = np.random.default_rng(number)
        label = np.kron(random.integers(0, 8, (8, 16), np.uint8), np.ones((HEIGHT // 8, WIDE // 16), np.uint8))
        noise = random.integers(0, 20, (HEIGHT, WIDE, 1))
        pixels = (colours[label] * 0.9 + noise).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
        Image.fromarray(label).save(folder / "labels" / f"{number}.png")
    return sorted((folder / "images").iterdir())


def made(folder: Path) -> DrivenDaemon:
    """A daemon, not started yet: labelled source, six canary images that the camera sends too, a first version."""
    photographs(folder / "source", 100, 12)
    photographs(folder / "known", 0, LABELLED)
    values = SETTINGS | {"canary": {kind: f"known/{kind}" for kind in ("images", "labels")}}
    values |= {name: SETTINGS.get(name, {}) | section for name, section in CHANGES.items()}
    (folder / "mfmd.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    driven = DrivenDaemon(folder / "mfmd.yaml")
    release(driven.registry, pretrain(driven.settings).version, "pretrain", "test")
    return driven


def expected(folder: Path, image: CanaryImage) -> tuple[np.ndarray, np.ndarray]:
    """The frame of a photograph, and its label as the same squash makes it."""
    name = Path(image.name).with_suffix(".png").name
    pixels, label = (np.asarray(Image.open(folder / kind / name)) for kind in ("images", "labels"))
    frame = fit_frame(pixels, HEIGHT, WIDTH, SQUASHED).pixels
    return frame, fit_label(label, HEIGHT, WIDTH, IGNORED, SQUASHED)


def counted(driven: DrivenDaemon, images: list[CanaryImage]) -> np.ndarray:
    """True positives of the first version on the images, [images, classes], computed here."""
    network = load_version(driven.registry, 1, torch.device("cpu"))[0]
    with torch.inference_mode():
        pairs = [
            (class_map(logits_of(network, normalise(torch.tensor(it.pixels)[None]))[0]), torch.tensor(it.label))
            for it in images
        ]
    return np.asarray(count_images(pairs, network.num_classes, IGNORED).tp)


@pytest.mark.nightly
@pytest.mark.disk
@pytest.mark.timeout(240)
def test_a_round_under_squash_is_judged_by_labels_of_the_same_pixels(tmp_path: Path) -> None:
    camera = photographs(tmp_path / "camera", 0, FRAMES)
    with made(tmp_path) as driven:
        driven.wait_until_serving(1, 90)
        driven.drop(camera)
        driven.wait_until_committed(FRAMES, 60)
        verdict = driven.follow_round(1, 120)
        images = import_canary(driven.settings, driven.layout)
        assert len(images) == LABELLED
        for image in images:
            frame, label = expected(tmp_path / "known", image)
            assert np.array_equal(image.pixels, frame) and np.array_equal(image.label, label)
        spec, scores = driven.rounds.folder(1).spec(), driven.rounds.folder(1).scores()
        assert len(spec.train_frames) + len(spec.holdout_frames) == FRAMES - LABELLED, "canary frames stay out"
        (check,) = [it for it in verdict.checks if it.name == "canary"]
        assert check.kind == "vote" and f"mIoU on {LABELLED} canary images" in check.detail
        assert np.array_equal(scores.incumbent.canary.tp, counted(driven, images))
        suggested(driven, tmp_path / "suggested")


def suggested(driven: DrivenDaemon, folder: Path) -> None:
    """What `mfmd canary suggest` writes is a stored frame, and stays one when it is added."""
    for words in (("suggest", "2", "--out", str(folder)), ("add", str(folder), "--unchanged")):
        done = driven.run_command("canary", *words)
        assert done.returncode == 0, done.stderr
    images = import_canary(driven.settings, driven.layout)
    with FrameBuffer.open(driven.layout, driven.settings.buffer, writable=False) as buffer:
        stored = {record.crc32 for record in buffer.records()}
    added = [image for image in images if image.name.startswith("added/")]
    assert len(images) == LABELLED + 2 and {image.crc32 for image in added} <= stored
    assert all(image.label.shape == (HEIGHT, WIDTH) for image in added)
