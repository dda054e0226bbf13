"""Tables and pictures of the continual drift, from the lines of its results."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adaptation_arms import ARMS, STARTS
from adaptation_report import figure, of_arm

Line = Mapping[str, Any]
Matrix = list[list[float]]


def mean_matrix(runs: Sequence[Line]) -> Matrix:
    """Return the mean over the runs of mIoU (0-1) on each stage (columns) before and after each stage (rows)."""
    matrices: list[Matrix] = [run["matrix"] for run in runs]
    return [[statistics.mean(cells) for cells in zip(*rows, strict=True)] for rows in zip(*matrices, strict=True)]


def on_current(matrix: Matrix) -> list[float]:
    """Return the mIoU on each stage right after its own round."""
    return [row[number] for number, row in enumerate(matrix[1:])]


def forgetting(matrix: Matrix) -> float:
    """Return the forgetting on day: best day mIoU so far minus day mIoU after the last foreign stage (0-1)."""
    day = [row[0] for row in matrix]
    return max(day[:-2]) - day[-2]


def continual_report(lines: Sequence[Line]) -> str:
    """Return one table a start: mIoU on the current stage for each arm, its mean, and forgetting on day."""
    parts = []
    for start, description in STARTS.items():
        mine = [line for line in lines if line["start"] == start]
        if mine:
            parts += [f"**{description.title}**\n", _table(mine, start)]
    return "\n".join(parts)


def _table(lines: Sequence[Line], start: str) -> str:
    stages = lines[0]["stages"]
    rows = [
        "| arm | " + " | ".join(stages) + " | mean of stages | all stages at the end | forgetting on day | seeds |",
        "|---" * (len(stages) + 5) + "|",
    ]
    for name, arm in ARMS.items():
        runs = of_arm(lines, start, name)
        if not runs:
            continue
        current = [figure([on_current(run["matrix"])[stage] for run in runs]) for stage in range(len(stages))]
        mean = figure([statistics.mean(on_current(run["matrix"])) for run in runs])
        end = figure([statistics.mean(run["matrix"][-1][:-1]) for run in runs])
        lost = figure([forgetting(run["matrix"]) for run in runs])
        cells = [*map(str, current), str(mean), str(end), str(lost), str(mean.seeds)]
        rows.append(f"| {arm.title} | " + " | ".join(cells) + " |")
    return "\n".join(rows) + "\n"


def draw_drift(lines: Sequence[Line], start: str, path: Path) -> bool:
    """Draw mIoU on the current stage and on day along the sequence, one line an arm; return False without runs."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    mine = [line for line in lines if line["start"] == start]
    if not mine:
        return False
    picture, axes = pyplot.subplots(1, 2, figsize=(11, 4.2))
    stages = mine[0]["stages"]
    for name, arm in ARMS.items():
        runs = of_arm(mine, start, name)
        if runs:
            matrix = mean_matrix(runs)
            day = [100.0 * row[0] for row in matrix[1:]]
            for axis, values in zip(axes, ([100.0 * value for value in on_current(matrix)], day), strict=True):
                axis.plot(range(len(stages)), values, marker="o", label=arm.title, linewidth=1.4)
    for axis, title in zip(axes, ("on the stage at hand", "on day"), strict=True):
        axis.set(ylabel="mIoU (%)", title=f"{title}, {start} start")
        axis.set_xticks(range(len(stages)), stages, rotation=20)
        axis.grid(alpha=0.3)
    axes[1].legend(fontsize=7)
    picture.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.savefig(path, dpi=110)
    pyplot.close(picture)
    return True
