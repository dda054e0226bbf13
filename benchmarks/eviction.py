"""Frames that each eviction policy keeps of a stream of 10,000 with two recurring conditions, and the cost to choose.

    python benchmarks/eviction.py                    every policy, fifo as baseline in the same run; about four minutes
    python benchmarks/eviction.py --frames 2000      shorter
    python benchmarks/eviction.py --timing           only the time to choose among 2,048 frames of 512 numbers

The stream: blocks of day and, one in ten, night, in turn, the last one day. In each, a moving camera walks through
scenes, and every third frame comes from a camera that stands still. Images are drawn from a scene's numbers, so that
their perceptual hashes are real; embeddings are a fixed random map of the same numbers, with noise, to 512 dimensions,
and come two commit groups after the frame, as from an observer. Buffer, catalog, observations and admission are those
of the daemon.

night, still: share of the kept frames. age: how many frames came since a kept one (median, oldest). gap: mean distance
of the stream's frames (all; day; night) to the nearest kept one, 1 is fifo's over the whole stream; worst: the
largest.
"""

import argparse
import hashlib
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from configs.buffer import BufferSettings
from configs.watch import AdmissionSettings
from daemon.ingest.admission import Admission
from storage.buffer.catalog_records import FileFact
from storage.buffer.frames import FrameBuffer, NewFrame
from storage.buffer.observations import Observation, Observations
from storage.eviction.diverse import Diverse
from storage.eviction.policy import Embedding, Held
from storage.layout import StateLayout
from storage.media.images import fit_frame
from storage.media.perceptual_hash import perceptual_hash

SIDE, GROUP, LATENT, WIDTH = 32, 32, 24, 512
CYCLES, NIGHT, STILL = 5, 0.1, 3
CONDITION = 7.0
"""How far night is from day: as far as two scenes are from each other."""
LAG = 2 * GROUP
BITS = 6
ARMS = (
    ("fifo", False),
    ("reservoir", False),
    ("diverse", False),
    ("fifo", True),
    ("reservoir", True),
    ("diverse", True),
)


