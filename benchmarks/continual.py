"""Continual drift: day, fog, rain, night, sensor noise and day again, one round after the other on each.

The stages are `shifts.sequence` applied to the daylight validation frames of CamVid, which no source model trained on:
their labels stay true and are used for scoring only. Each stage starts from the result of the stage before.
"""

import os
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from adaptation_arms import ARMS
from adaptation_data import LabelledImage, fill_buffer, labelled_part, score, transformed
from adaptation_runs import Run, adapt, source_model
from adaptation_sets import CLASSES
from shifts import sequence

from adapters.networks.network import SegmentationNetwork
from configs.settings import Settings
from storage.layout import StateLayout

SEVERITY = 0.8
"""How strong the stages are (0-1)."""

STAGE_STRIDE = 100
"""Distance between the seeds of two stages, beyond any seed of a run."""

Stages = dict[str, tuple[LabelledImage, ...]]


def stage_images(data: Path, severity: float = SEVERITY) -> Stages:
    """Return the name of each stage, in order, and its frames."""
    day = labelled_part(data / "day_val", CLASSES)
    return {name: transformed(day, shift) for name, shift in sequence(severity)}


def execute_continual(run: Run) -> dict[str, Any]:
    """Run one pass through the stages; score every stage (rows of `matrix`) before the first and after each."""
    torch.set_num_threads(1)
    began, settings, stages = time.monotonic(), run.settings(), stage_images(run.data)
    network = source_model(settings)
    matrix = [_row(network, stages, settings)]
    for number, (name, images) in enumerate(stages.items()):
        if ARMS[run.arm].trains:
            state = _stage_state(run, settings, name, images)
            advanced = settings.round.advanced.model_copy(update={"seed": run.seed + STAGE_STRIDE * number})
            seeded = settings.round.model_copy(update={"advanced": advanced})
            staged = settings.model_copy(update={"state": state, "round": seeded})
            network = adapt(staged, ARMS[run.arm], network).candidate
        matrix.append(_row(network, stages, settings))
    return {
        "key": "continual-" + run.key(),
        "start": run.start,
        "arm": run.arm,
        "seed": run.seed,
        "extra": dict(run.extra),
        "severity": SEVERITY,
        "stages": list(stages),
        "matrix": matrix,
        "seconds": time.monotonic() - began,
    }


def _stage_state(run: Run, settings: Settings, stage: str, images: tuple[LabelledImage, ...]) -> Path:
    """Return a state directory like that of the start, with the frames of `stage` in its buffer."""
    state = run.work / "stages" / settings.state.name / f"{stage.replace(' ', '_')}-{SEVERITY}-{os.getpid()}"
    if not state.exists():
        ours, theirs = StateLayout(state), StateLayout(settings.state)
        for folder, original in ((ours.checkpoints, theirs.checkpoints), (ours.source, theirs.source)):
            shutil.copytree(original, folder)
    fill_buffer(state, settings, images)
    return state


def _row(network: SegmentationNetwork, stages: Stages, settings: Settings) -> list[float]:
    """Return the mIoU (0-1) on every stage; day and day again have the same frames and are scored once."""
    rows: list[float] = []
    for name, images in stages.items():
        rows.append(rows[0] if name == "day again" else score(network.eval(), images, settings).miou)
    return rows
