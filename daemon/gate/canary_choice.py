"""Choose frames of the buffer for a person to label, by what the observer and the newest round know of them."""

import numpy as np

from configs.settings import Settings
from daemon.gate.canary_picks import Pick, disputed, pick_frames
from daemon.gate.conditions import places, seen_frames
from storage.buffer.frames import FrameBuffer
from storage.buffer.observations import Observations
from storage.canary.images import known_checksums
from storage.errors import StorageError
from storage.gate.conditions import ConditionStore
from storage.layout import StateLayout
from storage.registry.registry import CheckpointRegistry
from storage.rounds.folder import RoundStore


def choose_frames(settings: Settings, count: int) -> list[Pick]:
    """Return at most `count` frames that are no canary image yet (`pick_frames`); without observations evenly spaced.

    Raises NoCheckpoint, or StorageError when the buffer or the observations cannot be read.
    """
    layout = StateLayout(settings.state)
    registry = CheckpointRegistry(layout.checkpoints)
    released = registry.released(registry.serving_version())
    canary = known_checksums(layout)
    with FrameBuffer.open(layout, settings.buffer, writable=False) as buffer:
        records = {record.id: record for record in buffer.records() if record.crc32 not in canary}
    if not records:
        raise StorageError("no frame in the buffer that could be labelled; drop images into the drop folder first")
    observed = []
    if layout.observations.exists():
        with Observations.open(layout.observations, writable=False) as observations:
            observed = observations.get(records.keys() & observations.observed(released))
    if not observed:
        ids = sorted(records)
        chosen = np.linspace(0, len(ids) - 1, min(count, len(ids))).round().astype(int)
        return [Pick(ids[place], None, 0.0) for place in chosen]
    known, conditions = ConditionStore(layout.conditions).read(), dict[int, int | None]()
    if known is not None and known.released == released:
        stream = seen_frames(observed, records)
        numbers = [*(item.number for item in known.conditions), None]
        placed = zip(stream.ids.tolist(), places(stream.styles, known).tolist(), strict=True)
        conditions = {frame: numbers[place] for frame, place in placed}
    newest = RoundStore(layout.rounds).latest()
    dispute = disputed(newest.scores() if newest else None, len(settings.classes))
    return pick_frames(observed, conditions, dispute, count)
