"""One run of `paper.py`: a start, one round of the product, and the score on the whole validation split.

The start is made once for all runs that share it: source images imported, one version trained, target frames ingested.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np
from paper_plan import Job, target_names
from paper_rows import SUBSETS

from adapters.checkpoints.importing import import_checkpoint
from adapters.rounds.source_training import pretrain
from adapters.scoring.evaluation import Evaluation, evaluate_folder
from configs.settings import Settings
from daemon.gate.moves import promote, release
from daemon.ingest.worker import Ingest
from daemon.metrics import Metrics
from daemon.rounds.recovery import recover
from daemon.rounds.runner import RoundContext, continue_round, launch_round
from daemon.runtime.signals import stop_event
from daemon.watch.events import Hints
from storage.buffer.frames import FrameBuffer
from storage.directory.format import begin
from storage.directory.upgrade import prepare
from storage.layout import StateLayout
from storage.registry.registry import CheckpointRegistry
from storage.rounds.folder import RoundFolder, RoundStore

START_VERSION = 1
SEEDS_APART = 1_000_000
"""A round adds its number to its seed; with this the sum is the same whatever was run before in the state directory."""


class PaperFailed(Exception):
    """A run did not do what the published one did; the message says where to look."""


def execute(job: Job) -> dict[str, Any]:
    """Run one job and return its line of results. Raises PaperFailed, and what the parts of the product raise."""
    began, settings = time.monotonic(), job.settings
    layout = StateLayout(settings.state)
    begin(layout)
    with layout.lock(), stop_event() as stop:
        prepare(layout)
        registry = CheckpointRegistry(layout.checkpoints)
        if not registry.versions():
            release(registry, pretrain(settings).version, "paper", "the start of every run")
        with FrameBuffer.open(layout, settings.buffer, writable=True) as buffer:
            interrupted = recover(settings, buffer, registry)
            ingest_target(settings, buffer)
            if registry.serving_version() != START_VERSION:
                promote(registry, START_VERSION, by="paper", reason="the start of every run")
            store = RoundStore(layout.rounds)
            number = interrupted or store.next_number()
            context = RoundContext(_seeded(settings, job.seed, number), buffer, registry, stop)
            if interrupted is None:
                verdict = launch_round(context, "manual")
            else:
                _check_same(store.folder(number), context.settings)
                verdict = continue_round(context, number)
        if stop.is_set():
            raise KeyboardInterrupt
    folder = RoundStore(layout.rounds).folder(number)
    if verdict.version is None:
        raise PaperFailed(f"{job.title}: round {number} made no version: {verdict.reason}; see {folder.log}")
    student = import_checkpoint(_student(folder, settings), settings, registry).version
    line = {"served": _scored(job, verdict.version), "student": _scored(job, student)}
    return _line(job, line) | {"served_is": verdict.candidate, "seconds": time.monotonic() - began}


def ingest_target(settings: Settings, buffer: FrameBuffer) -> None:
    """Take every target image into the buffer, as the daemon does. Raises PaperFailed when one is not taken."""
    wanted = len(target_names(settings.watch))
    ingest = Ingest(settings, buffer, Metrics(settings).ingest, Hints(lambda: None))
    try:
        while True:
            counts = buffer.catalog.counts()
            lost = {**counts.refused, **counts.skipped}
            if lost:
                raise PaperFailed(f"{settings.watch.folder}: images were not taken: {lost}; `mfmd refused` names them")
            if counts.frames + counts.duplicates >= wanted:
                return
            time.sleep(min(0.05, ingest.step()))
    finally:
        ingest.close()


def _seeded(settings: Settings, seed: int, number: int) -> Settings:
    """Return settings under which round `number` draws as every round of this seed."""
    advanced = settings.round.advanced.model_copy(update={"seed": SEEDS_APART * (seed + 1) - number})
    return settings.model_copy(update={"round": settings.round.model_copy(update={"advanced": advanced})})


def _check_same(folder: RoundFolder, settings: Settings) -> None:
    if folder.spec().settings != settings.model_dump(mode="json"):
        raise PaperFailed(
            f"{folder.path}: a round of other settings was interrupted; run the command that began it, or remove "
            f"{settings.state}"
        )


def _student(folder: RoundFolder, settings: Settings) -> Path:
    """Return the student's weights after the last step: it is what the papers score."""
    state, scores = folder.states.latest(), folder.scores()
    done = scores.steps if scores else 0
    if state is None or done != settings.round.steps or int(state.name) != done:
        raise PaperFailed(f"{folder.path}: {done} of {settings.round.steps} steps were done; see {folder.log}")
    return state / "student.safetensors"


def _scored(job: Job, version: int) -> Evaluation:
    """Return the score of a version on the whole validation split, at the size of its labels."""
    scoring = job.scoring.model_copy(update={"state": job.settings.state})
    assert scoring.source is not None
    return evaluate_folder(scoring, scoring.source.images, scoring.source.labels, version)


def _line(job: Job, scores: dict[str, Evaluation]) -> dict[str, Any]:
    line: dict[str, Any] = {
        "key": job.digest(),
        "row": job.key,
        "arm": job.arm,
        "seed": job.seed,
        "steps": job.lengths.steps,
        "source_steps": job.lengths.source_steps,
        "tiny": job.lengths.tiny,
    }
    for name, found in scores.items():
        means = {classes: mean_over(found.iou, SUBSETS[classes]) for classes in job.row.classes()}
        line |= {name: means, f"{name}_iou": found.iou, "images": found.images}
    return line


def mean_over(iou: dict[str, float | None], without: tuple[str, ...]) -> float:
    """Return the mean IoU (0-1) over the classes that are labelled or predicted, but those in `without`."""
    return float(np.mean([value for name, value in iou.items() if name not in without and value is not None]))
