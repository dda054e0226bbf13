"""Output of commands: JSON for programs, plain tables and times for people, live progress on stderr."""

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import typer


def print_json(value: Any) -> None:
    """Print `value` as indented JSON; bytes of a name that are not UTF-8 become `\\udcNN`, which JSON reads back."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    typer.echo(text.encode(errors="backslashreplace").decode())


def answer(as_json: bool, facts: Any, *lines: str) -> None:
    """Print `facts` as JSON for programs, or `lines` for people."""
    if as_json:
        print_json(facts)
    else:
        for line in lines:
            typer.echo(line)


def print_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a plain text table, for grep and cut; numbers are right-aligned, the rest left-aligned."""
    cells = [["-" if cell is None else str(cell) for cell in row] for row in rows]
    numeric = [bool(cells) and all(_is_number(row[i]) for row in cells) for i in range(len(header))]
    lines = [list(header), *cells]
    widths = [max(len(row[i]) for row in lines) for i in range(len(header))]
    for row in lines:
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


def _is_number(text: str) -> bool:
    return text == "-" or text.replace(".", "", 1).replace("-", "", 1).isdigit()


LINE_SECONDS = 10.0
"""Interval of progress lines where there is no terminal (seconds)."""


ShowProgress = Callable[[str, int, int, Mapping[str, float | None]], None]
"""Shows progress: the phase, step, steps, and facts such as losses."""


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
    from rich import progress as live
    from rich.console import Console

    columns = (
        live.TextColumn("{task.description}"), live.BarColumn(), live.MofNCompleteColumn(), live.TimeElapsedColumn(),
        live.TimeRemainingColumn(), live.TextColumn("{task.fields[facts]}"),
    )  # fmt: skip
    with live.Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("starting", total=None, facts="")

        def show(phase: str, step: int, steps: int, facts: Mapping[str, float | None]) -> None:
            bar.update(task, description=phase, completed=step, total=steps or None, facts=_facts(facts))

        yield show


def _lines() -> ShowProgress:
    last_phase, last_time, left = "", float("-inf"), TimeLeft()

    def show(phase: str, step: int, steps: int, facts: Mapping[str, float | None]) -> None:
        nonlocal last_phase, last_time
        now = time.monotonic()
        remaining = left.after(phase, step, steps, now)
        if phase == last_phase and now - last_time < LINE_SECONDS:
            return
        last_phase, last_time = phase, now
        print(f"{phase} {step}/{steps}{time_left(remaining)} {_facts(facts)}".rstrip(), file=sys.stderr, flush=True)

    return show


class TimeLeft:
    """Estimates the rest of a phase by its pace since it began here."""

    def __init__(self) -> None:
        self._phase, self._step, self._since, self._last = "", 0, 0.0, 0

    def after(self, phase: str, step: int, steps: int, now: float) -> float | None:
        """Return the seconds left at `now` (seconds, any origin); None until a step was seen to take time."""
        if phase != self._phase or step < self._last:
            self._phase, self._step, self._since = phase, step, now
        self._last = step
        done, seconds = step - self._step, now - self._since
        return seconds / done * max(0, steps - step) if done > 0 and seconds > 0 and steps else None


def time_left(seconds: float | None) -> str:
    """Return `, about 12 min left`; nothing for None."""
    if seconds is None:
        return ""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f", about {seconds:.0f} s left"
    return f", about {minutes} min left" if minutes < 120 else f", about {minutes // 60} h {minutes % 60} min left"


def _facts(facts: Mapping[str, float | None]) -> str:
    return " ".join(f"{name} {value:.3g}" for name, value in facts.items() if value is not None)
