"""The demo's story: draw, train on day, start the daemon, feed it dusk, score what it serves."""

import multiprocessing
import os
import shutil
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

from PIL import Image

from daemon.demo.conditions import DAY, DUSK, Condition
from daemon.demo.display import Display, Stage
from daemon.demo.driving import DrivenDaemon, DriveTimeout, RoundOver
from daemon.demo.report import GOAL, Step
from daemon.demo.scenes import HEIGHT, WIDTH, draw_scene
from daemon.demo.scoring import Pair, pair_up, score_served

SOURCE_SEEDS = range(220)
TARGET_FIRST, TEST_FIRST = 10_000, 50_000
TEST_SCENES = 40
BATCHES = 2
"""Target images come in this many batches, each just big enough to start a round (`schedule.new_frames`)."""
BURST = 12
"""Images that arrive at once within a batch."""
MOST_ROUNDS = 3
TIME_LIMIT = 335.0
"""No round is waited for beyond this time since the start (seconds): the demo promises six minutes."""
START_SECONDS = 90.0
"""Longest start of the daemon, longest swap (seconds)."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """One scene to draw into `folder`/images, and into `folder`/labels when asked: no reader of images can cheat."""

    condition: Condition
    seed: int
    folder: Path
    labelled: bool
    height: int = HEIGHT
    width: int = WIDTH

    def draw(self) -> Path:
        """Draw the scene and write it as PNG; return the picture's path."""
        scene = draw_scene(self.condition, self.seed, self.height, self.width)
        layers = {"images": scene.image} | ({"labels": scene.label} if self.labelled else {})
        for kind, pixels in layers.items():
            (self.folder / kind).mkdir(parents=True, exist_ok=True)
            name = f"{self.condition.name}_{self.seed:05d}.png"
            Image.fromarray(pixels).save(self.folder / kind / name, compress_level=1)
        return self.folder / "images" / name


def draw_all(drawings: Iterable[Drawing], stage: Stage) -> list[Path]:
    """Draw every scene, on all cores; return the pictures in the order of `drawings`."""
    # Spawned, not forked: the caller may have threads (progress display, torch).
    context, drawn = multiprocessing.get_context("spawn"), []
    with ProcessPoolExecutor(max_workers=os.cpu_count() or 1, mp_context=context) as pool:
        for path in pool.map(Drawing.draw, drawings, chunksize=4):
            drawn.append(path)
            stage.show(len(drawn))
    return drawn


