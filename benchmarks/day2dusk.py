"""CamVid, day to dusk, through the real daemon: whether the served masks improve, and whether rollback undoes it.

It trains on labelled daylight frames, starts `mfmd run`, copies dusk frames into its drop folder a few at a time, waits
for rounds, and scores the served masks before and after each (only this script reads dusk labels). Then it rolls back
with `mfmd rollback` and scores again: the masks must equal the earlier ones, bit for bit.

    python benchmarks/day2dusk.py --data ../shared/data/camvid

Prints a markdown table for docs/explanation/benchmarks.md; `--out` gets it too, with a before/after picture.
"""

import argparse
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np
import yaml
from rich.console import Console

from configs.class_list import ClassInfo
from daemon.control.client import ControlClient
from daemon.demo.driving import DriveFailed, DrivenDaemon, describe
from daemon.demo.report import side_by_side, stage
from daemon.demo.scoring import Pair, ServedScore, pair_up, score_served

PRESET = Path(__file__).parent.parent / "configs" / "presets" / "camvid_day2dusk.yaml"
PARTS = 2
"""The dusk stream arrives in this many parts; each starts a round. Further rounds are asked for."""
FEW = 5
"""Dusk frames that arrive at once."""
PAUSE_SECONDS = 0.5
"""Time between two arrivals (seconds)."""
ROUND_SECONDS = 1200.0
START_SECONDS = 120.0
SHOWN = 4
"""Rows of the picture: dusk frames at equal distances along the drive, fixed before anything is scored."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the table: an event, and the scores of the server's answers after it."""

    event: str
    dusk: ServedScore
    day: ServedScore
    seconds: float
    """Time since the start (seconds)."""


@dataclass(slots=True)
class Benchmark:
    """One run in its own folder."""

    dusk: list[Pair]
    day: list[Pair]
    console: Console
    driven: DrivenDaemon
    started: float = field(default_factory=time.monotonic)
    lines: list[Line] = field(default_factory=list)

    def run(self, rounds: int) -> None:
        """Train, serve, adapt, roll back."""
        self.pretrain()
        with stage(self.console, "Start the daemon") as show:
            self.driven.start()
            self.driven.wait_until_serving(1, START_SECONDS)
            show(f"serves at {self.driven.url('serve')}")
        self.score("source only")
        for number in range(1, rounds + 1):
            self.adapt(number)
        self.roll_back()

    def pretrain(self) -> None:
        """Train on day with the real `mfmd pretrain`, which also lets the version serve."""
        with stage(self.console, "mfmd pretrain") as show:
            done = self.driven.run_command("pretrain", timeout=3600)
            if done.returncode != 0:
                raise DriveFailed(f"mfmd pretrain ended with {done.returncode}: {done.stderr[-2000:]}")
            show("version 1 serves")

    def adapt(self, number: int) -> None:
        """Copy the next part of the stream, a few frames at a time, or ask for a round if all have arrived."""
        images = [pair.image for pair in self.dusk[part(number, len(self.dusk))]]
        with stage(self.console, f"Round {number}") as show:
            for first in range(0, len(images), FEW):
                self.driven.drop(images[first : first + FEW])
                show(f"{first} of {len(images)} dusk frames arrived")
                time.sleep(PAUSE_SECONDS)
            if not images:
                ControlClient(self.driven.layout).start_round()
            verdict = self.driven.follow_round(number, ROUND_SECONDS, show)
            if verdict.version is not None:
                self.driven.wait_until_serving(verdict.version, START_SECONDS)
            show(describe(verdict))
        self.score(f"round {number}: {describe(verdict)}")

    def roll_back(self) -> None:
        """Roll back, if a version was promoted, and score. Raises DriveFailed if the masks differ from before."""
        if self.lines[-1].dusk.version == self.lines[0].dusk.version:
            return
        done = self.driven.run_command("rollback", "--reason", "benchmark")
        if done.returncode != 0:
            raise DriveFailed(f"mfmd rollback ended with {done.returncode}: {done.stderr}")
        serving = self.driven.registry.serving()
        assert serving is not None
        self.driven.wait_until_serving(serving.version, START_SECONDS)
        earlier = next(line for line in self.lines if line.dusk.version == serving.version)
        self.score(f"`mfmd rollback` to version {serving.version}: masks as before, bit for bit")
        for name in ("dusk", "day"):
            now, then = getattr(self.lines[-1], name), getattr(earlier, name)
            if not all(np.array_equal(one, other) for one, other in zip(now.masks, then.masks, strict=True)):
                raise DriveFailed(f"after the rollback the {name} masks differ from those of version {then.version}")

    def score(self, event: str) -> None:
        """Segment every dusk and day_val frame through the server, and record the scores."""
        with stage(self.console, "Score what is served") as show:
            dusk = score_served(self.driven, self.dusk)
            day = score_served(self.driven, self.day)
            show(f"version {dusk.version}: dusk {100 * dusk.miou:.1f}, day {100 * day.miou:.1f}")
        self.lines.append(Line(event, dusk, day, time.monotonic() - self.started))


def part(number: int, frames: int) -> slice:
    """Return which of `frames` dusk frames arrive before round `number` (from 1)."""
    size = frames // PARTS
    if number > PARTS:
        return slice(0)
    return slice((number - 1) * size, frames if number == PARTS else number * size)


