"""A configuration, a registry with real files, and a way to run commands in this process."""

import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import structlog

from configs.load import load_settings
from configs.settings import Settings
from daemon.cli import main
from storage.layout import StateLayout
from storage.registry.manifest import Manifest
from storage.registry.registry import CheckpointRegistry

CONFIG = """\
classes: demo
watch: {folder: drop}
buffer: {height: 48, width: 64, capacity_frames: 32, reserve_bytes: 0, advanced: {tile: 32}}
network: {name: deeplabv3plus, encoder: resnet_tiny, channels: 16}
control: {port: 0}
serving: {port: 0, device: cpu, threads: 1}
"""


class Answer(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str


Command = Callable[..., Answer]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A small valid configuration; its drop folder exists."""
    path = tmp_path / "mfmd.yaml"
    path.write_text(CONFIG, encoding="utf-8")
    (tmp_path / "drop").mkdir()
    return path


@pytest.fixture
def settings(config: Path) -> Settings:
    """The settings behind `config`."""
    return load_settings(config)


@pytest.fixture
def _own_logs() -> Iterator[None]:
    """Take back the handler of a command that configures logs: its stream is closed after the test."""
    root = logging.getLogger()
    level = root.level
    yield
    root.setLevel(level)
    for handler in [*root.handlers]:
        if isinstance(handler.formatter, structlog.stdlib.ProcessorFormatter):
            root.removeHandler(handler)


@pytest.fixture
def mfmd(_own_logs: None, config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run a command in this process, in the configuration's folder."""
    monkeypatch.chdir(config.parent)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")

    def run(*arguments: object) -> Answer:
        capsys.readouterr()
        code = main([str(item) for item in arguments])
        captured = capsys.readouterr()
        return Answer(code, captured.out, captured.err)

    return run


@pytest.fixture
def registry(settings: Settings, tmp_path: Path) -> CheckpointRegistry:
    """Three versions; 2 serves and 1 is previous. Their weights are bytes: nothing here loads them."""
    registry = CheckpointRegistry(StateLayout(settings.state).checkpoints)
    for number in (1, 2, 3):
        weights = tmp_path / f"weights-{number}"
        weights.write_bytes(f"weights of version {number}".encode())
        registry.add(weights, _manifest(settings, parent=number - 1 or None), by="test")
    registry.promote(1, by="pretrain", reason="first")
    registry.promote(2, by="gate", reason="better")
    return registry


def _manifest(settings: Settings, parent: int | None) -> Manifest:
    return Manifest(
        origin="round" if parent else "pretrain",
        parent=parent,
        created=time.time(),
        network=settings.network.model_dump(mode="json"),
        classes=tuple(item.model_dump(mode="json") for item in settings.classes),
        input_height=48,
        input_width=64,
        scores={"source_miou": 0.5},
    )
