"""Score versions on frames of the buffer for a rule of the gate that asked (`storage/gate/comparisons.py`)."""

import time
from collections.abc import Collection, Mapping, Sequence

import torch

from adapters.inference.palette import class_map
from adapters.inference.segment import logits_of
from adapters.networks.network import SegmentationNetwork, normalise
from adapters.networks.training_pass import IGNORE_INDEX
from adapters.scoring.candidate import evenly, load_images, reference_shares, score_version
from adapters.scoring.observation import image_style
from adapters.scoring.scores.counts import count_images
from adapters.scoring.scores.diversity import gram_matrix
from adapters.scoring.scores.frames import NotFinite, check_finite
from configs.settings import Settings
from storage.buffer.frames import FrameBuffer
from storage.canary.images import CanaryImage
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
    canary: Sequence[CanaryImage] = (),
) -> ComparisonScores:
    """Return the scores of every version of `request`, in its order, on the same images.

    `networks` by version and `released` are in eval mode on one device. `source` is None unless the request asks for
    it. A frame that was evicted or is damaged is omitted, and so is one that is a canary image, because it would count
    twice; the answer names those that were scored. At most `round.advanced.score_images` of `canary` are scored.
    """
    started = time.monotonic()
    most, labelled = settings.round.advanced.score_images, {image.crc32 for image in canary}
    frames = evenly(readable_frames(buffer, request.frames, labelled), most)
    canary = [canary[place] for place in evenly(range(len(canary)), most)] if request.canary else []
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
        canary=tuple(_on_labels(networks[version], version, canary) for version in request.versions if canary),
        canary_styles=[image_style(released, image.pixels).tolist() for image in canary],
        reference_marginal=reference_shares(released, images.frames, source),
        seconds=time.monotonic() - started,
    )


def taken_in_turn(items: Sequence[int], count: int, turn: int) -> list[int]:
    """Return `count` of `items` (or all), others in each turn until every one was taken, then again."""
    return [items[(turn * count + place) % len(items)] for place in range(min(count, len(items)))]


@torch.inference_mode()
def _on_labels(network: SegmentationNetwork, version: int, images: Sequence[CanaryImage]) -> ModelScores:
    """Return counts and nuclear norms of labelled images; both come of one pass."""
    device, grams, pairs = next(network.parameters()).device, [], []
    try:
        for image in images:
            logits = check_finite(logits_of(network, normalise(torch.tensor(image.pixels, device=device)[None]))[0])
            grams.append(gram_matrix(logits.softmax(dim=0)).tolist())
            pairs.append((class_map(logits), torch.tensor(image.label, device=device)))
    except NotFinite:
        return ModelScores(version=version, finite=False)
    counts = count_images(pairs, network.num_classes, IGNORE_INDEX)
    return ModelScores(version=version, finite=True, gram=grams, canary=counts)


def readable_frames(buffer: FrameBuffer, ids: Sequence[int], omitted: Collection[int] = ()) -> list[int]:
    """Return those of the frames `ids` that are in the buffer and whole, ascending, without checksums of `omitted`."""
    found = []
    for record in buffer.records(ids=ids) if ids else []:
        if record.crc32 in omitted:
            continue
        try:
            buffer.read(record)
        except (CorruptBuffer, FrameEvicted):
            continue
        found.append(record.id)
    return found
