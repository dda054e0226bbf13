"""A real `mfmd run` measured from outside, for benchmarks/ingest.py: idle, with one image, with 100,000 at once."""

import os
import statistics
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from adapters.rounds.source_training import pretrain
from daemon.demo.conditions import DAY
from daemon.demo.driving import DrivenDaemon
from daemon.demo.scenes import write_scene
from daemon.gate.moves import release
from storage.buffer.catalog import Catalog

TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
SETTLE_SECONDS = 20.0
"""After the start, before rest is measured."""
STABILITY = 2.0
"""`watch.stability_seconds`: the default."""


def daemon_in(root: Path, **buffer: Any) -> DrivenDaemon:
    """Return a daemon with a tiny serving version that starts no round; all else is default."""
    crop = {"batch_size": 2, "crop_height": 64, "crop_width": 64}
    config = {
        "state": "state", "classes": "demo", "watch": {"folder": "drop"},
        "source": {"images": "source/images", "labels": "source/labels"},
        "buffer": {
            "height": 64, "width": 64, "capacity_frames": 2048, "reserve_bytes": 0, "advanced": {"tile": 64}, **buffer,
        },
        "network": {
            "name": "deeplabv3plus", "encoder": "resnet_tiny", "channels": 32, "advanced": {"output_stride": 16},
        },
        "pretrain": {"steps": 1, **crop}, "round": {"advanced": {"threads": 1}, **crop},
        "schedule": {"new_frames": 10**9},
        "serving": {"port": 0, "device": "cpu"}, "control": {"port": 0}, "log": {"level": "warning"},
    }  # fmt: skip
    for seed in range(4):
        write_scene(root / "source", DAY, seed, True, 64, 64)
    path = root / "mfmd.yaml"
    path.write_text(yaml.safe_dump(config))
    daemon = DrivenDaemon(path)
    release(daemon.registry, pretrain(daemon.settings).version, "pretrain", "benchmark")
    return daemon


def family(pid: int) -> list[int]:
    """Return a process and its descendants."""
    found, queue = [pid], [pid]
    while queue:
        for task in Path(f"/proc/{queue.pop()}/task").iterdir():
            children = [int(child) for child in (task / "children").read_text().split()]
            found += children
            queue += children
    return found


def cpu_seconds(pid: int) -> float:
    """Return the processor time of one process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def resident(pid: int) -> int:
    """Return the memory of one process (bytes)."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE


def write_image(folder: Path, number: int, side: int = 64) -> Path:
    """Write a small JPEG with unique content, renamed into the folder."""
    pixels = np.random.default_rng(number).integers(0, 256, (side // 8, side // 8, 3), np.uint8)
    part, path = folder / f".{number:06d}.part", folder / f"{number:06d}.jpg"
    Image.fromarray(pixels).resize((side, side)).save(part, "JPEG")
    part.rename(path)
    return path


def started(daemon: DrivenDaemon) -> int:
    """Wait until it watches; return its process id."""
    daemon.wait_for(lambda: daemon.layout.catalog.exists() or None, "the catalog", 120)
    daemon.wait_for(lambda: (daemon.url("daemon") is not None) or None, "the control plane", 120)
    assert daemon.process is not None
    return daemon.process.pid


def frames(daemon: DrivenDaemon) -> int:
    """Return the number of frames ever committed."""
    with closing(Catalog.open(daemon.layout.catalog, writable=False)) as catalog:
        return catalog.counts().committed_total


def measure_single(root: Path, images: int = 15) -> None:
    """Measure single images that arrive at an idle daemon."""
    daemon = daemon_in(root)
    with daemon:
        started(daemon)
        time.sleep(5)
        rows = {"written in place": copied, "renamed into place": renamed}
        print(f"\none image at an idle daemon until it is committed, seconds (stability delay {STABILITY:.0f} s)\n")
        print("| how | median | slowest | images |\n|---|---|---|---|")
        for base, (name, arrive) in enumerate(rows.items()):
            times = [latency(daemon, arrive, 1000 * base + number) for number in range(images)]
            print(f"| {name} | {statistics.median(times):.2f} | {max(times):.2f} | {images} |")


def copied(folder: Path, number: int) -> None:
    """Write the file under its final name, so that it must become stable first."""
    hidden = write_image(folder.parent, number)
    (folder / f"c{number}.jpg").write_bytes(hidden.read_bytes())


def renamed(folder: Path, number: int) -> None:
    """Rename a complete file into the folder."""
    write_image(folder, number)


def latency(daemon: DrivenDaemon, arrive: Callable[[Path, int], None], number: int) -> float:
    """Return the seconds from the file's arrival to its commit."""
    before = frames(daemon)
    arrive(daemon.settings.watch.folder, number)
    start = time.perf_counter()
    while frames(daemon) == before:
        assert time.perf_counter() - start < 60, "not committed within a minute"
        time.sleep(0.01)
    return time.perf_counter() - start


def measure_idle(root: Path, seconds: float) -> None:
    """Measure processor time and memory of an idle daemon and its children."""
    daemon = daemon_in(root)
    with daemon:
        pid = started(daemon)
        time.sleep(SETTLE_SECONDS)
        members = family(pid)
        cpu, memory = {one: cpu_seconds(one) for one in members}, {one: resident(one) for one in members}
        time.sleep(seconds)
        print(f"\nidle for {seconds:.0f} s\n")
        print("| process | share of one core | memory before | after, MiB |\n|---|---|---|---|")
        for one in members:
            share = 100 * (cpu_seconds(one) - cpu[one]) / seconds
            name = "daemon" if one == pid else Path(f"/proc/{one}/cmdline").read_bytes().split(b"\0")[-2].decode()[-30:]
            before, after = memory[one] / 2**20, resident(one) / 2**20
            print(f"| {name} | {share:.2f} % | {before:.1f} | {after:.1f} |")


def measure_burst(root: Path, images: int) -> None:
    """Measure the daemon's memory while `images` files arrive at once."""
    daemon = daemon_in(root)
    folder = daemon.settings.watch.folder
    folder.mkdir(parents=True)
    with daemon:
        pid = started(daemon)
        time.sleep(SETTLE_SECONDS)
        rest = peak = resident(pid)
        start = time.perf_counter()
        for number in range(images):
            write_image(folder, number)
            peak = max(peak, resident(pid)) if number % 100 == 0 else peak
        written = time.perf_counter() - start
        while (done := frames(daemon)) < images:
            peak = max(peak, resident(pid))
            assert time.perf_counter() - start < 3600, f"only {done} committed within an hour"
            time.sleep(0.2)
        total = time.perf_counter() - start
    print(f"\nburst: {images} files written in {written:.0f} s, all committed after {total:.0f} s")
    print(f"memory of the daemon: {rest / 2**20:.0f} MiB at rest, {peak / 2**20:.0f} MiB at most")
