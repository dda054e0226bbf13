"""The demo's story: draw, train on day, start the daemon, feed it dusk, score what it serves."""

import shutil
import time
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

from daemon.demo.conditions import DAY, DUSK
from daemon.demo.datasets import draw_all, jobs
from daemon.demo.display import Display, Stage
from daemon.demo.driving import DrivenDaemon, DriveTimeout
from daemon.demo.report import GOAL, Step
from daemon.demo.scoring import Pair, ServedScore, pair_up, score_served
from daemon.demo.watching import RoundOver, follow_round

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
        """Write the configuration; returns the daemon that will obey it."""
        preset = resources.files("configs") / "presets" / "demo.yaml"
        self.config.write_text(preset.read_text(encoding="utf-8"), encoding="utf-8")
        return DrivenDaemon(self.config)

    def draw(self, target_scenes: int) -> list[Path]:
        """Draw every scene; returns the target images, which have no labels."""
        source, test = self.workspace / "source", self.workspace / "test"
        work = jobs(DAY, SOURCE_SEEDS, source / "images", source / "labels")
        work += jobs(DUSK, range(TARGET_FIRST, TARGET_FIRST + target_scenes), self.workspace / "camera", None)
        work += jobs(DUSK, range(TEST_FIRST, TEST_FIRST + TEST_SCENES), test / "images", test / "labels")
        with self.display.stage("Draw street scenes", len(work)) as stage:
            facts = f"{len(SOURCE_SEEDS)} day with labels, {target_scenes} dusk, {TEST_SCENES} dusk for scoring"
            stage.show(0, facts=facts)
            drawn = draw_all(work, lambda done: stage.show(done))
        return drawn[len(SOURCE_SEEDS) : len(SOURCE_SEEDS) + target_scenes]

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
            if not batch and (self._rise() >= GOAL or self.elapsed() + longest > TIME_LIMIT):
                return
            began = time.monotonic()
            try:
                over = self._round(driven, number, batch)
            except DriveTimeout:
                self.display.console.print(f"Round {number} is not over after {self.elapsed():.0f} s: no more time.")
                return
            longest = max(longest, time.monotonic() - began)
            self._score(driven, over)

    def _round(self, driven: DrivenDaemon, number: int, batch: list[Path]) -> RoundOver:
        """Drop `batch`, which starts a round, or ask for one when there is no batch; wait for verdict and swap."""
        with self.display.stage(f"Round {number}") as stage:
            if batch:
                self._drop(driven, batch, stage)
            else:
                driven.request_round()
            over = follow_round(driven, number, max(1.0, TIME_LIMIT - self.elapsed()), stage.show)
            if over.version is not None:
                driven.wait_until_serving(over.version, START_SECONDS)
            stage.show(1, 1, over.sentence)
        return over

    def _drop(self, driven: DrivenDaemon, batch: list[Path], stage: Stage) -> None:
        """Copy the batch into the drop folder, a few images at a time, each burst once the last one is committed."""
        before = driven.committed()
        for first in range(0, len(batch), BURST):
            burst = batch[first : first + BURST]
            driven.drop(burst)
            wanted = before + first + len(burst)
            driven.wait_until_committed(wanted, START_SECONDS)
            stage.show(first + len(burst), len(batch), f"{wanted} dusk frames in the buffer")

    def _score(self, driven: DrivenDaemon, over: RoundOver | None) -> None:
        pairs = self.test_pairs()
        with self.display.stage("Score what is served", len(pairs)) as stage:
            score: ServedScore = score_served(driven, pairs, lambda done: stage.show(done))
            change = f" ({100 * (score.miou - self.steps[0].score.miou):+.1f})" if self.steps else ""
            stage.show(1, 1, f"version {score.version}: mIoU {100 * score.miou:.1f}{change}")
        self.steps.append(Step(over.verdict if over else None, score, self.elapsed()))

    def _rise(self) -> float:
        return self.steps[-1].score.miou - self.steps[0].score.miou

    def remove(self) -> None:
        """Remove the workspace."""
        shutil.rmtree(self.workspace, ignore_errors=True)
