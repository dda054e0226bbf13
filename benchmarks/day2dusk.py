"""CamVid, day to dusk, through the real daemon: whether the served masks improve, and whether rollback undoes it.

It trains on labelled daylight frames, starts `mfmd run`, copies dusk frames into its drop folder a few at a time, waits
for rounds, and scores the served masks before and after each (only this script reads dusk labels). Then it rolls back
with `mfmd rollback` and scores again: the masks must equal the earlier ones, bit for bit.

    python benchmarks/day2dusk.py --data ../shared/data/camvid

Prints a markdown table for docs/explanation/benchmarks.md; `--out` gets it too, with a before/after picture.
"""

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np
from driven_rounds import START_SECONDS, adapt, hardware, pretrain, start, write_config
from rich.console import Console

from configs.class_list import ClassInfo
from daemon.demo.driving import DriveFailed, DrivenDaemon, describe
from daemon.demo.report import side_by_side, stage
from daemon.demo.scoring import Pair, ServedScore, pair_up, score_served

PRESET = Path(__file__).parent.parent / "configs" / "presets" / "camvid_day2dusk.yaml"
PARTS = 2
"""The dusk stream arrives in this many parts; each starts a round. Further rounds are asked for."""
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
        pretrain(self.driven, self.console)
        start(self.driven, self.console)
        self.score("source only")
        for number in range(1, rounds + 1):
            self.adapt(number)
        self.roll_back()

    def adapt(self, number: int) -> None:
        """Let the next part of the stream arrive, or ask for a round if all have arrived; score what then serves."""
        images = [pair.image for pair in self.dusk[part(number, len(self.dusk))]]
        verdict = adapt(self.driven, self.console, number, images)
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


def source_folders(data: Path) -> dict[str, Path]:
    """Return the folders of the labelled day frames."""
    train, held_out = data / "day_train", data / "day_val"
    return {
        "images": train / "images",
        "labels": train / "labels",
        "validation_images": held_out / "images",
        "validation_labels": held_out / "labels",
    }


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
    folders = source_folders(arguments.data.resolve())
    driven = DrivenDaemon(write_config(arguments.config, workspace, folders, len(dusk) // PARTS))
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