def write_config(preset: Path, data: Path, workspace: Path, frames: int) -> Path:
    """Write the preset with this run's paths, free ports, and rounds that start after a part of the stream."""
    settings = yaml.safe_load(preset.read_text(encoding="utf-8"))
    settings["state"] = str(workspace / "state")
    settings["watch"] = {**settings.get("watch", {}), "folder": str(workspace / "drop")}
    settings["source"] = {
        **settings.get("source", {}),
        "images": str(data / "day_train" / "images"),
        "labels": str(data / "day_train" / "labels"),
        "validation_images": str(data / "day_val" / "images"),
        "validation_labels": str(data / "day_val" / "labels"),
    }
    settings["schedule"] = {**settings.get("schedule", {}), "new_frames": frames // PARTS}
    settings["serving"] = {**settings.get("serving", {}), "port": 0}
    settings["control"] = {**settings.get("control", {}), "port": 0}
    config = workspace / "mfmd.yaml"
    config.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    return config


def markdown(lines: Sequence[Line], classes: Sequence[ClassInfo], command: str) -> str:
    """Return the table for docs/explanation/benchmarks.md."""
    text = [
        f"{time.strftime('%Y-%m-%d')}, {hardware()}, mfmd {version('mfmd')}, torch {version('torch')}, "
        f"{lines[-1].seconds / 60:.0f} minutes. Command: `{command}`.",
        f"{len(lines[0].dusk.masks)} dusk and {len(lines[0].day.masks)} day_val frames, scored at 480x360 from what "
        "`POST /v1/segment` answers.",
        "",
        "| what happened | serves | dusk mIoU | change | day_val mIoU | change | minutes |",
        "|---|---|---|---|---|---|---|",
    ]
    first = lines[0]
    text += [
        f"| {line.event} | version {line.dusk.version} | {_percent(line.dusk.miou)} "
        f"| {100 * (line.dusk.miou - first.dusk.miou):+.1f} | {_percent(line.day.miou)} "
        f"| {100 * (line.day.miou - first.day.miou):+.1f} | {line.seconds / 60:.1f} |"
        for line in lines
    ]
    text += [
        "",
        "| dusk IoU | " + " | ".join(entry.name for entry in classes) + " |",
        "|---" * (len(classes) + 1) + "|",
    ]
    for name, line in (("before", first), ("after", adapted(lines))):
        text.append(f"| {name} | " + " | ".join(_percent(value) for value in line.dusk.iou) + " |")
    return "\n".join(text) + "\n"


def adapted(lines: Sequence[Line]) -> Line:
    """Return the line of the last round before the rollback."""
    return [line for line in lines if not line.event.startswith("`mfmd rollback`")][-1]


def picture(pairs: Sequence[Pair], lines: Sequence[Line], classes: Sequence[ClassInfo], path: Path) -> None:
    """Draw image, before, after and truth of a few dusk frames."""
    before, after = lines[0].dusk, adapted(lines).dusk
    shown = range(len(pairs) // (2 * SHOWN), len(pairs), len(pairs) // SHOWN)[:SHOWN]
    captions = (
        "dusk (CamVid)",
        f"before: mIoU {_percent(before.miou)}",
        f"after: mIoU {_percent(after.miou)}",
        "truth",
    )
    side_by_side(pairs, before, after, shown, captions, classes).save(path)


def hardware() -> str:
    """Return processor and number of cores."""
    cpuinfo = Path("/proc/cpuinfo")
    models = [line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
    return f"{models[0] if models else platform.machine()}, {os.cpu_count()} cores"


def _percent(share: float) -> str:
    return "-" if np.isnan(share) else f"{100 * share:.1f}"


def main() -> int:
    """Run the command line; return 0 if everything ran and the rollback restored the earlier masks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with day_train, day_val and dusk_stream")
    parser.add_argument("--out", type=Path, default=Path("out/day2dusk"), help="folder of table and picture")
    parser.add_argument("--config", type=Path, default=PRESET, help="preset to run (paths and ports are replaced)")
    parser.add_argument("--rounds", type=int, default=PARTS, help="rounds to run, at least 2")
    parser.add_argument("--keep", action="store_true", help="leave the state directory")
    arguments = parser.parse_args()
    dusk = pair_up(arguments.data / "dusk_stream")
    day = pair_up(arguments.data / "day_val")
    workspace = Path(tempfile.mkdtemp(prefix="mfmd-day2dusk-"))
    driven = DrivenDaemon(write_config(arguments.config, arguments.data.resolve(), workspace, len(dusk)))
    benchmark = Benchmark(dusk, day, Console(stderr=True), driven)
    try:
        benchmark.run(max(2, arguments.rounds))
    finally:
        driven.stop()
        if not arguments.keep:
            shutil.rmtree(workspace, ignore_errors=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    table = markdown(benchmark.lines, driven.settings.classes, " ".join(["python", *sys.argv]))
    (arguments.out / "day2dusk.md").write_text(table, encoding="utf-8")
    picture(dusk, benchmark.lines, driven.settings.classes, arguments.out / "day2dusk.png")
    print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
