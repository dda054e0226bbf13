"""What the options of `serving` cost in accuracy on a trained network, by true labels.

    python benchmarks/serving_accuracy.py --data ../shared/data/camvid --work /tmp/adaptation

The network is a start of `adaptation.py`, trained on CamVid's days (in WORK, minutes, unless that was done). A
table: mIoU on the days held back and on the dusk stream, and the share of dusk pixels with the label of float32.
"""

import argparse
import copy
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from adaptation_arms import STARTS
from adaptation_data import LabelledImage, labelled_part, score
from adaptation_runs import Run, prepare_start, source_model
from adaptation_sets import CLASSES
from numpy.typing import NDArray
from serving_options import OPTIONS

from adapters.inference.forward import ServedForward
from adapters.inference.segment import segment_image
from configs.serving import ServingSettings
from configs.settings import Settings

CPU = torch.device("cpu")


def main() -> int:
    """Measure each start asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--starts", nargs="+", choices=list(STARTS), default=list(STARTS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("| start | option | day mIoU | dusk mIoU | dusk labels as float32 |\n|---|---|---|---|---|", flush=True)
    for start in arguments.starts:
        run = Run(arguments.data.resolve(), arguments.work.resolve(), start, "dacs", 0)
        prepare_start(run)
        _print_start(start, run)
    return 0


def _print_start(start: str, run: Run) -> None:
    settings, network = run.settings(), source_model(run.settings())
    day, dusk = (labelled_part(run.data / part, CLASSES) for part in ("day_val", "dusk_stream"))
    exact: list[NDArray[np.uint8]] | None = None
    for name, values in OPTIONS.items():
        forward = ServedForward(copy.deepcopy(network), ServingSettings.model_validate(values), CPU)
        labels = _labels(forward, dusk, settings)
        exact = labels if exact is None else exact
        same = np.mean([np.mean(one == other) for one, other in zip(labels, exact, strict=True)])
        scores = " | ".join(f"{100 * score(forward, part, settings).miou:.2f}" for part in (day, dusk))
        print(f"| {start} | {name} | {scores} | {100 * same:.2f} % |", flush=True)


def _labels(network: ServedForward, images: Iterable[LabelledImage], settings: Settings) -> list[NDArray[np.uint8]]:
    size = settings.buffer.height, settings.buffer.width
    return [segment_image(network, one.image, size) for one in images]


if __name__ == "__main__":
    sys.exit(main())
