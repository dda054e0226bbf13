"""Run the published tables by one command, on their data sets: published figure, ours, difference.

    python benchmarks/paper.py DATA WEIGHTS --work WORK --dry-run          the plan, and what is missing for it
    python benchmarks/paper.py DATA WEIGHTS --work WORK --rows gta-dacs    one row with and without MFM
    python benchmarks/paper.py DATA WEIGHTS --work WORK                    all of them: about four months of one GPU

DATA has the data sets in their own layout (`paper_data.py`): gta, synthia, cityscapes, acdc, refuge; a link will do.
WEIGHTS has a Hugging Face directory for each encoder: mit-b5, resnet-101, dinov2-base. Everything that a row needs is
checked before anything starts. A finished run is one line of WORK/results.jsonl and is not repeated while all its
settings are equal, defaults too; the same command resumes an interrupted one. docs/how-to/published-tables.md says what
is not as in the papers.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from adaptation import read_results
from paper_checks import missing
from paper_data import DATA_SETS
from paper_figures import ARMS, Row
from paper_plan import Job, Lengths, Places, plan, target_names
from paper_rows import ROWS
from paper_run import PaperFailed, execute

from adapters.errors import AdapterError
from configs.watch import WatchSettings
from daemon.errors import DaemonError
from daemon.rounds.runner import RoundSuspended
from storage.errors import StorageError

SHOWN = 40
"""Most problems that are printed."""


def arguments_of(given: Sequence[str] | None) -> argparse.Namespace:
    """Return the arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of the data sets")
    parser.add_argument("weights", type=Path, help="folder of the encoders' ImageNet weights")
    parser.add_argument("--work", type=Path, default=Path("out/paper"), help="folder of states and results")
    parser.add_argument(
        "--rows", nargs="+", choices=list(ROWS), default=list(ROWS), metavar="ROW", help=", ".join(ROWS)
    )
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=["plain", "mfm"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, help="of self-training; without it as many as published")
    parser.add_argument("--source-steps", type=int, default=1, help="steps on the source alone before (papers: none)")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and what is missing, run nothing")
    parser.add_argument("--tiny", action="store_true", help="tiny networks (weights mit-tiny, resnet-tiny) and frames")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> int:
    """Run the command line; return 0 when all ran.

    Return 1 after an error, 2 when something is missing and nothing was started, 130 after Ctrl-C.
    """
    options = arguments_of(given)
    places = Places(options.data.absolute(), options.weights.absolute(), options.work.absolute())
    lengths = Lengths(options.steps, options.source_steps, options.tiny)
    jobs = plan(places, options.rows, options.arms, options.seeds, lengths)
    problems = missing(jobs)
    if options.dry_run:
        print("\n".join(plan_lines(jobs, complete=not problems)))
    if problems:
        print("\n".join(["", "Missing or wrong; nothing was started:", *shortened(problems)]), file=sys.stderr)
        return 2
    if options.dry_run:
        return 0
    try:
        run_missing(jobs, places.work / "results.jsonl")
    except (PaperFailed, AdapterError, DaemonError, StorageError) as error:
        stopped = isinstance(error, RoundSuspended)
        print(f"stopped; repeat the command to resume: {error}" if stopped else f"error: {error}", file=sys.stderr)
        return 130 if stopped else 1
    print(report(jobs, read_results(places.work / "results.jsonl")))
    return 0


def run_missing(jobs: Sequence[Job], path: Path) -> None:
    """Run the jobs that have no line in `path`, one after the other; append each line at once."""
    done = {line["key"] for line in read_results(path)}
    for number, job in enumerate(jobs, 1):
        print(f"{number} of {len(jobs)}: {job.title}{', done before' * (job.digest() in done)}", file=sys.stderr)
        if job.digest() not in done:
            line = execute(job)
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


def plan_lines(jobs: Sequence[Job], *, complete: bool) -> list[str]:
    """Return the plan: the runs, and of what is there the data sets and their numbers of images."""
    lines = [f"{len(jobs)} runs:"]
    for job in jobs:
        row, steps = job.row, f"{job.lengths.source_steps} + {job.steps} steps"
        lines.append(
            f"  {job.title}: {_data(row)}, {row.method}{ARMS[job.arm][0]} on {row.network}, {steps}, "
            f"weights {job.weights}"
        )
    for name in dict.fromkeys(job.row.source for job in jobs) if complete else ():
        found = jobs[0].places.train(name)
        lines.append(f"{DATA_SETS[name].title}: {len(found.pairs)} labelled images, {dict(found.source)}")
    for name, job in {job.row.target: job for job in jobs}.items() if complete else ():
        scored = jobs[0].places.validation(name)
        taken = len(target_names(WatchSettings.model_validate(job.values({})["watch"])))
        lines.append(f"{DATA_SETS[name].title}: {taken} target images, {len(scored.pairs)} scored")
    return lines


def shortened(problems: Sequence[str]) -> list[str]:
    """Return the first problems, one a line, and how many more there are."""
    rest = len(problems) - SHOWN
    return [f"  {problem}" for problem in problems[:SHOWN]] + ([f"  and {rest} more"] if rest > 0 else [])


def report(jobs: Sequence[Job], results: Sequence[Mapping[str, Any]]) -> str:
    """Return the table of `jobs` in markdown: published figure, ours, difference (points of mIoU)."""
    tiny, steps = jobs[0].lengths.tiny, " or ".join(map(str, sorted({job.steps for job in jobs})))
    short = tiny or any(job.steps != job.row.steps for job in jobs)
    text = [f"**Not a published run: {'tiny networks, ' * tiny}{steps} steps.**", ""] if short else []
    text += [
        "| row | from, to | method | network | classes | published | ours | difference | as served | seeds | paper |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for key, arm in dict.fromkeys((job.key, job.arm) for job in jobs):
        wanted = {job.digest() for job in jobs if (job.key, job.arm) == (key, arm)}
        lines = list({line["key"]: line for line in results if line["key"] in wanted}.values())
        text += [_table_line(key, arm, classes, lines) for classes in ROWS[key].classes()] if lines else []
    notes = [f"- {key}: {ROWS[key].note}." for key in dict.fromkeys(job.key for job in jobs) if ROWS[key].note]
    return "\n".join([*text, "", *notes]).strip() + "\n"


def _table_line(key: str, arm: str, classes: str, lines: Sequence[Mapping[str, Any]]) -> str:
    row = ROWS[key]
    figure, ours = row.figure(arm, classes), [100 * line["student"][classes] for line in lines]
    deviation = f" ± {np.std(ours, ddof=1):.1f}" if len(ours) > 1 else ""
    published = "not found" if figure.miou is None else f"{figure.miou:.1f}"
    difference = "-" if figure.miou is None else f"{np.mean(ours) - figure.miou:+.1f}"
    served = np.mean([100 * line["served"][classes] for line in lines])
    cells = [
        key, _data(row), row.method + ARMS[arm][0], row.network, classes, published,
        f"{np.mean(ours):.1f}{deviation}", difference, f"{served:.1f}", str(len(ours)), figure.paper or "-",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _data(row: Row) -> str:
    return f"{DATA_SETS[row.source].title} -> {DATA_SETS[row.target].title}"


if __name__ == "__main__":
    sys.exit(main())
