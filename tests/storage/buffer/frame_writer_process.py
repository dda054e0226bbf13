"""A real writer that tests kill: appends groups for ever, prints what was acknowledged.

Arguments: state directory, first frame number, frames a group.
"""

import hashlib
import sys
from pathlib import Path

import numpy as np

from configs.buffer import BufferAdvanced, BufferSettings
from storage.buffer.catalog_records import FileFact
from storage.buffer.frames import FrameBuffer, NewFrame
from storage.layout import StateLayout
from storage.media.images import FittedFrame

SETTINGS = BufferSettings(
    height=64, width=96, capacity_frames=10, holdout_fraction=0.25, advanced=BufferAdvanced(tile=32)
)


def pixels_of(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (64, 96, 3), np.uint8)


def frame_of(number: int) -> NewFrame:
    pixels = pixels_of(number)
    digest = hashlib.sha256(pixels.tobytes()).hexdigest()
    return NewFrame(FileFact(f"{number}.png", number, number), digest, 1.0, 64, 96, FittedFrame(pixels, 64, 96))


def main() -> None:
    root, first, group = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    buffer = FrameBuffer.open(StateLayout(root), SETTINGS, writable=True)
    print("open", flush=True)
    while True:
        records = buffer.append([frame_of(number) for number in range(first, first + group)])
        print(" ".join(record.name for record in records), flush=True)
        first += group


if __name__ == "__main__":
    main()