@dataclass(slots=True)
class Story:
    """One run of the demo in its own folder."""

    workspace: Path
    display: Display
    started: float = field(default_factory=time.monotonic)
    steps: list[Step] = field(default_factory=list)

    @property
    def config(self) -> Path:
        """The configuration: the shipped preset, unchanged; its relative paths lead into the workspace."""
        return self.workspace / "mfmd.yaml"

    def elapsed(self) -> float:
        """Time since the demo began (seconds)."""
        return time.monotonic() - self.started

    def configure(self) -> DrivenDaemon:
        """Write the configuration; return the daemon that will obey it."""
        preset = resources.files("configs") / "presets" / "demo.yaml"
        self.config.write_text(preset.read_text(encoding="utf-8"), encoding="utf-8")
        return DrivenDaemon(self.config)

    def draw(self, target_scenes: int) -> list[Path]:
        """Draw every scene; return the target images, which have no labels."""
        source = [Drawing(DAY, seed, self.workspace / "source", True) for seed in SOURCE_SEEDS]
        target = [Drawing(DUSK, TARGET_FIRST + n, self.workspace / "camera", False) for n in range(target_scenes)]
        test = [Drawing(DUSK, TEST_FIRST + n, self.workspace / "test", True) for n in range(TEST_SCENES)]
        with self.display.stage("Draw street scenes", len(source) + len(target) + len(test)) as stage:
            stage.show(0, facts=f"{len(source)} day with labels, {len(target)} dusk, {len(test)} dusk for scoring")
            drawn = draw_all([*source, *target, *test], stage)
        return drawn[len(source) : len(source) + len(target)]

    def test_pairs(self) -> list[Pair]:
        """Dusk scenes with labels, for scoring; the daemon never sees this folder."""
        return pair_up(self.workspace / "test" / "images", self.workspace / "test" / "labels")

    def pretrain(self, driven: DrivenDaemon) -> None:
        """Train on day scenes and release the result as the version that serves."""
        from adapters.rounds.source_training import PretrainProgress, pretrain
        from daemon.gate.promotion import release

        with self.display.stage("Train on day", driven.settings.pretrain.steps) as stage:

            def on_progress(progress: PretrainProgress) -> None:
                facts = progress.phase if progress.loss is None else f"{progress.phase}, loss {progress.loss:.2f}"
                stage.show(progress.step, progress.steps, facts)

            manifest = pretrain(driven.settings, on_progress)
            miou = 100 * manifest.scores["source_miou"]
            stage.show(1, 1, f"version {manifest.version}: mIoU {miou:.1f} on held-out day scenes")
        release(driven.registry, manifest.version, by="pretrain", reason="trained on labelled day scenes")

    def start(self, driven: DrivenDaemon) -> None:
        """Start the daemon and wait for its inference plane."""
        with self.display.stage("Start the daemon") as stage:
            driven.start()
            driven.wait_until_serving(1, START_SECONDS)
            stage.show(1, 1, f"mfmd run, process {driven.pid}; serves at {driven.url('serve')}")

    def adapt(self, driven: DrivenDaemon, camera: list[Path]) -> None:
        """Score the start, then let rounds run on what the camera sees until the goal or the time is reached."""
        self._score(driven, None)
        size = driven.settings.schedule.new_frames
        longest = 0.0
        for number in range(1, MOST_ROUNDS + 1):
            batch = camera[(number - 1) * size : number * size]
            risen = self.steps[-1].score.miou - self.steps[0].score.miou
            if not batch and (risen >= GOAL or self.elapsed() + longest > TIME_LIMIT):
                return
            began = self.elapsed()
            try:
                over = self._round(driven, number, batch)
            except DriveTimeout:
                self.display.console.print(
                    f"Round {number} has not ended after {self.elapsed():.0f} s: time limit reached."
                )
                return
            longest = max(longest, self.elapsed() - began)
            self._score(driven, over)

    def _round(self, driven: DrivenDaemon, number: int, batch: list[Path]) -> RoundOver:
        """Drop `batch`, which starts a round, or ask for one when there is no batch; wait for verdict and swap."""
        with self.display.stage(f"Round {number}") as stage:
            before = driven.committed()
            for first in range(0, len(batch), BURST):
                driven.drop(batch[first : first + BURST])
                arrived = min(first + BURST, len(batch))
                driven.wait_until_committed(before + arrived, START_SECONDS)
                stage.show(arrived, len(batch), f"{before + arrived} dusk frames in the buffer")
            if not batch:
                driven.request_round()
            over = driven.follow_round(number, max(1.0, TIME_LIMIT - self.elapsed()), stage.show)
            if over.version is not None:
                driven.wait_until_serving(over.version, START_SECONDS)
            stage.show(1, 1, over.sentence)
        return over

    def _score(self, driven: DrivenDaemon, over: RoundOver | None) -> None:
        pairs = self.test_pairs()
        with self.display.stage("Score what is served", len(pairs)) as stage:
            score = score_served(driven, pairs, lambda done: stage.show(done))
            change = f" ({100 * (score.miou - self.steps[0].score.miou):+.1f})" if self.steps else ""
            stage.show(1, 1, f"version {score.version}: mIoU {100 * score.miou:.1f}{change}")
        self.steps.append(Step(over.verdict if over else None, score, self.elapsed()))

    def remove(self) -> None:
        """Remove the workspace."""
        shutil.rmtree(self.workspace, ignore_errors=True)
