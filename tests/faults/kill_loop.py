"""A real ingest process, killed at random moments again and again while files keep coming."""

import random
import time
from pathlib import Path

from tests.faults import processes, world
from tests.faults.oracle import Oracle

NEW_FILES = 3
"""Good files that come between two kills; duplicates and bad ones come with them."""
LONGEST = 0.25
"""A kill comes within this time after ingest began (seconds)."""


def kill_again_and_again(root: Path, kills: int, seed: int) -> None:
    """Kill ingest `kills` times; the promise holds after each, and after a last run that ends by itself."""
    moments, oracle = random.Random(seed), Oracle(root)
    (root / "drop").mkdir()
    for number in range(kills):
        oracle.drop(world.drop_files(root, first=number * NEW_FILES, good=NEW_FILES))
        runs = len(world.acknowledged(root, "running"))
        process = processes.start(world.ingest_forever, root)
        if moments.random() < 0.8:  # otherwise it may die while it opens what the one before left
            wait_for_run(root, runs)
        process.join(moments.uniform(0.0, LONGEST))
        assert process.is_alive(), f"kill {number}: ingest ended by itself"
        process.kill()
        process.join()
        oracle.check()
        if moments.random() < 0.2:  # as an operator might, between a crash and the next start
            oracle.repair()
    world.ingest_all(root)
    oracle.check_finished()


def wait_for_run(root: Path, runs: int) -> None:
    """Until ingest says that it runs."""
    deadline = time.monotonic() + world.PATIENCE
    while len(world.acknowledged(root, "running")) == runs:
        assert time.monotonic() < deadline, "ingest did not begin"
        time.sleep(0.002)
