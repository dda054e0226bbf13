"""Frames until the drift alarm finds a drawn change of world, through the real daemon and its observer.

Day comes first, then another world, until the alarm is raised or `--after` frames came. No round starts meanwhile, so
the released model serves all along. Frames are independent scenes, dropped in groups that the observer keeps up with.

    python benchmarks/gate_drift_worlds.py --root out/drift --before 100 400
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from gate_worlds import drawn, world_folder

from daemon.demo.driving import DrivenDaemon
from storage.buffer.observations import Observations
from storage.durable.record import read_record
from storage.gate.drift import Drift

GROUP = 16
"""Frames that are dropped together."""
FIRST = 3_000_000
"""First seed of the scenes."""
SECONDS = 120.0
"""Longest wait for a group (seconds)."""


def show(driven: DrivenDaemon, pictures: Sequence[Path], committed: int) -> Drift | None:
    """Drop pictures after `committed` frames, wait until they are observed and looked at; return the drift alarm."""
    driven.drop(pictures)
    newest = committed + len(pictures)

    def looked() -> Drift | None:
        if not driven.layout.observations.exists():
            return None
        with Observations.open(driven.layout.observations, writable=False) as observations:
            seen = observations.newest()
        drift = read_record(driven.layout.drift, Drift)
        return drift if drift is not None and seen == drift.upto == newest and not drift.missed else None

    return driven.wait_for(looked, f"frame {newest} to be looked at", SECONDS)


def found(root: Path, world: str, before: int, after: int, *, source: bool) -> tuple[float, int]:
    """Return after how many frames of `world` the alarm is raised (infinite: never), and the alarms before them."""
    world_folder(root, source=source, schedule={"enabled": False})
    first = drawn(root / "run" / "first", "day", FIRST, before, labelled=False)
    second = drawn(root / "run" / "second", world, FIRST + before, after, labelled=False)
    with DrivenDaemon(root / "run" / "mfmd.yaml") as driven:
        driven.wait_until_serving(1, 90.0)
        known = 0
        for place in range(0, before, GROUP):
            drift = show(driven, first[place : place + GROUP], place)
            known = drift.alarms if drift else 0
        for place in range(0, after, GROUP):
            drift = show(driven, second[place : place + GROUP], before + place)
            if drift is not None and drift.alarms > known:
                return drift.after - before, known
    return math.inf, known


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--before", type=int, nargs="+", default=[100, 400], help="day frames before the change")
    parser.add_argument("--after", type=int, default=320, help="most frames after it")
    parser.add_argument("--worlds", nargs="+", default=["dusk", "fog", "night", "day"])
    parser.add_argument("--modes", nargs="+", choices=("source", "free"), default=["source", "free"])
    options = parser.parse_args()
    print("| mode | day frames before | change to | frames until the alarm | alarms before |")
    print("|---|---|---|---|---|")
    for mode in options.modes:
        for before in options.before:
            for world in options.worlds:
                delay, early = found(options.root, world, before, options.after, source=mode == "source")
                print(f"| {mode} | {before} | {world} | {delay:g} | {early} |", flush=True)


if __name__ == "__main__":
    main()
