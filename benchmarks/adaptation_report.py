"""Tables and curves of `adaptation.py`, from the lines of its results."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaptation_arms import ARMS, STARTS

Line = Mapping[str, Any]
NOT_RUN = "-"


@dataclass(frozen=True, slots=True)
class Figure:
    """Mean and deviation over seeds, in points of mIoU."""

    mean: float
    deviation: float
    """Sample standard deviation; 0 for one seed."""
    seeds: int

    def __str__(self) -> str:
        return f"{self.mean:.1f}" if self.seeds < 2 else f"{self.mean:.1f} ± {self.deviation:.1f}"


def figure(shares: Sequence[float]) -> Figure:
    """Return the figure of mIoUs given as shares (0-1). Raises ValueError if there are none."""
    if not shares:
        raise ValueError("no runs to average")
    points = [100.0 * share for share in shares]
    return Figure(statistics.mean(points), statistics.stdev(points) if len(points) > 1 else 0.0, len(points))


def of_arm(lines: Iterable[Line], start: str, arm: str) -> list[Line]:
    """Return the runs of one arm from one start, by seed."""
    return sorted(
        (line for line in lines if line["start"] == start and line["arm"] == arm), key=lambda line: line["seed"]
    )


def paired_gain(lines: Sequence[Line], start: str, arm: str, recipe: str, part: str = "dusk") -> Figure | None:
    """Return the mean gain of `arm` over `recipe` at the same seed; None if they share no seed."""
    mine, theirs = ({line["seed"]: line for line in of_arm(lines, start, name)} for name in (arm, recipe))
    field = f"candidate_{part}"
    gains = [mine[seed][field] - theirs[seed][field] for seed in sorted(mine.keys() & theirs.keys())]
    return figure(gains) if gains else None


def table(lines: Sequence[Line], start: str) -> str:
    """Return a markdown table: one row an arm, with its gain over the start and over the arm that it extends."""
    rows = [
        "| arm | dusk mIoU | over the start | over its recipe | day mIoU | day change | seeds | s a run |",
        "|---|---|---|---|---|---|---|---|",
    ]
    before = of_arm(lines, start, "source")
    for name, arm in ARMS.items():
        runs = of_arm(lines, start, name)
        if not runs:
            continue
        dusk, day = (figure([run[f"candidate_{part}"] for run in runs]) for part in ("dusk", "day"))
        gain = paired_gain(lines, start, name, arm.recipe) if arm.recipe else None
        changes = [
            f"{value.mean - 100.0 * before[0][f'candidate_{part}']:+.1f}" if before else NOT_RUN
            for part, value in (("dusk", dusk), ("day", day))
        ]
        over = NOT_RUN if gain is None else f"{gain.mean:+.1f} ± {gain.deviation:.1f}"
        seconds = statistics.mean(run["train_seconds"] for run in runs)
        rows.append(
            f"| {arm.title} | {dusk} | {changes[0]} | {over} | {day} | {changes[1]} | {dusk.seeds} | {seconds:.0f} |"
        )
    return "\n".join(rows) + "\n"


def class_table(lines: Sequence[Line], start: str, arms: Sequence[str], part: str = "dusk") -> str:
    """Return a markdown table: IoU by class on `part`, mean over seeds, one row an arm."""
    chosen = [(arm, of_arm(lines, start, arm)) for arm in arms]
    present = [(arm, runs) for arm, runs in chosen if runs]
    if not present:
        return ""
    classes = list(present[0][1][0][f"candidate_{part}_iou"])
    rows = [f"| {part} IoU | " + " | ".join(classes) + " |", "|---" * (len(classes) + 1) + "|"]
    for arm, runs in present:
        means = [statistics.mean(run[f"candidate_{part}_iou"][name] or 0.0 for run in runs) for name in classes]
        rows.append(f"| {ARMS[arm].title} | " + " | ".join(f"{100.0 * mean:.1f}" for mean in means) + " |")
    return "\n".join(rows) + "\n"


def report(lines: Sequence[Line]) -> str:
    """Return all tables of all starts that were run."""
    parts = []
    for start, description in STARTS.items():
        if any(line["start"] == start for line in lines):
            best = ("source", "dacs", "dacs_mfm", "daformer_mfm", "mic_mfm")
            parts += [f"**{description.title}**\n", table(lines, start), class_table(lines, start, best)]
    return "\n".join(parts)


def draw_curves(lines: Sequence[Line], start: str, path: Path) -> bool:
    """Draw the student's dusk and day mIoU over the steps, one line an arm; return False without curves."""
    if not any(line["curve"] for line in lines if line["start"] == start):
        return False
    import matplotlib  # drawing is optional: a machine that only runs needs no matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure_, axes = pyplot.subplots(1, 2, figsize=(13, 4.2))
    before = of_arm(lines, start, "source")
    for name, arm in ARMS.items():
        runs = [run for run in of_arm(lines, start, name) if run["curve"]]
        if not runs:
            continue
        for axis, part in zip(axes, ("dusk", "day"), strict=True):
            steps, means = mean_curve(runs, part)
            first = [100.0 * before[0][f"candidate_{part}"]] if before else []
            axis.plot([0] * len(first) + steps, first + means, label=arm.title, linewidth=1.4, **_look(name))
    for axis, part in zip(axes, ("dusk", "day"), strict=True):
        axis.set(xlabel="step", ylabel=f"{part} mIoU (%)", title=f"{part}, student, {start} start")
        axis.grid(alpha=0.3)
    axes[1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1.02, 0.5))
    figure_.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure_.savefig(path, dpi=110)
    pyplot.close(figure_)
    return True


def _look(name: str) -> dict[str, Any]:
    """Return the line style: the recipe's colour, dashed with MFM and dotted for its control."""
    recipe = ARMS[name].recipe or name
    recipes = [arm for arm in ARMS if ARMS[arm].recipe is None]
    style = {"mfm": "--", "control": ":"}.get(name.removeprefix(recipe).removeprefix("_"), "-")
    return {"color": f"C{recipes.index(recipe)}", "linestyle": style}


def mean_curve(runs: Sequence[Line], part: str) -> tuple[list[int], list[float]]:
    """Return the steps at which every run was scored, and the mean mIoU there (points)."""
    tables = [{int(point["step"]): float(point[part]) for point in run["curve"]} for run in runs]
    steps = sorted(set.intersection(*(set(one) for one in tables)))
    return steps, [100.0 * statistics.mean(one[step] for one in tables) for step in steps]
