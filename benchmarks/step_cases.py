"""What `step_time.py` times: training steps on images that it draws itself, each case in a process of its own.

One process a case: its peak memory is its own, and precision, threads and compilation are set before torch builds
anything. The processes wait in turn for the order to do a step, so that cases are interleaved.
"""

import os
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from reference_loop import ReferenceLoop
from torch.profiler import ProfilerActivity, profile

from adapters.checkpoints.checkpoint import make_manifest, save_weights
from adapters.mfm.rebuilder import build_rebuilder
from adapters.networks.build import build_network
from adapters.networks.encoders.vit import PlainVit
from adapters.networks.hf_directory import quiet_transformers
from adapters.recipes.recipe import StepBatch
from adapters.rounds.inputs import load_inputs
from adapters.rounds.training import Training
from configs.load import merge
from configs.recipe import SelfTrainingSettings
from configs.settings import Settings
from storage.buffer.catalog_records import FileFact
from storage.buffer.frame_writer import NewFrame
from storage.buffer.frames import FrameBuffer
from storage.durable.digest import digest_of
from storage.layout import StateLayout
from storage.media.images import fit_frame
from storage.registry.registry import CheckpointRegistry
from storage.rounds.records import RoundSpec

FRAMES, LABELLED = 12, 12
"""Images drawn of each kind."""
CELL = 16
"""Side of the patches of one class (pixels)."""
WARM_UP = 2
"""Steps before anything is timed."""

