"""Score versions on frames of the buffer for a rule of the gate that asked (`storage/gate/comparisons.py`)."""

import time
from collections.abc import Mapping, Sequence

from adapters.networks.network import SegmentationNetwork
from adapters.scoring.candidate import evenly, load_images, reference_shares, score_version
from configs.settings import Settings
from storage.buffer.frames import FrameBuffer
from storage.errors import CorruptBuffer, FrameEvicted
from storage.gate.comparisons import ComparisonRequest, ComparisonScores
from storage.rounds.records import ModelScores
from storage.source.labelled import LabelledSet


def compare_versions(
    settings: Settings,
    request: ComparisonRequest,
    buffer: FrameBuffer,
    source: LabelledSet | None,
    networks: Mapping[int, SegmentationNetwork],
    released: SegmentationNetwork,
) -> ComparisonScores:
    """Return the scores of every version of `request`, in its order, on the same images.

    `networks` by version and `released` are in eval mode on one device. `source` is None unless the request asks for
    it. A frame that was evicted or is damaged is omitted; the answer names those that were scored.
    """
    started = time.monotonic()
    frames = evenly(readable_frames(buffer, request.frames), settings.round.advanced.score_images)
    images = load_images(settings, frames, buffer, source, next(released.parameters()).device)
    models: list[ModelScores] = []
    first_maps = None
    for version in request.versions:
        scores, maps = score_version(networks[version], version, images, first_maps)
        first_maps = maps if first_maps is None else first_maps
        models.append(scores)
    return ComparisonScores(
        status="completed",
        frames=tuple(frames),
        models=tuple(models),
        reference_marginal=reference_shares(released, images, source),
        seconds=time.monotonic() - started,
    )


def readable_frames(buffer: FrameBuffer, ids: Sequence[int]) -> list[int]:
    """Return those of the frames `ids` that are in the buffer and whole, ascending."""
    found = []
    for record in buffer.records(ids=ids):
        try:
            buffer.read(record)
        except (CorruptBuffer, FrameEvicted):
            continue
        found.append(record.id)
    return found
