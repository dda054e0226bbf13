"""What the demo ends with: a table, a picture, a JSON file."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from configs.class_list import ClassInfo
from daemon.demo.picture import Row, read_rgb, side_by_side
from daemon.demo.scoring import Pair, ServedScore, read_label
from storage import durable
from storage.durable.record import Record
from storage.rounds.records import Verdict

GOAL = 0.05
"""Rise of the served mIoU that the demo promises (0-1)."""
SHOWN = (0, 1, 2, 3)
"""Which test scenes the picture shows: fixed before anything is scored."""


@dataclass(frozen=True, slots=True)
class Step:
    """One line of the story: what served after it, and when."""

    verdict: Verdict | None
    """The gate's verdict; none for the source-only start."""
    score: ServedScore
    """Score of what serves after it."""
    seconds: float
    """Time since the demo began (seconds)."""


class ReportedStep(Record):
    """A step as JSON."""

    version: int
    """Version that serves after it."""
    miou: float
    """Its mIoU on the test scenes (0-1)."""
    iou: dict[str, float]
    """Its IoU by class (0-1)."""
    decision: str
    """The gate's decision, or `source only`."""
    reason: str
    """Why."""
    seconds: float
    """Time since the demo began (seconds)."""


class DemoReport(Record):
    """`report.json`."""

    steps: list[ReportedStep]
    """In order of time."""
    promoted: bool
    """Whether a candidate was promoted through the gate."""
    rise: float
    """Served mIoU at the end minus at the start (0-1)."""
    passed: bool
    """Promoted, and risen by at least the goal."""


def make_report(steps: Sequence[Step], classes: Sequence[ClassInfo]) -> DemoReport:
    """The report on `steps`, of which the first is the source-only start."""
    promoted = any(step.verdict and step.verdict.decision == "accepted" for step in steps)
    rise = steps[-1].score.miou - steps[0].score.miou
    return DemoReport(
        steps=[_reported(step, classes) for step in steps],
        promoted=promoted,
        rise=rise,
        passed=promoted and rise >= GOAL,
    )


def _reported(step: Step, classes: Sequence[ClassInfo]) -> ReportedStep:
    verdict = step.verdict
    return ReportedStep(
        version=step.score.version,
        miou=step.score.miou,
        iou={entry.name: float(value) for entry, value in zip(classes, step.score.iou, strict=True)},
        decision=verdict.decision if verdict else "source only",
        reason=verdict.reason if verdict else "trained on labelled day scenes",
        seconds=step.seconds,
    )


def write_report(
    out: Path, report: DemoReport, steps: Sequence[Step], pairs: Sequence[Pair], classes: Sequence[ClassInfo]
) -> Path:
    """Write `report.json` and `before_after.png` into `out`; returns the picture's path."""
    out.mkdir(parents=True, exist_ok=True)
    durable.write_record(out / "report.json", report)
    before, after = steps[0].score, steps[-1].score
    rows = [
        Row(read_rgb(pairs[i].image), before.masks[i], after.masks[i], read_label(pairs[i].label))
        for i in SHOWN
        if i < len(pairs)
    ]
    captions = (
        "dusk, never labelled",
        f"before: version {before.version}, mIoU {100 * before.miou:.1f}",
        f"after: version {after.version}, mIoU {100 * after.miou:.1f}",
        "truth",
    )
    side_by_side(rows, captions, classes).save(out / "before_after.png")
    return out / "before_after.png"


def print_report(console: Console, report: DemoReport) -> None:
    """The table of steps and the one of classes."""
    table = Table(title="Served predictions on dusk scenes that the daemon has no labels for")
    for name, justify in (("time", "right"), ("what happened", "left"), ("serves", "right"), ("mIoU", "right")):
        table.add_column(name, justify="right" if justify == "right" else "left", overflow="fold")
    table.add_column("change", justify="right")
    first = report.steps[0].miou
    for number, step in enumerate(report.steps):
        what = "source only" if number == 0 else f"round {number} {step.decision}: {step.reason}"
        change = "" if number == 0 else f"{100 * (step.miou - first):+.1f}"
        table.add_row(_clock(step.seconds), what, f"version {step.version}", f"{100 * step.miou:.1f}", change)
    console.print(table)
    classes = Table(title="IoU by class")
    classes.add_column("")
    for name in report.steps[0].iou:
        classes.add_column(name, justify="right")
    for title, step in (("before", report.steps[0]), ("after", report.steps[-1])):
        classes.add_row(title, *(f"{100 * value:.1f}" for value in step.iou.values()))
    console.print(classes)


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
