"""An upper bound for recipes: rounds that also replay dusk labels, which no recipe may see.

    python benchmarks/ceiling.py --data ../shared/data/camvid --work /tmp/adaptation --steps 400

The same start, network, budget and scoring as `adaptation.py`, in the same WORK folder; DACS, whose source set is the
daylight set and the labelled dusk frames, each repeated so that about half of what is replayed is dusk. Two cases:
`half` has the labels of the first half of the stream, and its score on the second half is what labels bring on frames
they do not belong to; `all` has every label, so its score is that of a network that saw the answers.
"""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from adaptation_arms import ARMS, STARTS
from adaptation_data import LabelledImage, labelled_part, score
from adaptation_runs import Run, adapt, prepare_start, source_model
from adaptation_sets import CLASSES

from adapters.networks.network import SegmentationNetwork
from configs.settings import Settings
from storage.layout import StateLayout

CASES = ("half", "all")


def first_half(frames: Sequence[LabelledImage]) -> int:
    """Return the number of frames in the first half of the stream."""
    return len(frames) // 2


def with_dusk_labels(data: Path, folder: Path, count: int) -> tuple[Path, Path]:
    """Return folders of images and labels: links to the daylight set and, repeated, to `count` dusk frames."""
    day, dusk = data / "day_train", data / "dusk_stream"
    repeats = max(1, round(len(list((day / "images").iterdir())) / count))
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
        for path in (day / part).iterdir():
            (folder / part / path.name).symlink_to(path)
        for path in sorted((dusk / part).iterdir())[:count]:
            for number in range(repeats):
                (folder / part / f"dusk{number}_{path.name}").symlink_to(path)
    return folder / "images", folder / "labels"


def settings_with_labels(run: Run, case: str) -> Settings:
    """Return the settings of `run` with a separate state: the start's checkpoint and frames, and dusk labels."""
    settings = run.settings()
    frames = labelled_part(run.data / "dusk_stream", CLASSES)
    count = first_half(frames) if case == "half" else len(frames)
    state = run.work / "ceiling" / f"{settings.state.name}-{case}"
    if state.exists():
        shutil.rmtree(state)
    ours, theirs = StateLayout(state), StateLayout(settings.state)
    for folder, original in ((ours.checkpoints, theirs.checkpoints), (ours.buffer, theirs.buffer)):
        shutil.copytree(original, folder)
    images, labels = with_dusk_labels(run.data, state / "labelled", count)
    values = settings.model_dump(mode="json")
    values["state"] = str(state)
    values["source"] |= {"images": str(images), "labels": str(labels)}
    return Settings.model_validate(values)


def row(title: str, run: Run, network: SegmentationNetwork) -> str:
    """Return one row of the table: mIoU on all dusk frames, on their second half, and on day."""
    dusk, settings = labelled_part(run.data / "dusk_stream", CLASSES), run.settings()
    parts = (dusk, dusk[first_half(dusk) :], labelled_part(run.data / "day_val", CLASSES))
    scores = " | ".join(f"{100 * score(network.eval(), part, settings).miou:.1f}" for part in parts)
    return f"| {run.start} | {title} | {scores} |"


def main() -> int:
    """Print both cases, the start, and DACS without dusk labels, for each start."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--starts", nargs="+", choices=list(STARTS), default=list(STARTS))
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("| start | what | dusk | its second half | day |\n|---|---|---|---|---|", flush=True)
    for start in arguments.starts:
        extra = {"round.steps": arguments.steps}
        run = Run(arguments.data.resolve(), arguments.work.resolve(), start, "dacs", arguments.seed, 0, extra)
        prepare_start(run)
        print(row("the start", run, source_model(run.settings())), flush=True)
        print(row("DACS, no dusk labels", run, adapt(run.settings(), ARMS["dacs"]).candidate), flush=True)
        for case in CASES:
            candidate = adapt(settings_with_labels(run, case), ARMS["dacs"]).candidate
            print(row(f"DACS, dusk labels: {case}", run, candidate), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
