"""Faults: what happens when files, folders, kernels and processes misbehave, and whether the promise holds after it.

The promise (`promise.py` is its oracle): every file in the drop folder is committed exactly once, or refused with a
recorded reason, or still waiting in the folder; a committed frame is never lost or altered before it is evicted.

- `promise.py`: `check_promise(state, folder, dropped)`, for every fault test, at its end and whenever nothing moves;
- `test_promise.py`: the oracle itself must notice what it is there for;
- `drop_world.py`: a drop folder with a real ingest; `world.drop` writes a file and remembers it for the oracle;
- `test_watch_*.py`: noticing files: bursts, deaf and dead observers, a full kernel queue, storms of renames, slow and
  competing writers, roots that vanish, names and links of every kind.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.drop_world import DropWorld


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
