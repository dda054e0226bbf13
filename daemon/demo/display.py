"""Live progress: one bar a stage on a terminal, one line a stage in a file or pipe."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn


@dataclass(slots=True)
class Stage:
    """One line of the display."""

    bars: Progress
    task: TaskID
    facts: str = ""

    def show(self, done: float, total: float | None = None, facts: str | None = None) -> None:
        """Move the bar to `done` of `total` and show `facts` beside it; None leaves a value as it is."""
        self.facts = self.facts if facts is None else facts
        self.bars.update(self.task, completed=done, total=total, facts=self.facts)


class Display(Progress):
    """Stages below each other; use as a context."""

    def __init__(self, console: Console) -> None:
        columns = (TextColumn("{task.description:<24}"), BarColumn(bar_width=24), TimeElapsedColumn())
        spinner, facts = SpinnerColumn(finished_text="[green]✓[/]"), TextColumn("{task.fields[facts]}")
        super().__init__(spinner, *columns, facts, console=console, disable=not console.is_terminal)

    @contextmanager
    def stage(self, title: str, total: float | None = None) -> Iterator[Stage]:
        """Add a stage; its bar is full when the context ends well."""
        start = time.monotonic()
        stage = Stage(self, self.add_task(title, total=total, facts=""))
        yield stage
        stage.show(1, 1)
        if not self.console.is_terminal:
            line = f"{title}: {stage.facts} ({time.monotonic() - start:.0f} s)"
            self.console.print(line, highlight=False, soft_wrap=True)
