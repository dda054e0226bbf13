"""One run of `adaptation.py`: a start, an arm, a seed -> one JSON line. All that learns is the code of adapters."""

import copy
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from adaptation_arms import ALL_STARTS, ARMS, Arm, Overrides, Start, settings_of
from adaptation_data import fill_buffer
from torch import Tensor

from adapters.checkpoints.checkpoint import load_version
from adapters.errors import TrainingFailed
from adapters.networks.network import SegmentationNetwork
from adapters.rounds.inputs import load_inputs
from adapters.rounds.optim import learning_rate_factor
from adapters.rounds.source_training import pretrain
from adapters.rounds.training import Training
from configs.settings import Settings
from storage.buffer.frames import FrameBuffer
from storage.durable.digest import digest_of
from storage.layout import StateLayout
from storage.registry.registry import CheckpointRegistry
from storage.rounds.records import RoundSpec

LEARNING = {"network", "pretrain", "buffer", "mfm", "recipe", "round"}
"""Sections of the settings that decide what is learnt."""
START_VERSION = 1


@dataclass(frozen=True, slots=True)
class Run:
    """The run that one line of the results describes."""

    data: Path
    """Folder of the data set: with day_train, day_val and dusk_stream, or with drive and stare."""
    work: Path
    """Folder of source models, buffers and results; never inside the repository."""
    start: str
    """Key of ALL_STARTS."""
    arm: str
    """Key of ARMS."""
    seed: int
    """Seed of the round."""
    every: int = 0
    """Score the student every this many steps; 0 scores at the end only."""
    extra: Overrides = field(default_factory=dict)
    """Settings beyond those of preset, start and arm."""

    @property
    def begins(self) -> Start:
        """What the run starts from."""
        return ALL_STARTS[self.start]

    def settings(self) -> Settings:
        """Return the settings of this run."""
        layers = (ARMS[self.arm].settings, self.extra, {"round.advanced.seed": self.seed})
        return settings_of(self.begins, self.data, self.work, start_state(self), *layers)

    def key(self) -> str:
        """Return a key that two runs share only if every setting that determines their results is equal.

        Defaults are in it: with those of a later mfmd it is another run.
        """
        part = self.settings().model_dump(mode="json", include=LEARNING)
        return digest_of(json.dumps([self.start, self.arm, part], sort_keys=True).encode())[:16]


def start_state(run: Run) -> Path:
    """Return the state directory of a run's source model; it depends on the settings."""
    settings = settings_of(run.begins, run.data, run.work, run.work, run.extra)
    part = settings.model_dump(mode="json", include={"network", "pretrain", "buffer"})
    return run.work / "starts" / f"{run.start}-{digest_of(json.dumps(part, sort_keys=True).encode())[:8]}"


def prepare_start(run: Run) -> None:
    """Train the source model of `run` and fill its buffer with the target, unless that is done."""
    torch.set_num_threads(1)
    settings, data_set = run.settings(), run.begins.data_set
    data_set.prepare(run.data, run.work)
    layout = StateLayout(settings.state)
    if not layout.checkpoints.is_dir() or not CheckpointRegistry(layout.checkpoints).versions():
        began = time.monotonic()
        manifest = pretrain(settings)
        print(f"{run.start}: {time.monotonic() - began:.0f} s, {manifest.scores}", flush=True)
    fill_buffer(settings.state, settings, data_set.parts(run.data)[data_set.target])


def execute(run: Run) -> dict[str, Any]:
    """Adapt, score, and return the line."""
    torch.set_num_threads(1)
    settings, arm, began = run.settings(), ARMS[run.arm], time.monotonic()
    curve: list[dict[str, float]] = []
    if arm.trains:
        adapted = adapt(settings, arm, watch=_watch(run, settings, curve))
    else:
        adapted = Adapted(source_model(settings), 0.0)
    line: dict[str, Any] = {
        "key": run.key(),
        "start": run.start,
        "arm": run.arm,
        "seed": run.seed,
        "extra": dict(run.extra),
        "settings": settings.model_dump(mode="json", include=LEARNING, exclude_defaults=True),
        "curve": curve,
        "train_seconds": adapted.seconds,
        **_final("candidate", run, settings, adapted.candidate),
    }
    for name, average in adapted.averages.items():
        line |= _final(name, run, settings, average)
    return line | {"seconds": time.monotonic() - began}


