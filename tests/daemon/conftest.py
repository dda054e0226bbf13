"""What the tests of the daemon's core share: settings of a small state directory, images, a registered version."""

import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from safetensors.numpy import save_file

from configs.load import merge
from configs.settings import Settings
from daemon.ingest.worker import Ingest
from daemon.metrics import Metrics
from daemon.rounds import runner as rounds
from daemon.runtime.activity import Activity
from daemon.watch.events import Hints
from storage.buffer.frames import FrameBuffer
from storage.layout import StateLayout
from storage.registry.manifest import Manifest
from storage.registry.registry import CheckpointRegistry
from storage.rounds.folder import RoundStore
from tests.daemon.running import Running

PATIENCE = 20.0
"""Deadline of waits (seconds): far more than an idle machine needs."""
PRELUDE = (
    f"import sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r})"
    + """
import json, os, signal, sys, time
from pathlib import Path
from storage.rounds.folder import RoundFolder
from storage.rounds.records import Progress, RoundScores
folder = RoundFolder(Path(sys.argv[1]).parent)
def progress(step):
    at, losses = time.time(), {"mix": 0.5}
    found = {"kept_ratio": 0.25, "memory": {"resident": 7, "device": 5}}
    folder.append_progress(Progress(at=at, phase="training", step=step, steps=9, losses=losses, **found))
def scores(status, reason):
    folder.write_scores(RoundScores(status=status, reason=reason, steps=3, seconds=1.5))
def save(step):
    (folder.states.begin(step) / "state.json").write_text("{}")
    folder.states.publish(step)
"""
)
"""Programs in the place of `adapters.round` take its argument and write its files. The real one: test_run.py, e2e."""


@pytest.fixture
def wait_until() -> Callable[..., Any]:
    """Ask until the answer is true and return it; fail after a deadline."""

    def wait(condition: Callable[[], Any], seconds: float = PATIENCE, step: float = 0.01) -> Any:
        deadline = time.monotonic() + seconds
        while not (found := condition()):
            assert time.monotonic() < deadline, "what was waited for did not come in time"
            time.sleep(step)
        return found

    return wait


@pytest.fixture
def drop(tmp_path: Path) -> Path:
    folder = tmp_path / "drop"
    folder.mkdir()
    return folder


def small_settings(folder: Path, **sections: dict[str, Any]) -> Settings:
    """Settings of a small, fast state directory in `folder`; sections given replace single values of these."""
    values: dict[str, Any] = {
        "state": folder / "state",
        "classes": "demo",
        "watch": {
            "folder": folder / "drop", "stability_seconds": 0.1,
            "max_file_bytes": 300_000, "max_pixels": 100_000,
            "advanced": {"rescan_seconds": 0.2, "group_seconds": 0.05},
        },
        "buffer": {
            "height": 32, "width": 48, "capacity_frames": 64, "holdout_fraction": 0.3,
            "reserve_bytes": 0, "advanced": {"tile": 16},
        },
        "network": {"name": "deeplabv3plus", "encoder": "resnet_tiny", "channels": 16},
        "mfm": {"ablation": {"dim": 32, "heads": 4, "grid": 4, "blocks": 1}},
        "round": {
            "steps": 2, "batch_size": 1, "crop_height": 32, "crop_width": 32,
            "device": "cpu",
            "advanced": {"threads": 1, "score_images": 4, "average_ratios": [], "leave_out": []},  # noise
        },
        "schedule": {"enabled": False, "min_frames": 4},
        "gate": {"advanced": {"bootstrap": 50, "min_holdout": 1}},
        "control": {"port": 0},
        "serving": {"port": 0, "enabled": False, "threads": 1, "device": "cpu"},
        "observe": {"enabled": False},
        "videos": {"enabled": False},
    }  # fmt: skip
    for name, section in sections.items():
        values[name] = merge(values.get(name, {}), section)
    return Settings.model_validate(values)


@pytest.fixture
def make_settings(tmp_path: Path, drop: Path) -> Callable[..., Settings]:
    """Make `small_settings` in the test's folder, with a drop folder."""
    return partial(small_settings, tmp_path)


@pytest.fixture
def layout(tmp_path: Path) -> StateLayout:
    layout = StateLayout(tmp_path / "state")
    layout.create()
    return layout


@pytest.fixture
def registry(layout: StateLayout) -> CheckpointRegistry:
    return CheckpointRegistry(layout.checkpoints)


