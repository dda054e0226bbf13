"""What scripts with a real daemon share: a preset with a run's own paths, source training, rounds."""

import os
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from daemon.control.client import ControlClient
from daemon.demo.driving import DriveFailed, DrivenDaemon, describe
from daemon.demo.report import stage
from storage.rounds.verdict import Verdict

FEW = 5
"""Images that arrive at once."""
PAUSE_SECONDS = 0.5
"""Time between two arrivals (seconds)."""
ROUND_SECONDS = 1200.0
START_SECONDS = 120.0
PRETRAIN_SECONDS = 3600.0


def write_config(preset: Path, workspace: Path, source: Mapping[str, Path], new_frames: int) -> Path:
    """Write `workspace`/mfmd.yaml: the preset with this run's paths and free ports; a round starts by `new_frames`.

    `source` has the folders of `images`, `labels`, `validation_images` and `validation_labels`.
    """
    settings: dict[str, Any] = yaml.safe_load(preset.read_text(encoding="utf-8"))
    changed: dict[str, dict[str, Any]] = {
        "watch": {"folder": str(workspace / "drop")},
        "source": {name: str(folder) for name, folder in source.items()},
        "schedule": {"new_frames": new_frames},
        "serving": {"port": 0},
        "control": {"port": 0},
    }
    for section, values in changed.items():
        settings[section] = {**settings.get(section, {}), **values}
    settings["state"] = str(workspace / "state")
    config = workspace / "mfmd.yaml"
    config.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    return config


def pretrain(driven: DrivenDaemon, console: Console) -> None:
    """Run the real `mfmd pretrain`, which also lets the version serve. Raises DriveFailed."""
    with stage(console, "mfmd pretrain") as show:
        done = driven.run_command("pretrain", timeout=PRETRAIN_SECONDS)
        if done.returncode != 0:
            raise DriveFailed(f"mfmd pretrain ended with {done.returncode}: {done.stderr[-2000:]}")
        show("version 1 serves")


def start(driven: DrivenDaemon, console: Console) -> None:
    """Start the daemon and wait until version 1 answers."""
    with stage(console, "Start the daemon") as show:
        driven.start()
        driven.wait_until_serving(1, START_SECONDS)
        show(f"serves at {driven.url('serve')}")


def adapt(driven: DrivenDaemon, console: Console, number: int, images: Sequence[Path]) -> Verdict:
    """Copy `images`, a few at a time, or ask for a round if there are none; wait for its verdict and the swap."""
    with stage(console, f"Round {number}") as show:
        for first in range(0, len(images), FEW):
            driven.drop(images[first : first + FEW])
            show(f"{first} of {len(images)} images arrived")
            time.sleep(PAUSE_SECONDS)
        if not images:
            ControlClient(driven.layout).start_round()
        verdict = driven.follow_round(number, ROUND_SECONDS, show)
        if verdict.version is not None:
            driven.wait_until_serving(verdict.version, START_SECONDS)
        show(describe(verdict))
    return verdict


def hardware() -> str:
    """Return processor and number of cores."""
    cpuinfo = Path("/proc/cpuinfo")
    models = [line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
    return f"{models[0] if models else platform.machine()}, {os.cpu_count()} cores"
