"""The served model along a long drawn stream: dusk, fog, night, day, again and again, through the real daemon.

For each segment new frames are dropped at a steady pace, the rounds that they start are waited for, and the inference
plane answers hidden scenes of the segment's world. The baseline of the same run is the released model, which never
adapts; `--memory off` is the daemon without conditions and recall. Results are lines of JSON and a table.

    python benchmarks/gate_stream.py --root out/stream --rounds 5 --seeds 1 2 3 --modes source free --memory on off
"""

import argparse
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from gate_worlds import STREAM, WORLDS, stream, world_folder

from daemon.demo.driving import DriveFailed, DrivenDaemon, DriveTimeout
from daemon.demo.scoring import pair_up, score_served

FRAMES = 64
"""New frames of a segment: as many as start a round under the demo's preset."""
FRAMES_PER_SECOND = 8.0
ROUND_SECONDS = 300.0
"""Longest round, or arrival of a segment (seconds)."""
QUIET_SECONDS = 15.0
"""A segment ends when no further round starts for so long; a recall may still come in it (seconds)."""


class Segment(NamedTuple):
    """What served after one segment."""

    place: int
    world: str
    version: int
    miou: float
    """Served mIoU on hidden scenes of the world (points)."""
    released: float
    """mIoU of the released model on the same scenes (points)."""
    rounds: int
    """Rounds that ended so far."""
    events: dict[str, int]
    """Lines of the history so far, by event."""


def run_stream(root: Path, *, source: bool, memory: bool, rounds: int, seed: int, frames: int) -> Iterator[Segment]:
    """Run one stream; yield what served after each segment."""
    sections: dict[str, dict[str, object]] = {
        "round": {"advanced": {"seed": seed, "score_images": 32}},
        "conditions": {"advanced": {"enabled": memory}},
    }
    world_folder(root, source=source, **sections)
    segments = stream(root / "run" / "camera", STREAM * rounds, frames, first=seed * 100_000)
    with DrivenDaemon(root / "run" / "mfmd.yaml") as driven:
        driven.wait_until_serving(1, 90.0)
        released = {world: _served(driven, world)[1] for world in WORLDS}
        for place, (world, pictures) in enumerate(segments):
            done = len(driven.rounds.numbers())
            for number, picture in enumerate(pictures):
                driven.drop([picture])
                time.sleep(1.0 / FRAMES_PER_SECOND if number + 1 < len(pictures) else 0.0)
            driven.wait_until_committed((place + 1) * frames, ROUND_SECONDS)
            _follow_rounds(driven, done)
            version, miou = _served(driven, world)
            events = [event.event for event in driven.registry.history()]
            counts: dict[str, int] = {name: events.count(name) for name in sorted(set(events))}
            yield Segment(place, world, version, miou, released[world], len(driven.rounds.numbers()), counts)


def _follow_rounds(driven: DrivenDaemon, done: int) -> None:
    """Follow the rounds after round `done`: a quick one and a full one, or none when it would not help."""
    for number in count(done + 1):
        try:
            driven.wait_for(partial(driven.round, number), f"round {number}", QUIET_SECONDS)
        except DriveTimeout:
            return
        driven.follow_round(number, ROUND_SECONDS)


def _served(driven: DrivenDaemon, world: str) -> tuple[int, float]:
    pairs = pair_up(driven.config.parent / "test" / world)
    try:
        score = score_served(driven, pairs)
    except DriveFailed:  # a recall came meanwhile
        score = score_served(driven, pairs)
    return score.version, 100.0 * score.miou


def table(lines: Sequence[dict[str, Any]]) -> str:
    """Return one row a run: gain over the released model, mean and worst segment, and the mean of each world."""
    rows = ["| mode | memory | seed | segments | mean gain | worst segment | " + " | ".join(STREAM) + " |"]
    rows.append("|---" * (6 + len(STREAM)) + "|")
    keys = sorted({(line["mode"], line["memory"], line["seed"]) for line in lines})
    for key in keys:
        mine = [line for line in lines if (line["mode"], line["memory"], line["seed"]) == key]
        gains = [line["miou"] - line["released"] for line in mine]
        worlds = [
            statistics.mean([line["miou"] for line in mine if line["world"] == world] or [0.0]) for world in STREAM
        ]
        cells = [*map(str, key), str(len(mine)), f"{statistics.mean(gains):+.1f}", f"{min(gains):+.1f}"]
        rows.append("| " + " | ".join([*cells, *(f"{value:.1f}" for value in worlds)]) + " |")
    return "\n".join(rows)


def main() -> None:
    """Run every combination that is asked for; lines go to `--root`/stream.jsonl."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5, help="times round the four worlds")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--modes", nargs="+", choices=("source", "free"), default=["source", "free"])
    parser.add_argument("--memory", nargs="+", choices=("on", "off"), default=["on", "off"])
    parser.add_argument("--frames", type=int, default=FRAMES)
    options = parser.parse_args()
    options.root.mkdir(parents=True, exist_ok=True)
    lines = []
    for seed in options.seeds:
        for mode in options.modes:
            for memory in options.memory:
                run = run_stream(
                    options.root, source=mode == "source", memory=memory == "on", rounds=options.rounds, seed=seed,
                    frames=options.frames,
                )  # fmt: skip
                for segment in run:
                    line = {"mode": mode, "memory": memory, "seed": seed, **segment._asdict()}
                    lines.append(line)
                    with (options.root / "stream.jsonl").open("a", encoding="utf-8") as file:
                        file.write(json.dumps(line) + "\n")
                    print(json.dumps(line), flush=True)
    print(table(lines))


if __name__ == "__main__":
    main()
