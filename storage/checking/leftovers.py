"""Find unfinished files of a killed process, in every folder where files first appear under a temporary name."""

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from storage.buffer.files import ARRAY, RESIZED
from storage.checking.catalog import REPAIR
from storage.checking.problem import Problem, Scope
from storage.durable import PARTIAL
from storage.layout import StateLayout


def check_leftovers(scope: Scope) -> Iterator[Problem]:
    """Return everything that has the name of an unfinished file."""
    resized = scope.layout.root / RESIZED
    if resized.is_dir():
        remedy = f"{REPAIR} finishes it, or the daemon's next start does"
        yield Problem("unfinished", resized, "a resize of the buffer was killed", remedy)
    for folder in _folders(scope.layout):
        for path in sorted(folder.glob(f"*{PARTIAL}")):
            remedy = f"{REPAIR} removes it, or the next run of its owner does"
            yield Problem("unfinished", path, "leftover of a killed process", remedy, partial(_remove, path))


def _folders(layout: StateLayout) -> Iterator[Path]:
    checkpoints = layout.checkpoints
    yield from (
        layout.root,
        layout.buffer,
        layout.frames_zarr,
        layout.frames_zarr / ARRAY,
        layout.source,
        layout.rounds,
    )
    yield from (checkpoints, checkpoints / "versions", checkpoints / "refs", checkpoints / "pruned")
    yield from sorted((checkpoints / "versions").glob("[0-9]*"))
    yield from (layout.shadow, *sorted(layout.shadow.glob("[0-9]*")))
    for round in sorted(layout.rounds.glob("[0-9]*")):
        yield from (round, round / "state")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
