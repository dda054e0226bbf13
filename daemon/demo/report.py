"""What the demo shows: progress while it runs; at the end two tables, a picture, a JSON file."""

import io
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.table import Table

from adapters.errors import ExportRefused
from adapters.inference.palette import colour_mask
from configs.class_list import ClassInfo
from daemon.demo.driving import Show
from daemon.demo.scoring import Pair, ServedScore, read_mask
from storage import durable
from storage.durable.permissions import shared_files
from storage.media.own_png import may_replace, with_mark
from storage.rounds.verdict import Verdict

GOAL = 0.05
"""Rise of the served mIoU that the demo promises (0-1)."""
SHOWN = range(4)
"""Which test scenes the picture shows; fixed before anything is scored."""
CELL, GAP, MARGIN, HEADER, LEGEND = 288, 6, 12, 30, 34
"""Width of a cell and the spaces around the cells of a picture (pixels)."""
INK = (32, 32, 32)
REPORT, PICTURE = "report.json", "before_after.png"


def check_report(out: Path) -> None:
    """Raise ExportRefused when `out` has files of the report's names that no demo made: its picture has a mark."""
    if not may_replace(out / PICTURE) or (os.path.lexists(out / REPORT) and not os.path.lexists(out / PICTURE)):
        raise ExportRefused(f"{out}: holds {PICTURE} or {REPORT} that no demo made; give --out another folder")


@contextmanager
def stage(console: Console, title: str) -> Iterator[Show]:
    """Show what a stage does: the newest facts beside a spinner on a terminal, one line at its end everywhere."""
    start, said = time.monotonic(), [""]
    with console.status(title) as status:

        def show(facts: str) -> None:
            said[:] = [facts]
            status.update(f"{title}: {facts}")

        yield show
    console.print(f"{title}: {said[0]} ({time.monotonic() - start:.0f} s)", highlight=False, soft_wrap=True)


@dataclass(frozen=True, slots=True)
class Step:
    """One line of the story: what served after it, and when."""

    verdict: Verdict | None
    """The gate's verdict; None for the source-only start."""
    score: ServedScore
    seconds: float
    """Time since the demo began (seconds)."""


@dataclass(frozen=True, slots=True)
class DemoReport:
    """The result of the demo; the first step is the source-only start."""

    steps: Sequence[Step]
    classes: Sequence[ClassInfo]

    @property
    def rise(self) -> float:
        """Served mIoU at the end minus at the start (0-1)."""
        return self.steps[-1].score.miou - self.steps[0].score.miou

    @property
    def passed(self) -> bool:
        """Whether a candidate was promoted and the served mIoU rose by at least the goal."""
        promoted = any(step.verdict and step.verdict.decision == "accepted" for step in self.steps)
        return promoted and self.rise >= GOAL

    @shared_files()
    def write(self, out: Path, pairs: Sequence[Pair]) -> Path:
        """Write `report.json` and `before_after.png` into `out`; return the picture's path."""
        check_report(out)
        out.mkdir(parents=True, exist_ok=True)
        report = {"passed": self.passed, "rise": self.rise, "steps": [self._as_json(step) for step in self.steps]}
        before, after = self.steps[0].score, self.steps[-1].score
        captions = (
            "dusk, never labelled",
            f"before: version {before.version}, mIoU {100 * before.miou:.1f}",
            f"after: version {after.version}, mIoU {100 * after.miou:.1f}",
            "truth",
        )
        png = io.BytesIO()
        side_by_side(pairs, before, after, SHOWN[: len(pairs)], captions, self.classes).save(png, "PNG")
        durable.write_bytes(out / PICTURE, with_mark(png.getvalue(), "demo"))
        durable.write_text(out / REPORT, json.dumps(report, indent=2) + "\n")
        return out / PICTURE

    def _as_json(self, step: Step) -> dict[str, Any]:
        named = zip(self.classes, step.score.iou, strict=True)
        return {
            "version": step.score.version,
            "miou": step.score.miou,
            "iou": {entry.name: float(value) for entry, value in named},
            "decision": step.verdict.decision if step.verdict else "source only",
            "reason": step.verdict.reason if step.verdict else "trained on labelled day scenes",
            "seconds": step.seconds,
        }

    def print(self, console: Console) -> None:
        """Print the steps and the IoU of each class."""
        table = Table(title="Served predictions on dusk scenes that the daemon has no labels for")
        for name in ("time", "what happened", "serves", "mIoU", "change"):
            table.add_column(name, justify="left" if name == "what happened" else "right", overflow="fold")
        first = self.steps[0].score.miou
        for number, step in enumerate(self.steps):
            what = f"round {number} {step.verdict.decision}: {step.verdict.reason}" if step.verdict else "source only"
            change = f"{100 * (step.score.miou - first):+.1f}" if number else ""
            clock = f"{int(step.seconds) // 60}:{int(step.seconds) % 60:02d}"
            table.add_row(clock, what, f"version {step.score.version}", f"{100 * step.score.miou:.1f}", change)
        console.print(table)
        classes = Table("", *(entry.name for entry in self.classes), title="IoU by class")
        for title, step in (("before", self.steps[0]), ("after", self.steps[-1])):
            classes.add_row(title, *(f"{100 * value:.1f}" for value in step.score.iou))
        console.print(classes)


def side_by_side(
    pairs: Sequence[Pair],
    before: ServedScore,
    after: ServedScore,
    shown: Sequence[int],
    captions: Sequence[str],
    classes: Sequence[ClassInfo],
) -> Image.Image:
    """Image, mask before, mask after and truth of the pairs numbered `shown`, under `captions`, above a legend."""
    rows = []
    for i in shown:
        masks = [colour_mask(mask, classes) for mask in (before.masks[i], after.masks[i], read_mask(pairs[i].label))]
        with Image.open(pairs[i].image) as image:
            rows.append([image.convert("RGB"), *map(Image.fromarray, masks)])
    cell = (CELL, round(CELL * rows[0][0].height / rows[0][0].width))
    size = (2 * MARGIN + 4 * CELL + 3 * GAP, MARGIN + HEADER + len(rows) * (cell[1] + GAP) + LEGEND)
    sheet = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for column, caption in enumerate(captions):
        left = MARGIN + column * (CELL + GAP)
        draw.text((left + CELL / 2, MARGIN + HEADER / 2 - 4), caption, INK, font, anchor="mm")
        for number, row in enumerate(rows):
            kind = Image.Resampling.NEAREST if column else Image.Resampling.LANCZOS
            sheet.paste(row[column].resize(cell, kind), (left, MARGIN + HEADER + number * (cell[1] + GAP)))
    middle = size[1] - LEGEND / 2 - 2
    for number, entry in enumerate(classes):
        left = MARGIN + number * (size[0] - 2 * MARGIN) // len(classes)
        draw.rectangle((left, middle - 7, left + 14, middle + 7), fill=entry.color, outline=INK)
        draw.text((left + 20, middle), entry.name, INK, font, anchor="lm")
    return sheet
