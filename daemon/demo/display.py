"""Live progress of the demo: one bar a stage on a terminal, one line a stage in a file or pipe."""

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
        """Move the bar to `done` of `total` and show `facts` beside it."""
        self.facts = self.facts if facts is None else facts
        if total is None:
            self.bars.update(self.task, completed=done, facts=self.facts)
        else:
            self.bars.update(self.task, completed=done, total=total, facts=self.facts)


class Display:
    """Stages below each other; use as a context."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._bars = Progress(
            SpinnerColumn(finished_text="[green]✓[/]"),
            TextColumn("{task.description:<24}"),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
            TextColumn("{task.fields[facts]}"),
            console=console,
            disable=not console.is_terminal,
        )

    @contextmanager
    def live(self) -> Iterator[None]:
        """Show the stages for as long as the context lasts."""
        with self._bars:
            yield

    @contextmanager
    def stage(self, title: str, total: float | None = None) -> Iterator[Stage]:
        """A new stage; its bar is full when the context ends well."""
        start = time.monotonic()
        stage = Stage(self._bars, self._bars.add_task(title, total=total, facts=""))
        yield stage
        self._bars.update(stage.task, total=1, completed=1)
        if not self.console.is_terminal:
            self.console.print(
                f"{title}: {stage.facts} ({time.monotonic() - start:.0f} s)", highlight=False, soft_wrap=True
            )
