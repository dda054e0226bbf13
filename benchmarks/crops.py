"""Time of a 512x512 crop from a 2048x1024 frame: our buffer against image files, a torch Dataset and LitData.

    python benchmarks/crops.py                                   about two minutes, LitData left out
    python benchmarks/crops.py --peer-python PATH/bin/python     with LitData from an environment of its own
    python benchmarks/crops.py --photos FOLDER                   also: bytes a pixel of real photographs

Make the environment with `python -m venv PATH; PATH/bin/pip install litdata`.

Frames are drawn (`crop_photos.py`) and stored in every form. Each turn draws one crop, and every arm reads this same
crop, every other turn in reverse order, so that what else the machine does meets all of them alike. Ratios are taken
turn by turn: median and quartiles. All processes share one core, one thread each. Every arm has read every frame
before: the page cache is warm. Lossless arms are checked, crop by crop, against the pixels that were drawn.
"""

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
import zlib
from collections.abc import Sequence
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from crop_arms import Arm, Buffer, Files, Folder, Peer, Pixels, Spot, Streamed, Zarr
from crop_photos import bytes_per_pixel, draw_photo, write_photos

COMPRESSIONS = ("none", "lz4", "zstd")
PNG, JPEG = "PNG, Pillow", "JPEG, Pillow"


def build_arms(photos: Sequence[Pixels], work: Path, python: Path | None, held: ExitStack) -> tuple[list[Arm], str]:
    """Store the photos in every form; return the readers and the peer's version."""
    png, jpeg = write_photos(work, photos)
    files = [Files(PNG, png), Files(JPEG, jpeg)]
    buffers = [Buffer(f"buffer, {name}", work / name, name, photos, held) for name in COMPRESSIONS]
    folders = [Folder(f"{inner.name}, torch Dataset", inner) for inner in (buffers[0], *files)]
    plain = Zarr("buffer, none, read with zarr", work / COMPRESSIONS[0], len(photos))
    arms: list[Arm] = [*buffers, plain, *files, *folders]
    if python is None:
        return arms, "LitData left out (--peer-python)"
    peer = Peer(python, work, work / "litdata", held)
    forms = {"raw": "LitData, raw frames", "jpeg": "LitData, JPEG"}
    arms += [Streamed(name, peer, work / "litdata" / form, len(photos)) for form, name in forms.items()]
    return arms, peer.version


def time_arms(arms: Sequence[Arm], photos: Sequence[Pixels], turns: int, side: int) -> dict[str, list[float]]:
    """Return the milliseconds of every arm in every turn. Raises ValueError if a lossless arm gives other pixels."""
    rng = np.random.default_rng(0)
    height, width, _ = photos[0].shape
    for frame in range(len(photos)):
        for arm in arms:
            arm.read(Spot(frame, 0, 0, side))
    taken: dict[str, list[float]] = {arm.name: [] for arm in arms}
    for turn in range(turns):
        top, left = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
        spot = Spot(int(rng.integers(len(photos))), top, left, side)
        wanted = zlib.crc32(spot.of(photos[spot.frame]).tobytes())
        for arm in arms if turn % 2 == 0 else reversed(arms):
            sample = arm.read(spot)
            if arm.lossless and sample.crc32 != wanted:
                raise ValueError(f"{arm.name}: {spot} gave other pixels than were stored")
            taken[arm.name].append(1000 * sample.seconds)
    return taken


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Return lower quartile, median, upper quartile."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def ratio(baseline: Sequence[float], values: Sequence[float]) -> str:
    """Return median and quartiles of `baseline` over `values`, turn by turn."""
    low, middle, high = quartiles([one / other for one, other in zip(baseline, values, strict=True)])
    return f"{middle:.2f} ({low:.2f}-{high:.2f})"


def report(arms: Sequence[Arm], taken: dict[str, list[float]]) -> str:
    """Return a table, as docs/explanation/benchmarks.md shows it."""
    lines = ["| from | crop, ms (quartiles) | PNG / this | JPEG / this | MB a frame |", "|---" * 5 + "|"]
    for arm in arms:
        values = taken[arm.name]
        low, middle, high = quartiles(values)
        cells = [
            arm.name,
            f"{middle:.2f} ({low:.2f}-{high:.2f})",
            ratio(taken[PNG], values),
            ratio(taken[JPEG], values),
            f"{arm.stored / 1e6:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def hardware() -> str:
    """Return processor, number of cores, load."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown processor")
    return f"{model}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"


def parse() -> argparse.Namespace:
    """Return the arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=32, help="frames stored")
    parser.add_argument("--height", type=int, default=1024, help="of a frame (pixels)")
    parser.add_argument("--width", type=int, default=2048, help="of a frame (pixels)")
    parser.add_argument("--side", type=int, default=512, help="of a crop (pixels)")
    parser.add_argument("--turns", type=int, default=400, help="crops read by each")
    parser.add_argument("--peer-python", type=Path, help="Python of an environment with litdata; none leaves it out")
    parser.add_argument("--photos", type=Path, help="folder of real JPEG files, whose bytes a pixel are printed")
    return parser.parse_args()


def main() -> int:
    """Draw, store, time, print."""
    arguments = parse()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    work = Path(tempfile.mkdtemp(prefix="mfmd-crops-"))
    try:
        with ExitStack() as held:
            photos = [draw_photo(seed, arguments.height, arguments.width) for seed in range(arguments.frames)]
            arms, peer = build_arms(photos, work, arguments.peer_python, held)
            versions = ", ".join(f"{name} {version(name)}" for name in ("mfmd", "zarr", "pillow", "torch"))
            print(f"{time.strftime('%Y-%m-%d')}, {hardware()}, {versions}, {peer}\n`python {' '.join(sys.argv)}`")
            for name, folder in {"drawn": work, "photographs": arguments.photos}.items():
                if folder is not None:
                    print("{}: JPEG {:.2f}, PNG {:.2f} bytes a pixel".format(name, *bytes_per_pixel(folder)))
            print(f"\n{report(arms, time_arms(arms, photos, arguments.turns, arguments.side))}")
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
