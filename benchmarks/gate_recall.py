"""How fast a known-good version is back: day and dusk in turn at one frame a second, through the real daemon.

A round on dusk makes a version first. Then each world returns for `--seconds`; the time from its first frame, and from
the frame that makes the burst (more than half of `conditions.advanced.burst_frames`), to the first answer of the
version that is best there is measured. The baseline of the same run is recall switched off: nothing ever comes back.

    python benchmarks/gate_recall.py --root out/recall --returns 3
"""

import argparse
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

from gate_worlds import drawn, wait_until_observed, world_folder

from daemon.demo.driving import DrivenDaemon

FIRST = 2_000_000
"""First seed of the returning scenes."""
ROUND_SECONDS = 300.0
POLL_SECONDS = 0.1


def returns(driven: DrivenDaemon, root: Path, count: int, seconds: int, deciding: int) -> Iterator[tuple[str, float]]:
    """Let day and dusk return in turn; yield the world and the seconds from the deciding frame to its version."""
    wanted = {"day": 1, "dusk": 2}
    for number in range(2 * count):
        world = ("day", "dusk")[number % 2]
        pictures = drawn(root / "returns" / f"{number}", world, FIRST + 1000 * number, seconds, labelled=False)
        began, next_frame, sent, decided = time.monotonic(), 0.0, 0, 0.0
        while driven.served_version() != wanted[world] and time.monotonic() - began < seconds:
            if time.monotonic() - began >= next_frame and sent < len(pictures):
                driven.drop([pictures[sent]])
                sent, next_frame = sent + 1, next_frame + 1.0
                decided = time.monotonic() if sent == deciding else decided
            time.sleep(POLL_SECONDS)
        there = driven.served_version() == wanted[world]
        now = time.monotonic()
        yield world, now - (decided or now) if there else float("inf")  # 0: it served all along


def run(root: Path, *, source: bool, recall: bool, count: int, seconds: int) -> list[tuple[str, float]]:
    """Adapt to dusk once, then measure the returns."""
    sections: dict[str, dict[str, object]] = {
        "recall": {"dwell_seconds": 5.0, "advanced": {"enabled": recall}},
        "schedule": {"new_frames": 64, "min_frames": 64},
        "drift": {"advanced": {"starts_round": False}},
    }
    settings = world_folder(root, source=source, **sections)
    deciding = settings.conditions.advanced.burst_frames // 2 + 1
    with DrivenDaemon(root / "run" / "mfmd.yaml") as driven:
        driven.wait_until_serving(1, 90.0)
        if not source:  # the first frames are the reference, and the released version is best there
            driven.drop(drawn(root / "first", "day", FIRST - 1000, 40, labelled=False))
            driven.wait_until_committed(40, ROUND_SECONDS)
            wait_until_observed(driven, ROUND_SECONDS)
        driven.drop(drawn(root / "dusk", "dusk", FIRST - 2000, 64, labelled=False))
        driven.follow_round(1, ROUND_SECONDS)
        driven.wait_until_serving(2, 60.0)
        return list(returns(driven, root, count, seconds, deciding))


def main() -> None:
    """Print a table of the returns."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--returns", type=int, default=3, help="returns of each world")
    parser.add_argument("--seconds", type=int, default=24, help="frames of a return, one a second")
    parser.add_argument("--modes", nargs="+", choices=("source", "free"), default=["source", "free"])
    options = parser.parse_args()
    print("| mode | recall | returns | back | median (s) | longest (s) |")
    print("|---|---|---|---|---|---|")
    for mode in options.modes:
        for recall in (True, False):
            found = run(
                options.root, source=mode == "source", recall=recall, count=options.returns, seconds=options.seconds
            )
            times = [seconds for _, seconds in found if seconds != float("inf")]
            shown = [f"{statistics.median(times):.1f}", f"{max(times):.1f}"] if times else ["-", "-"]
            cells = [mode, "on" if recall else "off", str(len(found)), str(len(times)), *shown]
            print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
