"""LitData's side of benchmarks/crops.py. Runs in an environment of its own and imports nothing of mfmd.

    PEER_PYTHON crop_peer.py prepare PHOTOS OUT     write both data sets with `litdata.optimize`
    PEER_PYTHON crop_peer.py serve OUT              print the version; then a line `form frame top left side` in, one
                                                    `seconds crc32` out, until standard input ends

`raw`: whole frames as numpy arrays, which LitData maps into memory. `jpeg`: JPEG files, which it stores as they are and
decodes with torchvision. Time is that of the access to the data set and of copying the crop.
"""

import os
import sys
import time
import zlib
from importlib.metadata import version
from pathlib import Path
from typing import Any, TextIO

import litdata
import numpy as np
import torch
from PIL import Image

FORMS = ("raw", "jpeg")


def raw(path: str) -> dict[str, Any]:
    """Return a sample of form `raw`."""
    with Image.open(path) as image:
        return {"pixels": np.asarray(image.convert("RGB"))}


def jpeg(path: str) -> dict[str, Any]:
    """Return a sample of form `jpeg`."""
    return {"pixels": Image.open(path)}


def prepare(photos: Path, out: Path) -> None:
    """Write both data sets from the folders `png` and `jpeg` of `photos`."""
    for form, sample, folder in (("raw", raw, "png"), ("jpeg", jpeg, "jpeg")):
        inputs = [str(path) for path in sorted((photos / folder).iterdir())]
        litdata.optimize(
            fn=sample,
            inputs=inputs,
            output_dir=str(out / form),
            chunk_bytes="64MB",
            num_workers=1,
            keep_data_ordered=True,
        )


def crop(dataset: Any, form: str, frame: int, top: int, left: int, side: int) -> np.ndarray:
    """Return a copy of the crop, [side, side, 3]."""
    pixels = dataset[frame]["pixels"]
    if form == "jpeg":  # [3, H, W]
        return pixels[:, top : top + side, left : left + side].permute(1, 2, 0).contiguous().numpy()
    return np.ascontiguousarray(pixels[top : top + side, left : left + side])


def serve(out: Path, answers: TextIO) -> None:
    """Answer orders."""
    torch.set_num_threads(1)
    datasets = {form: litdata.StreamingDataset(str(out / form), shuffle=False) for form in FORMS}
    print(f"LitData {version('litdata')}, torch {torch.__version__}", file=answers, flush=True)
    for line in sys.stdin:
        form, *numbers = line.split()
        frame, top, left, side = map(int, numbers)
        started = time.perf_counter()
        pixels = crop(datasets[form], form, frame, top, left, side)
        seconds = time.perf_counter() - started
        print(seconds, zlib.crc32(pixels.tobytes()), file=answers, flush=True)


def main() -> None:
    """Run the command line. LitData prints to stdout, so prints are redirected to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    if sys.argv[1] == "prepare":
        prepare(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        serve(Path(sys.argv[2]), answers)


if __name__ == "__main__":
    main()
