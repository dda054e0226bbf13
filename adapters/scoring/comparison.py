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
    device, validation = next(released.parameters()).device, None
    if source is not None and request.purpose == "probation":
        validation = taken_in_turn(source.validation, len(frames), request.number)
    images = load_images(settings, frames, buffer, source, device, validation)
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
        reference_marginal=reference_shares(released, images.frames, source),
        seconds=time.monotonic() - started,
    )


def taken_in_turn(items: Sequence[int], count: int, turn: int) -> list[int]:
    """Return `count` of `items` (or all), others in each turn until every one was taken, then again."""
    return [items[(turn * count + place) % len(items)] for place in range(min(count, len(items)))]


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
