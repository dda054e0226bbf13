"""What follows a drift alarm, through the real daemon: day, then dusk; when each round ends, and what serves then.

With `--statistics on` BatchNorm statistics alone are tried first; `off` is the baseline that starts with training.
Served mIoU is measured on hidden scenes of both worlds when the rounds of the alarm have ended.

    python benchmarks/gate_quick.py --root out/quick --modes source free --statistics on off
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

from gate_worlds import drawn, world_folder

from daemon.demo.driving import DrivenDaemon
from daemon.demo.scoring import pair_up, score_served
from daemon.rounds.history import summarise
from storage.durable.record import read_record
from storage.gate.drift import Drift

DAY, DUSK, GROUP = 96, 64, 8
"""Frames of day before, of dusk after; frames that are dropped together, each second."""
FIRST = 4_000_000
"""First seed of the scenes."""
SECONDS = 900.0
"""Longest wait for anything (seconds)."""


def follow(root: Path, *, source: bool, statistics: bool) -> Iterator[str]:
    """Yield a row for each round that the alarm starts, and the served scores after it."""
    schedule = {"new_frames": 1000, "min_frames": DAY + GROUP, "advanced": {"statistics_first": statistics}}
    world_folder(root, source=source, schedule=schedule)
    with DrivenDaemon(root / "run" / "mfmd.yaml") as driven:
        driven.wait_until_serving(1, SECONDS)
        for name, count in (("day", DAY), ("dusk", DUSK)):
            pictures = drawn(root / "run" / "camera" / name, name, FIRST, count, labelled=False)
            for place in range(0, count, GROUP):
                driven.drop(pictures[place : place + GROUP])
                time.sleep(1.0)
            driven.wait_until_committed(DAY + (count if name == "dusk" else 0), SECONDS)
            if name == "day":
                driven.wait_for(lambda: _looked(driven, DAY), "the observer", SECONDS)
        driven.wait_for(lambda: _alarm(driven), "a drift alarm", SECONDS)
        for number in (1, 2) if statistics else (1,):
            driven.follow_round(number, SECONDS)
            serving = driven.registry.serving()
            driven.wait_until_serving(serving.version if serving else 1, SECONDS)
            scores = [
                100.0 * score_served(driven, pair_up(root / "run" / "test" / name)).miou for name in ("dusk", "day")
            ]
            item, alarm = summarise(driven.rounds.folder(number)), _alarm(driven)
            after = (item.ended or 0.0) - (alarm or 0.0)
            name = f"{item.effort}, {item.result}, {item.seconds or 0.0:.0f} s"
            yield f"{name} | {after:.0f} | {scores[0]:.1f} | {scores[1]:.1f} | {item.reason}"


def _alarm(driven: DrivenDaemon) -> float | None:
    drift = read_record(driven.layout.drift, Drift)
    return drift.last_alarm if drift else None


def _looked(driven: DrivenDaemon, frames: int) -> bool | None:
    drift = read_record(driven.layout.drift, Drift)
    return True if drift is not None and drift.upto >= frames and not drift.missed else None


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--modes", nargs="+", choices=("source", "free"), default=["source", "free"])
    parser.add_argument("--statistics", nargs="+", choices=("on", "off"), default=["on", "off"])
    options = parser.parse_args()
    print("| mode | statistics first | round | s after the alarm | served, dusk | served, day | reason |")
    print("|---|---|---|---|---|---|---|")
    for mode in options.modes:
        for statistics in options.statistics:
            for row in follow(options.root, source=mode == "source", statistics=statistics == "on"):
                print(f"| {mode} | {statistics} | {row} |", flush=True)


if __name__ == "__main__":
    main()
