"""One run of `paper.py`: a start, one round of the product, and the score on the whole validation split.

The start is made once for all runs that share it: source images imported, one version trained, target frames ingested.
"""

import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from paper_figures import SUBSETS
from paper_plan import Job, target_names

from adapters.checkpoints.bases import load_beside_base
from adapters.checkpoints.checkpoint import load_version, save_weights
from adapters.checkpoints.importing import import_checkpoint
from adapters.rounds.source_training import PretrainProgress, pretrain
from adapters.scoring.evaluation import Evaluation, evaluate_folder
from configs.settings import Settings
from daemon.cli.output import ShowProgress, live_progress
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
from storage.rounds.folder import RoundFolder
from storage.rounds.records import Progress

START_VERSION = 1
START = "the start of every run"
SEEDS_APART = 1_000_000
"""A round adds its number to its seed; with this the sum is the same whatever was run before in the state directory."""


class PaperFailed(Exception):
    """A run did not do what the published one did; the message says where to look."""


def execute(job: Job) -> dict[str, Any]:
    """Run one job and return its line of results.

    Raises PaperFailed, RoundSuspended after SIGINT or SIGTERM, and the errors of the product.
    """
    began, settings = time.monotonic(), job.settings
    layout = StateLayout(settings.state)
    begin(layout)
    with layout.lock(), stop_event() as stop, live_progress() as show:
        prepare(layout)
        registry = CheckpointRegistry(layout.checkpoints)
        if not registry.versions():

            def on_source(done: PretrainProgress) -> None:
                show(done.phase, done.step, done.steps, {"loss": done.loss})

            release(registry, pretrain(settings, on_source).version, "paper", START)
        with FrameBuffer.open(layout, settings.buffer, writable=True) as buffer:
            context = RoundContext(settings, buffer, registry, stop, lambda now: _show(show, now), suspends=True)
            folder = _round(job, context)
    verdict = folder.verdict()
    if verdict is None or verdict.version is None:
        raise PaperFailed(f"{job.title}: {folder.path}: no version was made; see verdict.json and {folder.log}")
    student = _imported(job, _student(folder, settings), registry)
    line = {"served": _scored(job, verdict.version), "student": _scored(job, student)}
    return _line(job, line) | {"served_is": verdict.candidate, "seconds": time.monotonic() - began}


def _round(job: Job, context: RoundContext) -> RoundFolder:
    """Return the round of a job: the last one, if that was done and not yet scored; else resume it, or run it now."""
    settings, registry, store = context.settings, context.registry, context.store
    interrupted = recover(settings, context.buffer, registry)
    last = store.latest()
    if last is not None and interrupted is None and _is_of(last, job) and last.saved_step == settings.round.steps:
        return last
    ingest_target(settings, context.buffer)
    if registry.serving_version() != START_VERSION:
        promote(registry, START_VERSION, by="paper", reason=START)
    number = interrupted or store.next_number()
    context = replace(context, settings=_seeded(settings, job.seed, number))
    if interrupted is None:
        launch_round(context, "manual")
    elif _is_of(store.folder(number), job):
        continue_round(context, number)
    else:
        raise PaperFailed(
            f"{store.folder(number).path}: a round of other settings was interrupted; repeat the command that "
            f"began it, or remove {settings.state}"
        )
    return store.folder(number)


def _is_of(folder: RoundFolder, job: Job) -> bool:
    """Return whether a round has the settings and the seed of a job."""
    return folder.spec().settings == _seeded(job.settings, job.seed, folder.number).model_dump(mode="json")


def _show(show: ShowProgress, now: Progress) -> None:
    show(now.phase, now.step, now.steps, now.losses)


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


def _student(folder: RoundFolder, settings: Settings) -> Path:
    """Return the student's weights after the last step: it is what the papers score."""
    state, scores = folder.states.latest(), folder.scores()
    done = scores.steps if scores else 0
    if state is None or done != settings.round.steps or int(state.name) != done:
        raise PaperFailed(f"{folder.path}: {done} of {settings.round.steps} steps were done; see {folder.log}")
    return state / "student.safetensors"


def _imported(job: Job, weights: Path, registry: CheckpointRegistry) -> int:
    """Return the version made of a student's weights; what they leave out is in the base of the first version."""
    network, _ = load_version(registry, START_VERSION, torch.device("cpu"))
    load_beside_base(network, weights)
    with TemporaryDirectory(dir=job.places.work) as made:
        whole = Path(made) / weights.name
        save_weights(network, whole)
        return import_checkpoint(whole, job.settings, registry).version


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
        "steps": job.steps,
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
