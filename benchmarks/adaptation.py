"""CamVid, day to dusk, every arm with the same step budget: what does each recipe, and MFM on top of it, bring?

    python benchmarks/adaptation.py --data ../shared/data/camvid --work /tmp/adaptation

Trains the source models that are missing, runs what is missing (one JSON line a run in WORK/results.jsonl), and prints
the table for docs/benchmarks.md; curves go to `--out`.
"""

import argparse
import json
import multiprocessing
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from adaptation_arms import ARMS, STARTS
from adaptation_runs import Run, execute, prepare_start


def read_results(path: Path) -> list[dict[str, Any]]:
    """The lines of all finished runs; a last line that was cut off is not one."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if line.endswith("}")]


def missing(runs: Sequence[Run], path: Path) -> list[Run]:
    """Those of `runs` without a line in the results at `path`."""
    done = {line["key"] for line in read_results(path)}
    return [run for run in runs if run.key() not in done]


def run_all(runs: Sequence[Run], path: Path, processes: int) -> Iterator[dict[str, Any]]:
    """Execute `runs` side by side, each in one thread; every line is appended to `path` as soon as it is there."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        first_of = {run.settings().state: run for run in runs}
        list(pool.map(prepare_start, first_of.values()))
        for future in as_completed([pool.submit(execute, run) for run in runs]):
            line = future.result()
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            yield line


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with day_train, day_val and dusk_stream")
    parser.add_argument("--work", type=Path, required=True, help="folder of source models, buffers and results")
    parser.add_argument("--starts", nargs="+", choices=list(STARTS), default=list(STARTS))
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="steps of every arm (default: the preset's round.steps)")
    parser.add_argument("--every", type=int, default=0, help="score the student every so many steps, for curves")
    parser.add_argument("--processes", type=int, default=1, help="runs side by side, one thread each")
    parser.add_argument("--results", default="results.jsonl", help="name of the results file in --work")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=JSON", help="settings for all runs")
    arguments = parser.parse_args()
    extra = {name: json.loads(value) for name, value in (item.split("=", 1) for item in arguments.set)}
    if arguments.steps:
        extra["round.steps"] = arguments.steps
    arguments.work.mkdir(parents=True, exist_ok=True)
    runs = [
        Run(arguments.data.resolve(), arguments.work.resolve(), start, arm, seed, arguments.every, extra)
        for seed in arguments.seeds
        for start in arguments.starts
        for arm in arguments.arms
        if ARMS[arm].trains or seed == arguments.seeds[0]
    ]
    path = arguments.work / arguments.results
    for line in run_all(missing(runs, path), path, arguments.processes):
        print(
            f"{line['start']:7}{line['arm']:16}{line['seed']} {json.dumps(line['extra'])} "
            f"dusk {100 * line['candidate_dusk']:.1f} (student {100 * line.get('student_dusk', 0):.1f}) "
            f"day {100 * line['candidate_day']:.1f} ({100 * line.get('student_day', 0):.1f}) "
            f"train {line['train_seconds']:.0f} s, all {line['seconds']:.0f} s",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
