"""`mfmd demo`: the whole job on drawn street scenes, with nothing to download or configure.

It draws a source (day, with labels) and a target (dusk, without), trains on day, starts the real daemon, drops dusk
images into its folder, and scores what the inference plane answers on dusk scenes whose labels the daemon never saw.
"""

import multiprocessing
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib import resources
from pathlib import Path
from typing import NoReturn

from rich.console import Console

from adapters.rounds.source_training import PretrainProgress, pretrain
from daemon.control.client import ControlClient
from daemon.demo.conditions import DAY, DUSK, Condition
from daemon.demo.driving import DrivenDaemon, DriveTimeout, describe
from daemon.demo.report import GOAL, DemoReport, Step, check_report, stage
from daemon.demo.scenes import write_scene
from daemon.demo.scoring import pair_up, score_served
from daemon.exit_codes import ExitCode
from daemon.gate.moves import release
from daemon.runtime.process_group import PYTHON
from daemon.runtime.signals import on_signals
from storage.rounds.verdict import Verdict

DEFAULT_OUT = Path("out/demo")
"""Where report and picture go."""
SOURCE_SEEDS = range(220)
TARGET_FIRST, TEST_FIRST = 10_000, 50_000
TEST_SCENES = 40
BATCHES = 2
"""Target images come in this many batches, each just big enough to start a round (`schedule.new_frames`)."""
MOST_ROUNDS = 3
TIME_LIMIT = 335.0
"""No round is waited for beyond this time since the start (seconds): the demo promises six minutes."""
START_SECONDS = 90.0
"""Longest start of the daemon, arrival of a batch, or swap (seconds)."""


def run_demo(keep: bool, out: Path | None) -> int:
    """Run the demo; report and picture go to `out`, state to a temporary directory that `keep` leaves, daemon running.

    Returns 0 when a candidate was promoted and the served mIoU rose by five points, else 3; 130 after Ctrl-C.
    Raises ExportRefused when `out` holds such files of others; DriveFailed, StorageError or AdapterError when a step
    fails; the directory then stays.
    """
    check_report(out or DEFAULT_OUT)
    console = Console()
    story = Story(console)
    try:
        with on_signals(_interrupt, signal.SIGTERM):  # cleans up as Ctrl-C does
            passed = story.tell(out or DEFAULT_OUT)
    except KeyboardInterrupt:
        story.end()
        console.print("Interrupted; the daemon is stopped and its directory removed.")
        return ExitCode.INTERRUPTED
    except BaseException:
        story.driven.stop()
        console.print(f"The demo failed; its state stays in {story.workspace}", highlight=False)
        raise
    if keep:
        story.leave()
    else:
        story.end()
        console.print("Next: `mfmd demo --keep` leaves the daemon running; `mfmd init` points it at your own folder.")
    return ExitCode.OK if passed else ExitCode.NOT_ACCEPTED


def _interrupt() -> NoReturn:
    raise KeyboardInterrupt


def draw_all(scenes: Sequence[tuple[Path, Condition, int, bool]]) -> list[Path]:
    """Draw a scene for each set of arguments of `write_scene`, on all cores; return the pictures in their order."""
    # Spawned, not forked: the caller may have threads (progress display, torch).
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=os.cpu_count() or 1, mp_context=context) as pool:
        return list(pool.map(write_scene, *zip(*scenes, strict=True), chunksize=4))


