"""Rate at which files become durable frames, and the cost of an idle daemon.

    python benchmarks/ingest.py                          everything, about ten minutes
    python benchmarks/ingest.py --parts rate             only the rate against decoding
    python benchmarks/ingest.py --parts idle --idle-seconds 3600

- rate: 512x512 JPEG files in a drop folder until all are committed (fsynced, in the catalog), against only decoding
  the same files with as many threads, in turn, for each `buffer.advanced.compression`; ratios turn by turn.
- rescan: a folder of 100,000 known names, looked through by the watcher of a running ingest.
- idle, single, burst (`ingest_daemon.py`): a real `mfmd run` with its server and observer, seen from outside:
  processor time and memory at rest, how long one image takes, and memory while 100,000 images arrive at once.
"""

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from crop_photos import QUALITY, draw_photo
from ingest_daemon import measure_burst, measure_idle, measure_single
from PIL import Image

from configs.buffer import BufferSettings
from configs.settings import Settings
from configs.watch import WatchAdvanced, WatchSettings
from daemon.ingest.worker import Ingest
from daemon.metrics import Metrics
from daemon.watch.events import Hints
from storage.buffer.catalog_records import FileFact
from storage.buffer.frames import FrameBuffer
from storage.layout import StateLayout
from storage.media.images import decode_image

PARTS = ("rate", "rescan", "single", "idle", "burst")
SIDE = 512
PACKING = ("none", "lz4", "zstd")
LARGE = 1 << 30


@dataclass(frozen=True)
class Turn:
    """Seconds of one turn over all files."""

    wall: float
    """Clock."""
    cpu: float
    """Processor time of this process, all threads."""


def main() -> None:
    """Measure the parts asked for and print markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--files", type=int, default=400, help="files of the rate")
    parser.add_argument("--turns", type=int, default=7, help="turns of the rate, after one to warm up")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="threads that decode, of the rate")
    parser.add_argument("--names", type=int, default=100_000, help="names of rescan and burst")
    parser.add_argument("--idle-seconds", type=float, default=120.0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mfmd-ingest-") as folder:
        root = Path(folder)
        if "rate" in arguments.parts:
            print_rate(root / "rate", arguments.files, arguments.turns, arguments.threads)
        if "rescan" in arguments.parts:
            print_rescan(root / "rescan", arguments.names)
        if "single" in arguments.parts:
            measure_single(root / "single")
        if "idle" in arguments.parts:
            measure_idle(root / "idle", arguments.idle_seconds)
        if "burst" in arguments.parts:
            measure_burst(root / "burst", arguments.names)


def print_rate(root: Path, files: int, turns: int, threads: Sequence[int]) -> None:
    """Print a row for each compression, and for decoding alone, for each count of decoding threads."""
    drop = root / "drop"
    drop.mkdir(parents=True)
    for number in range(files):
        Image.fromarray(draw_photo(number, SIDE, SIDE)).save(drop / f"{number:05d}.jpg", quality=QUALITY)
    paths = sorted(drop.iterdir())
    size = sum(path.stat().st_size for path in paths) / files / 1024
    print(f"\n{files} JPEG files of {SIDE}x{SIDE}, {size:.0f} KiB each, {turns} turns, on {os.cpu_count()} cores\n")
    print("| threads that decode | what | files/s | CPU time a file, ms | rate / decoding only, clock | CPU time |")
    print("|---|---|---|---|---|---|")
    for count in threads:
        print_rows(root, paths, turns, count)


def print_rows(root: Path, paths: Sequence[Path], turns: int, threads: int) -> None:
    """Time decoding alone, then each compression, turn after turn; print the rows."""
    decoded, taken = list[Turn](), {packing: list[Turn]() for packing in PACKING}
    for number in range(turns + 1):  # the first warms up
        one = decode_all(paths, threads)
        others = {packing: ingest_all(root, packing, len(paths), threads) for packing in PACKING}
        if number:
            decoded.append(one)
            for packing, turn in others.items():
                taken[packing].append(turn)
    print(row(f"| {threads} | decoding only", len(paths), decoded, decoded))
    for packing in PACKING:
        print(row(f"| {threads} | durable ingest, compression {packing}", len(paths), taken[packing], decoded))


def row(name: str, files: int, turns: Sequence[Turn], base: Sequence[Turn]) -> str:
    """Return a row of medians, and the ratios of the same turn with their quartiles."""
    clock = spread([one.wall / turn.wall for one, turn in zip(base, turns, strict=True)])
    cpu = spread([one.cpu / turn.cpu for one, turn in zip(base, turns, strict=True)])
    rate = files / statistics.median(turn.wall for turn in turns)
    each = 1000 * statistics.median(turn.cpu for turn in turns) / files
    return f"{name} | {rate:.0f} | {each:.2f} | {clock} | {cpu} |"


def spread(values: Sequence[float]) -> str:
    """Return median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.2f} ({low:.2f}-{high:.2f})"


