"""From a source to a target, every arm with the same step budget: the gain of each recipe, with and without MFM.

    python benchmarks/adaptation.py --data ../shared/data/camvid --work /tmp/adaptation
    python benchmarks/adaptation.py --data ../shared/data/fundus --work /tmp/fundus --starts retina --arms source dacs

CamVid, day to dusk, or with `--starts retina` photographs of retinas, DRIVE to STARE (arms without thing classes).

It trains missing source models, runs missing runs (one JSON line a run in WORK/results.jsonl), and prints
the tables for docs/explanation/benchmarks.md; curves go to `--out`. With `--continual` the arms go through fog, rain,
night and sensor noise and back to day instead (WORK/continual.jsonl).
"""

import argparse
import json
import multiprocessing
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from adaptation_arms import ALL_STARTS, ARMS, STARTS
from adaptation_report import draw_curves, report
from adaptation_runs import Run, execute, prepare_start
from continual import execute_continual
from continual_report import continual_report, draw_drift

Execute = Callable[[Run], dict[str, Any]]


def read_results(path: Path) -> list[dict[str, Any]]:
    """Return the lines of all finished runs; skip a truncated last line."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if line.endswith("}")]


def missing(runs: Sequence[Run], path: Path, prefix: str = "") -> list[Run]:
    """Return the `runs` that have no line in the results at `path`."""
    done = {line["key"] for line in read_results(path)}
    return [run for run in runs if prefix + run.key() not in done]


def run_all(runs: Sequence[Run], path: Path, processes: int, work: Execute = execute) -> Iterator[dict[str, Any]]:
    """Execute `runs` in parallel, each in one thread; append every line to `path` at once."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        first_of = {run.settings().state: run for run in runs}
        list(pool.map(prepare_start, first_of.values()))
        for future in as_completed([pool.submit(work, run) for run in runs]):
            line = future.result()
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            yield line


def sentence(line: dict[str, Any]) -> str:
    """Return one finished run as text for the terminal."""
    head = f"{line['start']:7}{line['arm']:16} {line['seed']} "
    if "matrix" in line:
        return head + " | ".join(" ".join(f"{100 * value:.1f}" for value in row) for row in line["matrix"])
    data_set = ALL_STARTS[line["start"]].data_set
    scores = " ".join(f"{part} {100 * line[f'candidate_{part}']:.1f}" for part in (data_set.target, data_set.source))
    training = f"training {line['train_seconds']:.0f} s of {line['seconds']:.0f} s"
    return head + f"{json.dumps(line['extra'])} {scores}, {training}"


def arguments_of() -> argparse.Namespace:
    """Return the arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of CamVid, or of the retina photographs")
    parser.add_argument("--work", type=Path, required=True, help="folder of source models, buffers and results")
    parser.add_argument("--starts", nargs="+", choices=list(ALL_STARTS), default=list(STARTS))
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="steps of every arm (default: the preset's round.steps)")
    parser.add_argument("--every", type=int, default=0, help="curves: score the first seed's student so often")
    parser.add_argument("--processes", type=int, default=1, help="runs side by side, one thread each")
    parser.add_argument("--continual", action="store_true", help="the drift through the stages of shifts.py")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=JSON", help="settings for all runs")
    parser.add_argument("--results", help="name of the results file in --work")
    parser.add_argument("--out", type=Path, default=Path("out/adaptation"), help="folder of tables and curves")
    parser.add_argument("--report-only", action="store_true", help="run nothing, report what is there")
    arguments = parser.parse_args()
    if arguments.continual and not STARTS.keys() >= set(arguments.starts):
        parser.error(f"--continual: only from the starts of CamVid: {', '.join(STARTS)}")
    return arguments


def runs_of(arguments: argparse.Namespace) -> list[Run]:
    """Return the runs that the arguments ask for, seed by seed, so that an interruption leaves complete seeds.

    The start itself is scored once.
    """
    extra = {name: json.loads(value) for name, value in (item.split("=", 1) for item in arguments.set)}
    if arguments.steps:
        extra["round.steps"] = arguments.steps

    def every(seed: int) -> int:
        return int(arguments.every) if seed == arguments.seeds[0] else 0  # scoring costs as much as many steps

    return [
        Run(arguments.data.resolve(), arguments.work.resolve(), start, arm, seed, every(seed), extra)
        for seed in arguments.seeds
        for start in arguments.starts
        for arm in arguments.arms
        if ARMS[arm].trains or seed == arguments.seeds[0]
    ]


def main() -> int:
    """Run what is missing and report."""
    arguments = arguments_of()
    arguments.work.mkdir(parents=True, exist_ok=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    kind = "continual" if arguments.continual else "results"
    path = arguments.work / (arguments.results or f"{kind}.jsonl")
    runs = runs_of(arguments)
    if not arguments.report_only:
        prefix, work = ("continual-", execute_continual) if arguments.continual else ("", execute)
        for line in run_all(missing(runs, path, prefix), path, arguments.processes, work):
            print(sentence(line), flush=True)
    keys = {("continual-" if arguments.continual else "") + run.key() for run in runs}
    lines = [line for line in read_results(path) if line["key"] in keys]
    text = continual_report(lines) if arguments.continual else report(lines)
    (arguments.out / f"{kind}.md").write_text(text, encoding="utf-8")
    for start in arguments.starts:
        draw = draw_drift if arguments.continual else draw_curves
        draw(lines, start, arguments.out / f"{kind}_{start}.png")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