class Story:
    """One run of the demo in its own folder."""

    def __init__(self, console: Console) -> None:
        self.began = time.monotonic()
        self.console = console
        self.workspace = Path(tempfile.mkdtemp(prefix="mfmd-demo-"))
        preset = resources.files("configs") / "presets" / "demo.yaml"  # its relative paths lead into the workspace
        config = self.workspace / "mfmd.yaml"
        config.write_text(preset.read_text(encoding="utf-8"), encoding="utf-8")
        self.driven = DrivenDaemon(config)
        self.steps: list[Step] = []

    def tell(self, out: Path) -> bool:
        """Run the story from the first scene to the report in `out`; return whether it kept its promise."""
        camera = self.draw(BATCHES * self.driven.settings.schedule.new_frames)
        self.pretrain()
        self.start()
        self.adapt(camera)
        report = DemoReport(self.steps, self.driven.settings.classes)
        picture = report.write(out, pair_up(self.workspace / "test"))
        report.print(self.console)
        outcome = "The demo reached its goal" if report.passed else "The demo missed its goal"
        self.console.print(
            f"{outcome}: served mIoU {100 * report.rise:+.1f} points in {self.elapsed():.0f} s.\n"
            f"Picture: {picture}\nNumbers: {out / 'report.json'}",
            highlight=False,
            soft_wrap=True,
        )
        return report.passed

    def elapsed(self) -> float:
        """Time since the demo began (seconds)."""
        return time.monotonic() - self.began

    def draw(self, target_scenes: int) -> list[Path]:
        """Draw every scene; return the target images, which have no labels: no reader of images can cheat."""
        source = [(self.workspace / "source", DAY, seed, True) for seed in SOURCE_SEEDS]
        target = [(self.workspace / "camera", DUSK, TARGET_FIRST + n, False) for n in range(target_scenes)]
        test = [(self.workspace / "test", DUSK, TEST_FIRST + n, True) for n in range(TEST_SCENES)]
        with stage(self.console, "Draw street scenes") as show:
            show(f"{len(source)} day with labels, {len(target)} dusk, {len(test)} dusk for scoring")
            return draw_all([*target, *source, *test])[: len(target)]

    def pretrain(self) -> None:
        """Train on day scenes and release the result as the version that serves."""
        with stage(self.console, "Train on day") as show:

            def on_progress(progress: PretrainProgress) -> None:
                loss = "" if progress.loss is None else f", loss {progress.loss:.2f}"
                show(f"{progress.phase}, step {progress.step} of {progress.steps}{loss}")

            manifest = pretrain(self.driven.settings, on_progress)
            miou = 100 * manifest.scores["source_miou"]
            show(f"version {manifest.version}: mIoU {miou:.1f} on held-out day scenes")
        release(self.driven.registry, manifest.version, by="pretrain", reason="trained on labelled day scenes")

    def start(self) -> None:
        """Start the daemon and score what its inference plane answers."""
        with stage(self.console, "Start the daemon") as show:
            self.driven.start()
            self.driven.wait_until_serving(1, START_SECONDS)
            show(f"mfmd run; serves at {self.driven.url('serve')}")
        self._score(None)

    def adapt(self, camera: list[Path]) -> None:
        """Let rounds run on what the camera sees until the goal or the time is reached."""
        size = self.driven.settings.schedule.new_frames
        for number in range(1, MOST_ROUNDS + 1):
            batch = camera[(number - 1) * size : number * size]
            risen = self.steps[-1].score.miou - self.steps[0].score.miou
            if not batch and (risen >= GOAL or self.elapsed() > TIME_LIMIT):
                return
            try:
                verdict = self._round(number, batch)
            except DriveTimeout:
                self.console.print(f"Round {number} has not ended after {self.elapsed():.0f} s: time limit reached.")
                return
            self._score(verdict)

    def _round(self, number: int, batch: list[Path]) -> Verdict:
        """Drop `batch`, which starts a round, or ask for one when there is no batch; wait for verdict and swap."""
        driven = self.driven
        with stage(self.console, f"Round {number}") as show:
            if batch:
                show(f"{len(batch)} dusk images arrive")
                frames = driven.committed() + len(batch)
                driven.drop(batch)
                driven.wait_until_committed(frames, START_SECONDS)
            else:
                ControlClient(driven.layout).start_round()
            verdict = driven.follow_round(number, max(1.0, TIME_LIMIT - self.elapsed()), show)
            if verdict.version is not None:
                driven.wait_until_serving(verdict.version, START_SECONDS)
            show(describe(verdict))
        return verdict

    def _score(self, verdict: Verdict | None) -> None:
        with stage(self.console, "Score what is served") as show:
            score = score_served(self.driven, pair_up(self.workspace / "test"))
            change = f" ({100 * (score.miou - self.steps[0].score.miou):+.1f})" if self.steps else ""
            show(f"version {score.version}: mIoU {100 * score.miou:.1f}{change}")
        self.steps.append(Step(verdict, score, self.elapsed()))

    def end(self) -> None:
        """Stop the daemon and remove the workspace."""
        self.driven.stop()
        shutil.rmtree(self.workspace, ignore_errors=True)

    def leave(self) -> None:
        """Let the daemon run on; print how to use and end it."""
        driven, mfmd = self.driven, f"{' '.join(PYTHON)} -m daemon.cli"
        self.console.print(
            f"The daemon keeps running. Drop images into {driven.settings.watch.folder}\n"
            f"  status     {mfmd} status --config {driven.config}\n"
            f"  metrics    {driven.url('daemon')}/metrics and {driven.url('serve')}/metrics\n"
            f"  ask        curl --data-binary @IMAGE.png '{driven.url('serve')}/v1/segment?format=color' -o mask.png\n"
            f"  roll back  {mfmd} rollback --config {driven.config}\n"
            f"  stop       kill {driven.process.pid if driven.process else ''}\n"
            f"  remove     rm -r {self.workspace}   (once it has stopped)",
            highlight=False,
            soft_wrap=True,
        )
