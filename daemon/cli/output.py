"""Output of commands: JSON for programs, plain tables and times for people, live progress on stderr."""

import json
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import typer


def print_json(value: Any) -> None:
    """Print `value` as indented JSON; bytes of a name that are not UTF-8 become `\\udcNN`, which JSON reads back."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    typer.echo(text.encode(errors="backslashreplace").decode())


def print_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a plain text table, for grep and cut; numbers are right-aligned, the rest left-aligned."""
    cells = [[_text(cell) for cell in row] for row in rows]
    numeric = [bool(cells) and all(_is_number(row[i]) for row in cells) for i in range(len(header))]
    widths = [max(len(row[i]) for row in [list(header), *cells]) for i in range(len(header))]
    for row in [list(header), *cells]:
        parts = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        ]
        typer.echo("  ".join(parts).rstrip())


def local_time(unix: float | None) -> str:
    """Return `unix` (seconds) as local date and time, `-` for None."""
    return "-" if unix is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(unix))


def percent(share: float | None) -> str:
    """Return a share (0-1) as percent with two decimals, `-` for None."""
    return "-" if share is None else f"{100 * share:.2f}"


def headline(scores: Mapping[str, float]) -> str:
    """Return the mIoUs among a version's scores in percent: `source_miou 61.20 %`; skip scores of single classes."""
    return ", ".join(f"{name} {percent(value)} %" for name, value in scores.items() if name.endswith("miou"))


def _text(cell: object) -> str:
    return "-" if cell is None else str(cell)


def _is_number(text: str) -> bool:
    return text == "-" or text.replace(".", "", 1).replace("-", "", 1).isdigit()


LINE_SECONDS = 10.0
"""Interval of progress lines where there is no terminal (seconds)."""


class ShowProgress(Protocol):
    """Shows progress: the phase, `step` of `steps`, and facts such as losses."""

    def __call__(self, phase: str, step: int, steps: int, facts: Mapping[str, float | None]) -> None:
        """Show it."""


@contextmanager
def live_progress() -> Iterator[ShowProgress]:
    """Display progress for as long as the context lasts."""
    if sys.stderr.isatty():
        with _bar() as show:
            yield show
    else:
        yield _lines()


@contextmanager
def _bar() -> Iterator[ShowProgress]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(
        *columns, TimeRemainingColumn(), TextColumn("{task.fields[facts]}"), console=Console(stderr=True)
    ) as bar:
        task = bar.add_task("starting", total=None, facts="")

        def show(phase: str, step: int, steps: int, facts: Mapping[str, float | None]) -> None:
            bar.update(task, description=phase, completed=step, total=steps or None, facts=_facts(facts))

        yield show


def _lines() -> ShowProgress:
    last_phase, last_time = "", float("-inf")

    def show(phase: str, step: int, steps: int, facts: Mapping[str, float | None]) -> None:
        nonlocal last_phase, last_time
        now = time.monotonic()
        if phase == last_phase and now - last_time < LINE_SECONDS:
            return
        last_phase, last_time = phase, now
        print(f"{phase} {step}/{steps} {_facts(facts)}".rstrip(), file=sys.stderr, flush=True)

    return show


def _facts(facts: Mapping[str, float | None]) -> str:
    return " ".join(f"{name} {value:.3g}" for name, value in facts.items() if value is not None)