@dataclass(frozen=True)
class Stream:
    """The stream, frame by frame."""

    latent: NDArray[np.float32]
    night: NDArray[np.bool_]
    still: NDArray[np.bool_]
    embedding: NDArray[np.float32]

    def frame(self, number: int) -> NewFrame:
        """Return the image of one frame, drawn from its numbers."""
        image = Image.fromarray(self._pixels(number))
        pixels = np.asarray(image)
        digest = hashlib.sha256(pixels.tobytes() + number.to_bytes(4, "big")).hexdigest()
        fitted = fit_frame(pixels, SIDE, SIDE)
        source = "still" if self.still[number] else "moving"
        file = FileFact(f"{source}/{number:05d}.png", 1, number)
        return NewFrame(file, digest, float(number), SIDE, SIDE, fitted, source, perceptual_hash(pixels))

    def _pixels(self, number: int) -> NDArray[np.uint8]:
        values = self.latent[number].reshape(-1, 4, 6)[0]
        low = (values - values.min()) / np.ptp(values)
        smooth = Image.fromarray((255 * low).astype(np.uint8)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        shade = np.asarray(smooth, np.float32) * (0.3 if self.night[number] else 1.0)
        noise = np.random.default_rng(number).normal(0, 1, (SIDE, SIDE, 3))
        return np.clip(shade[..., None] + noise, 0, 255).astype(np.uint8)


def draw_stream(count: int) -> Stream:
    """Draw blocks of day and night: scenes of a moving camera, and one scene of a still camera."""
    rng = np.random.default_rng(0)
    place = np.arange(count) % (count // CYCLES) / (count // CYCLES)
    cut = (1 - NIGHT) / 2
    night, still = (place >= cut) & (place < cut + NIGHT), np.arange(count) % STILL == 0
    walk = np.zeros((count, LATENT), np.float32)
    here = rng.normal(size=LATENT)
    for number in range(count):
        here = 0.95 * here + np.sqrt(1 - 0.95**2) * rng.normal(size=LATENT)
        walk[number] = here
    walk[still] = rng.normal(size=LATENT) + 0.01 * rng.normal(size=(int(still.sum()), LATENT))
    condition = np.where(night, CONDITION, 0.0)[:, None].astype(np.float32)
    numbers = np.concatenate([walk, condition], axis=1)
    embedding = numbers @ rng.normal(size=(LATENT + 1, WIDTH)) / np.sqrt(WIDTH) + rng.normal(0, 0.003, (count, WIDTH))
    return Stream(walk, night, still, embedding.astype(np.float32))


@dataclass(frozen=True)
class Outcome:
    """The result of one arm."""

    name: str
    kept: NDArray[np.int64]
    stored: int
    skipped: int
    seconds: float


def run_arm(stream: Stream, eviction: str, admit: bool, capacity: int) -> Outcome:
    """Send the whole stream through a real buffer."""
    settings = BufferSettings.model_validate(
        {"height": SIDE, "width": SIDE, "capacity_frames": capacity, "eviction": eviction, "advanced": {"tile": SIDE}}
    )
    name = eviction + (" + admission" if admit else "")
    with tempfile.TemporaryDirectory() as folder:
        layout = StateLayout(Path(folder))
        layout.create()
        with (
            FrameBuffer.open(layout, settings, writable=True) as buffer,
            Observations.open(layout.observations, writable=True) as observations,
        ):
            admission = Admission(AdmissionSettings(near_duplicate_bits=BITS if admit else None), buffer.catalog)
            skipped, seconds = _feed(stream, buffer, observations, admission)
            kept = np.array([int(Path(record.name).stem) for record in buffer.records()])
            return Outcome(name, kept, buffer.catalog.counts().committed_total, skipped, seconds)


def _feed(stream: Stream, buffer: FrameBuffer, observations: Observations, admission: Admission) -> tuple[int, float]:
    """Commit in groups; the observer follows. Return the skipped frames and the seconds spent in commits."""
    skipped, seconds = 0, 0.0
    waiting: list[tuple[int, int]] = []
    for group, gone in _groups(stream, admission):
        skipped += gone
        started = time.perf_counter()
        records = buffer.append(group)
        seconds += time.perf_counter() - started
        waiting += [(record.id, int(Path(record.name).stem)) for record in records]
        ready, waiting = waiting[:-LAG], waiting[-LAG:]
        observations.add([_observed(frame, stream.embedding[number]) for frame, number in ready])
    return skipped, seconds


def _groups(stream: Stream, admission: Admission) -> Iterator[tuple[list[NewFrame], int]]:
    group: list[NewFrame] = []
    skipped = 0
    for number in range(len(stream.latent)):
        new = stream.frame(number)
        if admission.judge(new, group) is not None:
            skipped += 1
            continue
        group.append(new)
        if len(group) == GROUP:
            yield group, skipped
            group, skipped = [], 0
    yield group, skipped


def _observed(frame: int, embedding: NDArray[np.float32]) -> Observation:
    area = np.ones(1, np.float32)
    return Observation(frame, 1, 1, 0.0, 0.0, 1.0, area, embedding, style=area)


def gaps(stream: Stream, kept: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the distance of every frame of the stream to the nearest kept one."""
    chosen = stream.embedding[kept].astype(np.float64)
    found = []
    for block in np.array_split(stream.embedding.astype(np.float64), 40):
        squares = (block**2).sum(1)[:, None] + (chosen**2).sum(1) - 2 * block @ chosen.T
        found.append(np.sqrt(np.maximum(squares, 0).min(1)))
    return np.concatenate(found)


def report(stream: Stream, outcomes: list[Outcome]) -> None:
    """Return a table, as docs/explanation/benchmarks.md shows it."""
    base = gaps(stream, outcomes[0].kept).mean()
    columns = [
        "policy",
        "stored",
        "skipped",
        "night",
        "still",
        "age, median",
        "age, oldest",
        "gap",
        "day",
        "night",
        "worst",
        "ms/group",
    ]
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    count = len(stream.latent)
    for item in outcomes:
        gap, age = gaps(stream, item.kept) / base, count - item.kept
        numbers = [
            f"{item.stored:,}", f"{item.skipped:,}", f"{stream.night[item.kept].mean():.1%}",
            f"{stream.still[item.kept].mean():.1%}", f"{np.median(age):,.0f}", f"{age.max():,}", f"{gap.mean():.2f}",
            f"{gap[~stream.night].mean():.2f}", f"{gap[stream.night].mean():.2f}", f"{gap.max():.2f}",
            f"{1000 * item.seconds / max(1, item.stored / GROUP):.0f}",
        ]  # fmt: skip
        print(f"| {item.name} | {' | '.join(numbers)} |")


def time_choosing(capacity: int = 2048, rounds: int = 20) -> None:
    """Time how `diverse` chooses 32 of 2,048: the first time after a start, then group by group."""
    rng = np.random.default_rng(1)
    vectors = {number: rng.normal(size=WIDTH).astype(np.float32) for number in range(1, capacity + GROUP * rounds + 1)}
    policy = Diverse(lambda frames: [Embedding(number, 1, vectors[number]) for number in frames])
    there, taken = list(range(1, capacity + 1)), []
    for turn in range(rounds):
        started = time.perf_counter()
        order = policy.order([Held(number, "", "") for number in there], set(there))
        gone = {next(order) for _ in range(GROUP)}
        taken.append(1000 * (time.perf_counter() - started))
        there = [number for number in there if number not in gone]
        there += range(capacity + 1 + turn * GROUP, capacity + 1 + (turn + 1) * GROUP)
    print(f"choosing {GROUP} of {capacity} frames of {WIDTH} numbers: {taken[0]:.0f} ms the first time,", end=" ")
    print(f"then {np.median(taken[1:]):.1f} ms (at most {max(taken[1:]):.1f})")


def main() -> None:
    """Run the arms, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=10_000, help="length of the stream")
    parser.add_argument("--capacity", type=int, default=512, help="frames that the buffer holds")
    parser.add_argument("--timing", action="store_true", help="only the time that choosing takes")
    arguments = parser.parse_args()
    if not arguments.timing:
        stream = draw_stream(arguments.frames)
        outcomes = []
        for eviction, admit in ARMS:
            outcomes.append(run_arm(stream, eviction, admit, arguments.capacity))
            print(f"{outcomes[-1].name}: done", flush=True)
        print(f"{len(stream.latent):,} frames, {stream.night.mean():.1%} night, {stream.still.mean():.1%} still; "
              f"a buffer of {arguments.capacity}")  # fmt: skip
        report(stream, outcomes)
    time_choosing()


if __name__ == "__main__":
    main()
