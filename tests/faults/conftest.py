"""Faults: what happens when files, folders, kernels and processes misbehave, and whether the promise holds after it.

The promise (`promise.py` is its oracle): every file in the drop folder is committed exactly once, or refused with a
recorded reason, or still waiting in the folder; a committed frame is never lost or altered before it is evicted.

- `promise.py`: `check_promise(state, folder, dropped)`, for every fault test, at its end and whenever nothing moves;
- `test_promise.py`: the oracle itself must notice what it is there for;
- `drop_world.py`: a drop folder with a real ingest; `world.drop` writes a file and remembers it for the oracle;
- `test_watch_*.py`: noticing files: bursts, deaf and dead observers, a full kernel queue, storms of renames, slow and
  competing writers, roots that vanish, names and links of every kind.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.drop_world import DropWorld

MEMORY = Path("/dev/shm")
ENOUGH = 2**30
"""Free bytes that make it worth using; containers often have 64 MiB."""


@pytest.fixture
def quick_root(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one, for tests that make every fault themselves.

    There every call is made as on a disk, but thousands of fsyncs need not wait for one.
    """
    if not os.access(MEMORY, os.W_OK) or shutil.disk_usage(MEMORY).free < ENOUGH:
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=MEMORY, prefix="mfmd-faults-") as folder:
        yield Path(folder)


@pytest.fixture
def drop_world(tmp_path: Path) -> Iterator[Callable[..., DropWorld]]:
    """Make worlds in one place, each with `watch` settings of its own; each is closed at the end."""
    made: list[DropWorld] = []

    def make(**watch: Any) -> DropWorld:
        made.append(DropWorld(tmp_path, **watch))
        return made[-1]

    yield make
    for world in made:
        world.close()