def add_small_version(registry: CheckpointRegistry, parent: int | None = None, *, promote: bool = True) -> int:
    """Register a version of a few numbers, and let it serve."""
    weights = registry.root.parent / "weights.safetensors"
    save_file({"weight": np.arange(4, dtype=np.float32)}, weights)
    manifest = Manifest(
        origin="pretrain" if parent is None else "round",
        parent=parent,
        created=1.0,
        network={"name": "deeplabv3plus", "encoder": "resnet_tiny"},  # loads no transformers
        classes=({"name": "road", "color": (1, 2, 3)},),
        input_height=32,
        input_width=48,
    )
    version = registry.add(weights, manifest, by="pretrain").version
    if promote:
        registry.promote(version, by="pretrain", reason="test")
    return version


@pytest.fixture
def add_version(registry: CheckpointRegistry) -> Callable[..., int]:
    """Add `add_small_version`s to the test's registry."""
    return partial(add_small_version, registry)


@pytest.fixture
def write_image() -> Callable[..., Path]:
    """Write an image whose content follows from its number."""

    def write(path: Path, number: int = 0, height: int = 24, width: int = 40) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(path)
        return path

    return write


class Bench:
    """Ingest on a buffer, stepped by the test instead of a thread."""

    def __init__(self, settings: Settings, layout: StateLayout) -> None:
        self.settings = settings
        self.metrics = Metrics(settings)
        self.buffer = FrameBuffer.open(layout, settings.buffer, writable=True)
        self.wakes = 0
        self.hints = Hints(self._wake)
        self.ingest = Ingest(settings, self.buffer, self.metrics.ingest, self.hints)

    def _wake(self) -> None:
        self.wakes += 1

    def until(self, condition: Callable[[], Any], seconds: float = PATIENCE) -> Any:
        """Step until `condition` holds."""
        deadline = time.monotonic() + seconds
        while not (found := condition()):
            assert time.monotonic() < deadline, f"not in time; {self.activity}"
            time.sleep(min(0.02, self.ingest.step()))
        return found

    @property
    def activity(self) -> Activity:
        """What folder and ingest do."""
        watch, ingest = self.ingest.activity
        return Activity(watch=watch, ingest=ingest)

    @property
    def counts(self) -> Any:
        """Counts of the catalog."""
        return self.buffer.catalog.counts()

    def value(self, name: str, **labels: str) -> float:
        """A sample of the metrics."""
        return self.metrics.registry.get_sample_value(name, labels) or 0.0

    def close(self) -> None:
        """Let go of folder and buffer."""
        self.ingest.close()
        self.buffer.close()


@pytest.fixture
def bench(make_settings: Callable[..., Settings], layout: StateLayout) -> Iterator[Callable[..., Bench]]:
    """Make benches; each is closed at the end."""
    opened: list[Bench] = []

    def make(**sections: dict[str, Any]) -> Bench:
        opened.append(Bench(make_settings(**sections), layout))
        return opened[-1]

    yield make
    for item in opened:
        item.close()


@pytest.fixture
def world(bench, drop, write_image, add_version):
    """A buffer of 8 frames, some held out, and version 1 serving."""
    add_version()
    made = bench()
    for number in range(8):
        write_image(drop / f"{number}.png", number)
    made.until(lambda: made.counts.frames == 8)
    assert 0 < made.counts.holdout < 8
    return made


@pytest.fixture
def program(monkeypatch):
    """Let a round be this program, whose end is noticed at once: such programs take no longer than a poll."""
    monkeypatch.setattr(rounds, "POLL_SECONDS", 0.01)

    def use(code: str) -> None:
        command = [sys.executable, "-c", PRELUDE + code]
        monkeypatch.setattr(rounds, "launch_command", lambda settings, spec: [*command, str(spec)])

    return use


@pytest.fixture
def store(layout):
    return RoundStore(layout.rounds)


def write_config(path: Path, settings: Settings) -> Path:
    """Write settings as a configuration file."""
    values = settings.model_dump(mode="json", exclude_none=True, exclude={"classes"})
    path.write_text(yaml.safe_dump({**values, "classes": "demo"}))
    return path


@pytest.fixture
def config(make_settings, tmp_path):
    return lambda **sections: write_config(tmp_path / "mfmd.yaml", make_settings(**sections))


@pytest.fixture
def start(layout) -> Iterator:
    started: list[Running] = []

    def make(config: Path, *, ready: bool = True, **options: Any) -> Running:
        started.append(Running(config, layout, ready=ready, **options))
        return started[-1]

    yield make
    for running in started:
        if running.process.poll() is None:
            running.process.kill()
            running.process.wait()
