"""The Hugging Face mirror with a real network, exported by real children, and a reader that has transformers alone."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from adapters.checkpoints.importing import import_checkpoint
from configs.settings import Settings
from daemon.gate import moves
from daemon.metrics import Metrics
from daemon.publishing.publisher import Publisher
from daemon.runtime.backoff import Backoff
from daemon.serving.plane import InferencePlane
from storage.layout import StateLayout
from storage.registry.registry import CheckpointRegistry
from tests.adapters.tiny_models import model

PATIENCE = 170.0
"""Longest wait for a real export and a reader (seconds): several times what a busy machine needs."""
READER = """
import json, sys, time
from pathlib import Path
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

torch.set_num_threads(1)
mirror, seen = Path("mirror"), Path("seen.jsonl")
image = Image.open("image.png")
while not Path("stop").exists():
    if not (mirror / "current").is_symlink():
        time.sleep(0.01)
        continue
    folder = (mirror / "current").resolve()
    model, report = AutoModelForSemanticSegmentation.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"], (folder, report)
    processor = AutoImageProcessor.from_pretrained(folder)
    with torch.no_grad():
        answer = model.eval()(**processor(image, return_tensors="pt"))
    [labels] = processor.post_process_semantic_segmentation(answer, target_sizes=[(image.height, image.width)])
    with seen.open("a") as file:
        file.write(json.dumps([int(folder.name), model.config.id2label[0], labels.tolist()]) + "\\n")
ours = {name for name in sys.modules if name.split(".")[0] in ("adapters", "configs", "storage", "daemon")}
assert not ours, ours
"""


class Reader:
    """Another program that opens the mirror again and again, from before the first version to the end."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        self._log = (folder / "reader.log").open("w+")
        self.process = subprocess.Popen(
            [sys.executable, "-c", READER], cwd=folder, env=environment, stdout=self._log, stderr=self._log
        )

    def seen(self) -> list[tuple[int, str, np.ndarray]]:
        """Version, first class and labels of every time."""
        path = self._folder / "seen.jsonl"
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        return [(version, name, np.array(labels)) for version, name, labels in map(json.loads, lines)]

    def log(self) -> str:
        """What it said."""
        self._log.flush()
        return (self._folder / "reader.log").read_text()[-2000:]

    def stop(self) -> int:
        """Let it end; its status."""
        (self._folder / "stop").touch()
        try:
            return self.process.wait(60)
        finally:
            self.process.kill()
            self._log.close()


@pytest.fixture
def settings(make_settings: Callable[..., Settings], tmp_path: Path) -> Settings:
    torch.set_num_threads(1)
    return make_settings(publish={"huggingface": tmp_path / "mirror"})


@pytest.fixture
def publisher(
    settings: Settings, registry: CheckpointRegistry, layout: StateLayout, tmp_path: Path
) -> Iterator[Publisher]:
    config = tmp_path / "mfmd.yaml"
    config.write_text(yaml.safe_dump(settings.model_dump(mode="json", exclude_defaults=True)))
    made = Publisher(settings, config, registry, Metrics(settings).publish, Backoff(base=600.0, cap=600.0))
    yield made
    made.stop()


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    made = Reader(tmp_path)
    yield made
    assert made.stop() == 0, made.log()


def imported(settings: Settings, registry: CheckpointRegistry, folder: Path, seed: int) -> int:
    """A version of a tiny SegFormer with random weights."""
    model("segformer", seed).save_pretrained(folder / f"model{seed}")
    return import_checkpoint(folder / f"model{seed}", settings, registry).version


def served_labels(settings: Settings, registry: CheckpointRegistry, folder: Path) -> np.ndarray:
    """What an inference plane answers now."""
    plane = InferencePlane(settings)
    plane.follower.poll(0.0)
    plane.batcher.start()
    try:
        with plane.slots.lease() as resident:
            assert resident.version == registry.serving().version
            [answer] = plane.submit(resident, [np.asarray(Image.open(folder / "image.png"))])
            return answer.result(60)
    finally:
        plane.stop()


def test_a_promotion_is_exported_by_a_child(
    settings: Settings, registry: CheckpointRegistry, publisher: Publisher, tmp_path: Path
) -> None:
    version = imported(settings, registry, tmp_path, 1)
    registry.promote(version, by="import", reason="first")
    deadline = time.monotonic() + PATIENCE
    while publisher.states()[0].state != "current":
        publisher.step()
        assert time.monotonic() < deadline and publisher.states()[0].failures == 0, publisher.states()
        time.sleep(0.02)
    files = {path.name for path in (tmp_path / "mirror" / "current").iterdir()}
    assert {"config.json", "mfmd.json", "model.safetensors", "preprocessor_config.json"} <= files


@pytest.mark.nightly
def test_transformers_alone_gives_the_served_labels_through_promotions_and_a_rollback(
    settings: Settings, registry: CheckpointRegistry, publisher: Publisher, reader: Reader, tmp_path: Path
) -> None:
    versions = [imported(settings, registry, tmp_path, seed) for seed in (1, 2)]
    served: dict[int, np.ndarray] = {}

    def follows(version: int) -> None:
        """The mirror leads to what serves, and the reader finds that there."""
        served[version] = served_labels(settings, registry, tmp_path)
        deadline, before = time.monotonic() + PATIENCE, None
        while True:
            publisher.step()
            [state] = publisher.states()
            assert time.monotonic() < deadline and reader.process.poll() is None, (state, reader.log())
            assert state.failures == 0, state
            found = reader.seen()
            if state.state == "current" and state.version == version:
                before = len(found) if before is None else before
                if len(found) > before + 1:  # the last of these began after the mirror had moved
                    assert found[-1][0] == version
                    return
            time.sleep(0.02)

    registry.promote(versions[0], by="import", reason="first")
    follows(versions[0])
    registry.promote(versions[1], by="gate", reason="better")
    follows(versions[1])
    moves.roll_back(registry, to=None, by="operator", reason="worse")
    follows(versions[0])
    assert (tmp_path / "mirror" / str(versions[1])).is_dir(), "somebody may be reading it still"
    assert float(np.mean(served[versions[0]] == served[versions[1]])) < 0.9, "the versions differ"
    order = [version for version, _, _ in reader.seen()]
    assert [now for now, before in zip(order, [None, *order], strict=False) if now != before] == [1, 2, 1]
    for version, name, labels in reader.seen():
        assert name == "sky"
        assert float(np.mean(labels == served[version])) > 0.995, "labels of the folder's version, each time"
