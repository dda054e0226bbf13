"""Draw many scenes into folders, on all cores."""

import multiprocessing
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from daemon.demo.conditions import Condition
from daemon.demo.scenes import draw_scene


@dataclass(frozen=True, slots=True)
class Job:
    """One scene to draw, and where it goes."""

    condition: Condition
    seed: int
    images: Path
    """Folder of the picture."""
    labels: Path | None
    """Folder of the label image; none draws no label: nothing that reads the folder could cheat."""


def jobs(condition: Condition, seeds: Iterable[int], images: Path, labels: Path | None) -> list[Job]:
    """One job for each seed; makes the folders."""
    for folder in (images, labels):
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
    return [Job(condition, seed, images, labels) for seed in seeds]


def draw_all(work: list[Job], on_done: Callable[[int], None]) -> list[Path]:
    """Draw every scene; `on_done` hears how many are done. Returns the pictures in the order of `work`."""
    # Spawned, not forked: the caller may have threads (progress display, torch).
    context = multiprocessing.get_context("spawn")
    drawn = []
    with ProcessPoolExecutor(max_workers=os.cpu_count() or 1, mp_context=context) as pool:
        for path in pool.map(draw_one, work, chunksize=4):
            drawn.append(path)
            on_done(len(drawn))
    return drawn


def draw_one(job: Job) -> Path:
    """Draw one scene and write it as PNG; returns the picture's path."""
    scene = draw_scene(job.condition, job.seed)
    name = f"{job.condition.name}_{job.seed:05d}.png"
    Image.fromarray(scene.image).save(job.images / name, compress_level=1)
    if job.labels is not None:
        Image.fromarray(scene.label).save(job.labels / name, compress_level=1)
    return job.images / name
