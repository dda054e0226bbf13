"""`python -m tests.faults.soak --kills 1000`: the random kill -9 loop for long; says its seed, to be run again."""

import argparse
import secrets
import tempfile
import time
from pathlib import Path

from tests.faults.kill_loop import kill_again_and_again

ROUND = 50
"""Kills of one state directory before the next one begins with an empty folder."""


def main() -> None:
    """Kill as often as asked; ends with an AssertionError as soon as the promise is broken, and keeps the evidence."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=None)
    arguments = parser.parse_args()
    seed = secrets.randbelow(10**6) if arguments.seed is None else arguments.seed
    print(f"seed {seed}", flush=True)
    started, done = time.monotonic(), 0
    while done < arguments.kills:
        kills = min(ROUND, arguments.kills - done)
        folder = Path(tempfile.mkdtemp(prefix="mfmd-soak-"))
        kill_again_and_again(folder, kills, seed + done)
        done += kills
        print(f"{done} kills, {time.monotonic() - started:.0f} s, the promise holds", flush=True)
        remove(folder)


def remove(folder: Path) -> None:
    """What held is not evidence."""
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()


if __name__ == "__main__":
    main()
