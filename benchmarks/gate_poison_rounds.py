"""What hostile folders do to the served model: rounds through the real daemon, after it adapted to dusk.

The daemon adapts to drawn dusk once; each hostile folder starts from a copy of that state. Its frames are dropped, the
rounds that they start are waited for and further ones are asked for, and the plane answers hidden scenes of dusk and
day. Then day comes back, and dusk, a frame a second: the plane answers hidden scenes of the world that is there, after
recall. Baselines of the same run: `--leave-out off` leaves no frame out before a round, `--folders none` drops nothing.

    python benchmarks/gate_poison_rounds.py --root out/poison --modes free --rounds 3
"""

import argparse
import contextlib
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import yaml
from gate_poison_folders import FOLDERS, hostile
from gate_worlds import drawn, wait_until_observed, world_folder

from daemon.control.client import ControlClient
from daemon.demo.driving import DrivenDaemon, DriveTimeout
from daemon.demo.scoring import ServedScore, pair_up, score_served
from daemon.errors import DaemonError

FRAMES = 64
NONE = "none"
"""No hostile folder: the same rounds on the frames of dusk alone."""
FIRST = 5_000_000
"""First seed of the drawn scenes."""
ROUND_SECONDS = 300.0
START_SECONDS = 90.0
PATIENCE_SECONDS = 45.0
"""Longest wait for a round to start: it waits for the observer, and none starts when all frames are left out."""


BACK = ("day", "dusk")
"""Worlds that come back after the rounds."""
BACK_FRAMES = 24
"""Frames of a world that comes back, one a second."""
SETTLE_SECONDS = 20.0
"""What a recall has left after the last of them was observed (seconds)."""


class Served(NamedTuple):
    """What serves at one time (points)."""

    version: int
    dusk: float
    day: float
    rarest: float
    """Least IoU of a class on dusk."""


class Outcome(NamedTuple):
    """What one hostile folder did."""

    before: Served
    after: Served
    verdicts: Counter[str]
    """Verdicts of its rounds by decision; `no round` where none could start."""
    back: dict[str, tuple[int, float]]
    """Version and served mIoU (points) on each world of `BACK`, when it is back."""


def adapt_to_dusk(root: Path, *, source: bool, leave_out: bool) -> Path:
    """Return a folder whose daemon has adapted to dusk; `leave_out`: whether frames are left out before a round."""
    base = root / f"base-{'source' if source else 'free'}"
    if not base.exists():
        sections: dict[str, dict[str, object]] = {
            "schedule": {"new_frames": FRAMES, "min_frames": 24},
            "drift": {"advanced": {"starts_round": False}},  # the number of rounds is given
        }
        world_folder(root, source=source, **sections)
        with DrivenDaemon(root / "run" / "mfmd.yaml") as driven:
            driven.wait_until_serving(1, START_SECONDS)
            driven.drop(drawn(root / "dusk", "dusk", FIRST, FRAMES, labelled=False))
            driven.follow_round(1, ROUND_SECONDS)
        shutil.copytree(root / "run", base, symlinks=True)
    run = root / "run"
    shutil.rmtree(run)
    shutil.copytree(base, run, symlinks=True)
    config = run / "mfmd.yaml"
    values = yaml.safe_load(config.read_text(encoding="utf-8"))
    values["round"]["advanced"] |= {} if leave_out else {"leave_out": []}
    values["recall"] = {"dwell_seconds": 5.0}
    config.write_text(yaml.safe_dump(values), encoding="utf-8")
    return run


