"""Live progress of training and rounds on stderr: a bar on a terminal, a line now and then in a file or pipe."""

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

LINE_SECONDS = 10.0
"""Interval of progress lines where there is no terminal (seconds)."""


class ShowProgress(Protocol):
    """Shows one state of the work: its phase, `step` of `steps`, and facts such as losses."""

    def __call__(self, phase: str, step: int, steps: int, facts: Mapping[str, float | None]) -> None:
        """Show it."""


@contextmanager
def live_progress() -> Iterator[ShowProgress]:
    """Progress display for as long as the context lasts."""
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