def decode_all(paths: Sequence[Path], threads: int) -> Turn:
    """Only decode."""

    def decode(path: Path) -> None:
        decode_image(path, max_bytes=LARGE, max_pixels=LARGE)

    with timed() as turn, ThreadPoolExecutor(threads) as pool:
        list(pool.map(decode, paths))
    return turn[0]


def ingest_all(root: Path, packing: str, files: int, threads: int) -> Turn:
    """Ingest the files, already stable, into an empty buffer, durably."""
    shutil.rmtree(root / "state", ignore_errors=True)
    settings = settings_of(root, packing, files, threads)
    layout = StateLayout(settings.state)
    layout.create()
    with FrameBuffer.open(layout, settings.buffer, writable=True) as buffer:
        ingest = Ingest(settings, buffer, Metrics(settings).ingest, Hints(lambda: None))
        with timed() as turn:
            while buffer.catalog.counts().frames < files:
                ingest.step()
        ingest.close()
    return turn[0]


@contextmanager
def timed() -> Iterator[list[Turn]]:
    """Time the block; the list has the result once it ended."""
    found = list[Turn]()
    wall, cpu = time.perf_counter(), time.process_time()
    yield found
    found.append(Turn(time.perf_counter() - wall, time.process_time() - cpu))


def settings_of(root: Path, packing: str, frames: int, threads: int = 1) -> Settings:
    """Return a daemon's settings for frames of one size; files count as stable at once."""
    advanced = WatchAdvanced(group_seconds=0.0, decode_threads=threads)
    watch = WatchSettings(folder=root / "drop", stability_seconds=0.0, advanced=advanced)
    buffer = BufferSettings.model_validate(
        {
            "height": SIDE,
            "width": SIDE,
            "capacity_frames": max(frames, 64),
            "reserve_bytes": 0,
            "advanced": {"compression": packing},
        }
    )
    return Settings(state=root / "state", classes="camvid", watch=watch, buffer=buffer)


def print_rescan(root: Path, names: int) -> None:
    """Time how long the watcher takes to find that all files are known."""
    folder = root / "drop"
    folder.mkdir(parents=True)
    settings = settings_of(root, "none", 64)
    layout = StateLayout(settings.state)
    layout.create()
    with FrameBuffer.open(layout, settings.buffer, writable=True) as buffer:
        for start in range(0, names, 10_000):
            note_known(buffer, folder, range(start, min(names, start + 10_000)))
        ingest = Ingest(settings, buffer, Metrics(settings).ingest, Hints(lambda: None))
        first = rescan(ingest)
        again = [rescan(ingest) for _ in range(5)]
        ingest.close()
    print(f"\nrescan of {names} known names, seconds: {statistics.median(again):.2f} (median of 5)")
    print(f"the first, which also reads the catalog and every file's size and time: {first:.2f}")


def note_known(buffer: FrameBuffer, folder: Path, numbers: Sequence[int]) -> None:
    """Record files as refused, because that makes them known and is cheap."""
    for number in numbers:
        path = folder / f"{number:06d}.jpg"
        path.touch()
        status = path.stat()
        buffer.catalog.note(
            FileFact(path.name, status.st_size, status.st_mtime_ns), "refused", "empty", "drawn by a benchmark"
        )


def rescan(ingest: Ingest) -> float:
    """Return the seconds of one rescan of every name."""
    ingest._watcher._next_rescan = 0.0
    started = time.perf_counter()
    ingest._watcher.poll()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
