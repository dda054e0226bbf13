"""Tables and curves of `adaptation.py`, from the lines of its results."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaptation_arms import ALL_STARTS, ARMS

Line = Mapping[str, Any]
NOT_RUN = "-"


@dataclass(frozen=True, slots=True)
class Figure:
    """Mean and deviation over seeds, in points."""

    mean: float
    deviation: float
    """Sample standard deviation; 0 for one seed."""
    seeds: int

    def __str__(self) -> str:
        return f"{self.mean:.1f}" if self.seeds < 2 else f"{self.mean:.1f} ± {self.deviation:.1f}"


def figure(shares: Sequence[float]) -> Figure:
    """Return the figure of scores given as shares (0-1). Raises ValueError if there are none."""
    if not shares:
        raise ValueError("no runs to average")
    points = [100.0 * share for share in shares]
    return Figure(statistics.mean(points), statistics.stdev(points) if len(points) > 1 else 0.0, len(points))


def of_arm(lines: Iterable[Line], start: str, arm: str) -> list[Line]:
    """Return the runs of one arm from one start, by seed."""
    return sorted(
        (line for line in lines if line["start"] == start and line["arm"] == arm), key=lambda line: line["seed"]
    )


def values(lines: Iterable[Line], start: str, arm: str, name: str) -> dict[int, float]:
    """Return the value of the field `name` by seed, of the runs of one arm from one start that have it."""
    return {line["seed"]: line[name] for line in of_arm(lines, start, arm) if name in line}


def paired_gain(mine: Mapping[int, float], theirs: Mapping[int, float]) -> Figure | None:
    """Return the mean gain over the same seeds; None if they share none."""
    gains = [mine[seed] - theirs[seed] for seed in sorted(mine.keys() & theirs.keys())]
    return figure(gains) if gains else None


def table(lines: Sequence[Line], start: str) -> str:
    """Return a markdown table: one row an arm, with its gain over the start and over the arm that it extends."""
    data_set = ALL_STARTS[start].data_set
    head = ["arm"]
    for part in (data_set.target, data_set.source):
        head += [f"{part} {data_set.measure}", "over the start", "over its recipe"]
        head += [f"{part} IoU: {name}" for name in data_set.shown]
    rows = [f"| {' | '.join(head)} | seeds | s a run |", "|---" * (len(head) + 2) + "|"]
    for name, arm in ARMS.items():
        runs = of_arm(lines, start, name)
        if not runs:
            continue
        seconds = f"{statistics.mean(run['train_seconds'] for run in runs):.0f}"
        rows.append(_row(lines, start, (arm.title, name, "candidate"), (arm.recipe, "candidate"), seconds))
        for share in sorted({key.split("_")[1] for run in runs for key in run if key.startswith("average_")}):
            title = f"{arm.title}, {share} % of it averaged with the start"
            rows.append(_row(lines, start, (title, name, f"average_{share}"), (name, "candidate"), seconds))
    return "\n".join(rows) + "\n"


def _row(
    lines: Sequence[Line], start: str, mine: tuple[str, str, str], other: tuple[str | None, str], seconds: str
) -> str:
    """Return the row of `mine` (title, arm, network) compared with `other` (arm, network)."""
    data_set, (title, arm, network), (recipe, base) = ALL_STARTS[start].data_set, mine, other
    cells, seeds = [title], 0
    for part in (data_set.target, data_set.source):
        scores = values(lines, start, arm, f"{network}_{part}")
        mean, seeds = figure(list(scores.values())), len(scores)
        before = values(lines, start, "source", f"candidate_{part}").values()
        gain = paired_gain(scores, values(lines, start, recipe, f"{base}_{part}")) if recipe else None
        cells += [
            str(mean),
            f"{mean.mean - figure(list(before)).mean:+.1f}" if before else NOT_RUN,
            NOT_RUN if gain is None else "+" * (gain.mean >= 0.0) + str(gain),
        ]
        ious = [run[f"{network}_{part}_iou"] for run in of_arm(lines, start, arm) if f"{network}_{part}_iou" in run]
        cells += [str(figure([iou[name] for iou in ious])) for name in data_set.shown]
    return f"| {' | '.join(cells)} | {seeds} | {seconds} |"


def class_table(lines: Sequence[Line], start: str, arms: Sequence[str]) -> str:
    """Return a markdown table: IoU by class on the target, mean over seeds, one row an arm."""
    part = ALL_STARTS[start].data_set.target
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
    for start, description in ALL_STARTS.items():
        if any(line["start"] == start for line in lines):
            best = () if description.data_set.shown else ("source", "dacs", "dacs_mfm", "daformer_mfm", "mic_mfm")
            parts += [f"**{description.title}**\n", table(lines, start), class_table(lines, start, best)]
    return "\n".join(parts)


def draw_curves(lines: Sequence[Line], start: str, path: Path) -> bool:
    """Draw the student's scores over the steps, target and source, one line an arm; return False without curves."""
    if not any(line["curve"] for line in lines if line["start"] == start):
        return False
    import matplotlib  # drawing is optional: a machine that only runs needs no matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure_, axes = pyplot.subplots(1, 2, figsize=(13, 4.2))
    data_set, before = ALL_STARTS[start].data_set, of_arm(lines, start, "source")
    parts = (data_set.target, data_set.source)
    for name, arm in ARMS.items():
        runs = [run for run in of_arm(lines, start, name) if run["curve"]]
        if not runs:
            continue
        for axis, part in zip(axes, parts, strict=True):
            steps, means = mean_curve(runs, part)
            first = [100.0 * before[0][f"candidate_{part}"]] if before else []
            axis.plot([0] * len(first) + steps, first + means, label=arm.title, linewidth=1.4, **_look(name))
    for axis, part in zip(axes, parts, strict=True):
        axis.set(xlabel="step", ylabel=f"{part} {data_set.measure} (%)", title=f"{part}, student, {start} start")
        axis.grid(alpha=0.3)
    axes[1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1.02, 0.5))
    figure_.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure_.savefig(path, dpi=110)
    pyplot.close(figure_)
    return True


def _look(name: str) -> dict[str, Any]:
    """Return the line style: the recipe's colour, dashed with MFM and dotted for its control."""
    recipe = name
    while (other := ARMS[recipe].recipe) is not None:
        recipe = other
    recipes = [arm for arm in ARMS if ARMS[arm].recipe is None]
    style = {"mfm": "--", "control": ":"}.get(name.removeprefix(recipe).removeprefix("_"), "-")
    return {"color": f"C{recipes.index(recipe)}", "linestyle": style}


def mean_curve(runs: Sequence[Line], part: str) -> tuple[list[int], list[float]]:
    """Return the steps at which every run was scored, and the mean mIoU there (points)."""
    tables = [{int(point["step"]): float(point[part]) for point in run["curve"]} for run in runs]
    steps = sorted(set.intersection(*(set(one) for one in tables)))
    return steps, [100.0 * statistics.mean(one[step] for one in tables) for step in steps]
