"""Pre-filled masks of frames of the buffer, for a person to correct."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from adapters.checkpoints.checkpoint import load_version
from adapters.inference.segment import choose_device, segment_stored
from configs.settings import Settings
from storage.buffer.frames import FrameBuffer
from storage.errors import CorruptBuffer, FrameEvicted
from storage.layout import StateLayout
from storage.registry.registry import CheckpointRegistry

Prefilled = tuple[int, NDArray[np.uint8], NDArray[np.uint8]]
"""Id of a frame, its pixels [h, w, 3] without padding, and the class of each [h, w]."""


def prefilled(settings: Settings, frames: Sequence[int]) -> Iterator[Prefilled]:
    """Yield frames of the buffer with the classes that the serving version predicts; damaged ones are left out.

    Raises NoCheckpoint when nothing serves, CorruptCheckpoint when that version does not verify, StorageError without
    a buffer.
    """
    layout = StateLayout(settings.state)
    registry = CheckpointRegistry(layout.checkpoints)
    network, _ = load_version(registry, registry.serving_version(), choose_device(settings.serving.device))
    with FrameBuffer.open(layout, settings.buffer, writable=False) as buffer:
        records = {record.id: record for record in buffer.records(ids=frames)}
        for number in frames:
            try:
                record = records[number]
                pixels = buffer.read(record)[: record.valid_height, : record.valid_width]
            except (KeyError, CorruptBuffer, FrameEvicted):
                continue
            yield number, pixels, segment_stored(network, pixels)