Sections = dict[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Case:
    """One row of the table."""

    name: str
    """What the table calls it."""
    sections: Sections = field(default_factory=dict)
    """Settings that differ from the common ones."""
    reference: bool = False
    """The reference loop instead of our step."""
    turn: int = 1
    """Optimizer steps over which a sample is the mean, where steps differ."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One step, as timed: the mean over the steps of the case's turn."""

    wall: float
    """Seconds."""
    cpu: float
    """Seconds of the process's processor time, all threads."""
    waiting: float
    """Seconds of `wall` spent waiting for crops."""


def named(recipe: str) -> dict[str, Any]:
    """Return the recipe's settings: its name, the things of omuda, whose masks go by region, few images for mfm_da."""
    if recipe == "mfm_da":
        return {"name": recipe, "advanced": {"target_images": 1}}
    return {"name": recipe, "thing_classes": ["class 1"]} if recipe == "omuda" else {"name": recipe}


def settings_of(workspace: Path, common: Sections, case: Case, classes: int) -> Settings:
    """Return the settings of a case below `workspace`; networks of different shape have a state directory each."""
    sections: Sections = {name: merge(values, case.sections.get(name, {})) for name, values in common.items()}
    network = sections["network"]
    shape = (network["name"], network["encoder"], "multi" if network.get("multi_resolution") else "single")
    folder = workspace / "-".join(shape)
    colors = np.random.default_rng(0).permutation(256**2)[:classes].tolist()
    base: dict[str, Any] = {
        "state": folder / "state",
        "classes": [{"name": f"class {i}", "color": (c // 256, c % 256, 0)} for i, c in enumerate(colors)],
        "watch": {"folder": folder / "drop"},
        "source": {"images": folder / "images", "labels": folder / "labels"},
        **sections,
    }
    return Settings.model_validate(base)


def draw_state(settings: Settings) -> None:
    """Frames, labelled images and a network with random weights, all from fixed seeds; nothing when already there.

    The same for the ViTs that the settings name.
    """
    draw_vit(settings.network.pretrained)
    if isinstance(settings.recipe, SelfTrainingSettings):
        draw_vit(settings.recipe.advanced.foundation.directory)
    layout = StateLayout(settings.state)
    if layout.root.exists():
        return
    layout.create()
    assert settings.source is not None and settings.source.images is not None and settings.source.labels is not None
    settings.source.images.mkdir(parents=True)
    settings.source.labels.mkdir(parents=True)
    height, width, classes = settings.buffer.height, settings.buffer.width, len(settings.classes)
    for seed in range(LABELLED):
        image, label = draw(seed, height, width, classes)
        Image.fromarray(image).save(settings.source.images / f"{seed:02d}.png")
        Image.fromarray(label).save(settings.source.labels / f"{seed:02d}.png")
    with FrameBuffer.open(layout, settings.buffer, writable=True) as buffer:
        for seed in range(100, 100 + FRAMES):
            image, _ = draw(seed, height, width, classes)
            fact = FileFact(f"{seed}.png", image.nbytes, seed)
            fitted = fit_frame(image, height, width)
            buffer.append([NewFrame(fact, digest_of(image.tobytes()), float(seed), height, width, fitted)])
    torch.manual_seed(0)
    weights = settings.state / "random.safetensors"
    save_weights(build_network(settings.network.architecture(), classes), weights)
    CheckpointRegistry(layout.checkpoints).add(weights, make_manifest(settings, origin="import"), by="import")


def draw_vit(directory: Path | None) -> None:
    """Save a ViT with random weights from a fixed seed, if it is missing; `directory` is named as encoders are."""
    if directory is None or directory.exists():
        return
    torch.manual_seed(0)
    with quiet_transformers():
        build_vit(directory.name).model.save_pretrained(directory)


def build_vit(name: str) -> PlainVit:
    """Return the DINOv2 or DINOv3 of that `name`, untrained."""
    from adapters.networks.encoders.dinov2 import build_dinov2  # loads transformers for seconds
    from adapters.networks.encoders.dinov3 import build_dinov3

    return (build_dinov2 if name.startswith("dinov2") else build_dinov3)(name, None, pyramid=False)


def draw(seed: int, height: int, width: int, classes: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Draw an image [H, W, 3] of patches with noise, and their classes [H, W]."""
    generator = np.random.default_rng(seed)
    patches = generator.integers(classes, size=(-(-height // CELL), -(-width // CELL)), dtype=np.uint8)
    label = patches.repeat(CELL, axis=0).repeat(CELL, axis=1)[:height, :width]
    colors = np.random.default_rng(1).integers(40, 216, size=(classes, 3))
    image = colors[label] + generator.normal(0.0, 12.0, (height, width, 3))
    return np.clip(image, 0, 255).astype(np.uint8), np.ascontiguousarray(label)


class Runner:
    """Does the steps of one case."""

    def __init__(self, settings: Settings, case: Case) -> None:
        # As `accelerate launch` sets it for a round.
        os.environ["ACCELERATE_MIXED_PRECISION"] = settings.round.mixed_precision
        spec = RoundSpec(
            round=1,
            incumbent=1,
            released=1,
            train_frames=tuple(range(1, FRAMES + 1)),
            holdout_frames=(),
            settings=settings.model_dump(mode="json"),
            created=0.0,
            trigger="manual",
        )
        inputs = load_inputs(spec, settings)
        self._training, self._turn = Training(inputs), case.turn
        self.device = inputs.accelerator.device
        self.images = self._training.images_per_step
        self._waiting = 0.0
        self._crops, self._training._next_batch = self._training._next_batch, self._timed_batch  # type: ignore[method-assign]
        self._reference = self._build_reference(settings) if case.reference else None
        for _ in range(WARM_UP):
            self.step()

    def _build_reference(self, settings: Settings) -> ReferenceLoop:
        """Build the reference loop on the same network; free what only our step needs."""
        training = self._training
        student, rebuilder = training.student, None
        if settings.mfm.enabled:
            rebuilder = build_rebuilder(student, training.crop, settings.mfm)
        del training.recipe, training.optimizer
        return ReferenceLoop(student, rebuilder, settings)

    def _timed_batch(self) -> StepBatch:
        started = time.perf_counter()
        batch = self._crops()
        self._waiting += time.perf_counter() - started
        return batch

    def step(self) -> Sample:
        """One optimizer step, the mean of a turn, until the device has done it."""
        self._waiting = 0.0
        started, cpu = time.perf_counter(), time.process_time()
        for _ in range(self._turn):
            if self._reference is not None:
                self._reference.step(self._timed_batch())
            else:
                self._training.step(1.0)
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        spent = time.perf_counter() - started, time.process_time() - cpu, self._waiting
        return Sample(*(seconds / self._turn for seconds in spent))

    def peak_memory(self) -> float:
        """Most memory held so far (MiB): of the GPU by tensors, otherwise of the whole process (VmHWM)."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated() / 2**20
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024

    def profile_table(self, steps: int, rows: int) -> str:
        """Return the operations that take longest, over `steps` steps, as a table of torch.profiler."""
        gpu = self.device.type == "cuda"
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]
        with profile(activities=activities, record_shapes=True) as profiler:
            for _ in range(steps):
                self.step()
        by = "self_cuda_time_total" if gpu else "self_cpu_time_total"
        averages = profiler.key_averages(group_by_input_shape=True)
        table: str = averages.table(sort_by=by, row_limit=rows, max_name_column_width=40, max_shapes_column_width=60)
        return table


def serve(connection: Connection, settings: Settings, case: Case) -> None:
    """Run the process of a case: answer orders (`step`, `facts`, or (steps, rows) to profile) until `end`."""
    if settings.round.advanced.threads:
        torch.set_num_threads(settings.round.advanced.threads)
    runner = Runner(settings, case)
    connection.send("ready")
    while (order := connection.recv()) != "end":
        if order == "step":
            connection.send(runner.step())
        elif order == "facts":
            connection.send((runner.images, runner.peak_memory()))
        else:
            connection.send(runner.profile_table(*order))