def source_model(settings: Settings) -> SegmentationNetwork:
    """Return the start of `settings.state`, in eval mode."""
    registry = CheckpointRegistry(StateLayout(settings.state).checkpoints)
    return load_version(registry, START_VERSION, torch.device("cpu"))[0]


class Adapted(NamedTuple):
    """What one round gives."""

    candidate: SegmentationNetwork
    seconds: float
    """Of its training."""
    averages: Mapping[str, SegmentationNetwork] = MappingProxyType({})
    """Averages of candidate and first weights by name, if the arm wants them."""


def adapt(
    settings: Settings,
    arm: Arm,
    student: SegmentationNetwork | None = None,
    watch: Callable[[int, SegmentationNetwork], None] | None = None,
) -> Adapted:
    """Run one round on the frames of `settings.state`.

    It starts from `student`, which is trained in place, or from the source model. `watch(steps done, student)` is
    called after each step. Raises TrainingFailed at a loss that is not finite.
    """
    os.environ["ACCELERATE_MIXED_PRECISION"] = settings.round.mixed_precision  # as `accelerate launch` says it
    inputs = load_inputs(_spec(settings), settings if arm.source else settings.model_copy(update={"source": None}))
    with inputs.buffer:
        if student is not None:
            inputs = replace(inputs, student=student.requires_grad_(True))  # the teacher of before needed no gradients
        first = copy.deepcopy(inputs.student)
        training = Training(inputs)
        began, losses = time.monotonic(), list[Tensor]()
        for step in range(settings.round.steps):
            factor = learning_rate_factor(step, settings.round.steps, settings.round.optim)
            losses += training.step(factor).losses.values()
            if watch is not None:
                watch(step + 1, inputs.student)
        trained = time.monotonic() - began
        if losses and not bool(torch.stack(losses).isfinite().all()):
            raise TrainingFailed("a loss was not finite")
        candidate = training.candidate()
        others = training.other_candidates(candidate, first) if arm.averages else {}
        return Adapted(candidate, trained, {name: others[name] for name in others if name.startswith("average")})


def _spec(settings: Settings) -> RoundSpec:
    """Return the specification as the daemon writes it: the source model, all frames of the buffer."""
    with FrameBuffer.open(StateLayout(settings.state), settings.buffer, writable=False) as buffer:
        frames = tuple(record.id for record in buffer.records())
    return RoundSpec(
        round=0,
        incumbent=START_VERSION,
        released=START_VERSION,
        train_frames=frames,
        holdout_frames=(),
        settings=settings.model_dump(mode="json"),
        created=time.time(),
        trigger="manual",
    )


def _watch(
    run: Run, settings: Settings, curve: list[dict[str, float]]
) -> Callable[[int, SegmentationNetwork], None] | None:
    """Return a callback that scores a copy of the student into `curve` every `run.every` steps."""
    if not run.every:
        return None

    def watch(step: int, student: SegmentationNetwork) -> None:
        if step % run.every == 0:
            scores = _final("student", run, settings, copy.deepcopy(student).eval())
            parts = (run.begins.data_set.target, run.begins.data_set.source)
            curve.append({"step": step, **{part: scores[f"student_{part}"] for part in parts}})

    return watch


def _final(prefix: str, run: Run, settings: Settings, network: SegmentationNetwork) -> dict[str, Any]:
    """Return the scores of the run's data set, each name after `prefix`."""
    scores = run.begins.data_set.scores(network, run.data, settings)
    return {f"{prefix}_{name}": value for name, value in scores.items()}