def run_folder(root: Path, name: str, rounds: int, *, source: bool, leave_out: bool) -> Outcome:
    """Drop the hostile folder `name`, or nothing, and let `rounds` rounds run."""
    run = adapt_to_dusk(root, source=source, leave_out=leave_out)
    verdicts: Counter[str] = Counter()
    with DrivenDaemon(run / "mfmd.yaml") as driven:
        driven.wait_until_serving(driven.registry.serving_version(), START_SECONDS)
        before = _served(driven)
        committed, done = driven.committed(), len(driven.rounds.numbers())
        scenes = drawn(root / "scenes", "dusk", FIRST + FRAMES, FRAMES, labelled=False)
        frames = hostile(name, scenes, root / "hostile" / name, seed=1) if name != NONE else []
        driven.drop(frames)
        try:
            driven.wait_until_committed(committed + len(frames), START_SECONDS)
        except DriveTimeout:
            verdicts["not all committed"] += 1
        for number in range(done + 1, done + rounds + 1):
            try:
                driven.wait_for(lambda number=number: _started(driven, number), f"round {number}", PATIENCE_SECONDS)
            except DriveTimeout:
                verdicts["no round"] += 1
                break
            verdicts[driven.follow_round(number, ROUND_SECONDS).decision] += 1
        after = _served(driven)
        return Outcome(before, after, verdicts, {world: _come_back(driven, root, world) for world in BACK})


def _come_back(driven: DrivenDaemon, root: Path, world: str) -> tuple[int, float]:
    """Let new frames of `world` arrive; return the version that serves then and its mIoU there (points)."""
    first = FIRST + (2 + BACK.index(world)) * FRAMES
    for picture in drawn(root / "back" / world, world, first, BACK_FRAMES, labelled=False):
        driven.drop([picture])
        time.sleep(1.0)
    wait_until_observed(driven, ROUND_SECONDS)
    time.sleep(SETTLE_SECONDS)
    score = score_served(driven, pair_up(driven.config.parent / "test" / world))
    return score.version, 100.0 * score.miou


def _started(driven: DrivenDaemon, number: int) -> bool | None:
    """Ask for round `number` until it is there; the schedule may have started it, or the last one just ends."""
    if driven.round(number) is None:
        with contextlib.suppress(DaemonError):
            ControlClient(driven.layout).start_round()
    return driven.round(number) is not None or None


def _served(driven: DrivenDaemon) -> Served:
    folder = driven.config.parent / "test"
    dusk, day = (score_served(driven, pair_up(folder / world)) for world in ("dusk", "day"))
    return Served(dusk.version, 100.0 * dusk.miou, 100.0 * day.miou, _least(dusk))


def _least(score: ServedScore) -> float:
    return 100.0 * min(float(value) for value in score.iou if value == value)


def outcomes(root: Path, names: list[str], rounds: int, mode: str, leave_out: str) -> Iterator[str]:
    """Yield one row of the table for each folder."""
    for name in names:
        found = run_folder(root, name, rounds, source=mode == "source", leave_out=leave_out == "on")
        before, after = found.before, found.after
        verdicts = ", ".join(f"{count} {decision}" for decision, count in sorted(found.verdicts.items()))
        pairs = zip((before.dusk, before.day, before.rarest), (after.dusk, after.day, after.rarest), strict=True)
        cells = [f"{then:.1f} -> {now:.1f}" for then, now in pairs]
        cells += [f"{miou:.1f} (version {version})" for version, miou in found.back.values()]
        yield "| " + " | ".join([name.replace("_", " "), mode, leave_out, verdicts, *cells]) + " |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--modes", nargs="+", choices=("source", "free"), default=["free", "source"])
    parser.add_argument("--leave-out", nargs="+", choices=("on", "off"), default=["on", "off"])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--folders", nargs="+", choices=[NONE, *FOLDERS], default=[NONE, *FOLDERS])
    options = parser.parse_args()
    back = " | ".join(f"{world}, when it is back" for world in BACK)
    print(f"| folder | mode | left out before | verdicts | dusk | day | rarest class of dusk | {back} |")
    print("|---|---|---|---|---|---|---|" + "---|" * len(BACK), flush=True)
    for mode in options.modes:
        for leave_out in options.leave_out:
            for row in outcomes(options.root, options.folders, options.rounds, mode, leave_out):
                print(row, flush=True)


if __name__ == "__main__":
    main()
