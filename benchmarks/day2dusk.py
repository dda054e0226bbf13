"""CamVid, day to dusk, through the real daemon: does what the *server* answers get better, and does rollback undo it?

Trains on labelled daylight frames, starts `mfmd run`, copies dusk frames into its drop folder a few at a time, lets
rounds run, scores the served masks before and after (dusk labels are read by this script only, for scoring), rolls
back with `mfmd rollback` and scores again: the masks must be those of before, bit for bit.

    python benchmarks/day2dusk.py --data ../shared/data/camvid

Prints a markdown table (docs/benchmarks.md) and writes it, with a before/after picture, to `--out`.
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

from daemon.demo.display import Display
from daemon.demo.driving import DriveFailed, DrivenDaemon
from daemon.demo.picture import Row, read_rgb, side_by_side
from daemon.demo.scoring import Pair, ServedScore, pair_up, read_label, score_served
from daemon.demo.watching import RoundOver, follow_round

PRESET = Path(__file__).parent.parent / "configs" / "camvid_day2dusk.yaml"
FEW = 5
"""Dusk frames that arrive at once."""
PAUSE_SECONDS = 1.0
"""Time between two arrivals (seconds)."""
ROUND_SECONDS = 1200.0
START_SECONDS = 120.0
SHOWN = 4
"""Rows of the picture: dusk frames at equal distances along the drive."""


@dataclass(slots=True)
class Line:
    """One line of the table."""

    event: str
    dusk: ServedScore
    day: ServedScore
    seconds: float


@dataclass(slots=True)
class Benchmark:
    """One run in its own folder."""

    data: Path
    workspace: Path
    display: Display
    driven: DrivenDaemon
    started: float = field(default_factory=time.monotonic)
    lines: list[Line] = field(default_factory=list)

    def run(self, rounds: int) -> None:
        """Train, serve, adapt, roll back."""
        self.pretrain()
        with self.display.stage("Start the daemon") as stage:
            self.driven.start()
            self.driven.wait_until_serving(1, START_SECONDS)
            stage.show(1, 1, f"serves at {self.driven.url('serve')}")
        self.score("source only")
        stream = self.dusk()
        for number in range(1, rounds + 1):
            over = self.adapt(number, [pair.image for pair in part_of(stream, number - 1, rounds)])
            self.score(f"round {number}: {over.sentence}")
        self.roll_back()

    def dusk(self) -> list[Pair]:
        """Dusk frames along the drive."""
        return pair_up(self.data / "dusk_stream" / "images", self.data / "dusk_stream" / "labels")

    def pretrain(self) -> None:
        """Train on day with the real `mfmd pretrain`, which also lets the version serve."""
        with self.display.stage("mfmd pretrain") as stage:
            done = self.driven.run_command("pretrain", timeout=1800)
            if done.returncode != 0:
                raise DriveFailed(f"mfmd pretrain ended with {done.returncode}: {done.stderr[-2000:]}")
            stage.show(1, 1, done.stdout.splitlines()[0])

    def adapt(self, number: int, images: Sequence[Path]) -> RoundOver:
        """Let a part of the stream arrive, a few frames at a time; a round follows by itself or is asked for."""
        with self.display.stage(f"Round {number}") as stage:
            for first in range(0, len(images), FEW):
                self.driven.drop(images[first : first + FEW])
                stage.show(first, len(images), "dusk frames arrive")
                time.sleep(PAUSE_SECONDS)
            before = sum(len(part_of(self.dusk(), index, 1)) for index in ()) + self.arrived(number)
            self.driven.wait_until_committed(before, START_SECONDS)
            over = follow_round(self.driven, number, ROUND_SECONDS, stage.show)
            if over.version is not None:
                self.driven.wait_until_serving(over.version, START_SECONDS)
            stage.show(1, 1, over.sentence)
        return over
