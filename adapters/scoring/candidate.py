"""Score the candidate of a round against the incumbent and the released model; the gate decides on these numbers.

Every score is kept per image, in one order for all models, so that the gate can resample images in pairs. Scores are
deterministic: images are chosen evenly, dropout masks are seeded by image, nothing else is random. Frames are scored
whole, at frame size, valid region only, in float32.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adapters.augmentation.styled import restyle
from adapters.inference.palette import class_map
from adapters.inference.segment import logits_of
from adapters.networks.network import SegmentationNetwork, normalise
from adapters.networks.training_pass import IGNORE_INDEX
from adapters.scoring.plugin_scores import Score, load_scores, plugin_scores
from adapters.scoring.scores.counts import count_images
from adapters.scoring.scores.diversity import marginal
from adapters.scoring.scores.frames import NotFinite, check_finite, enlarged, frame_scores
from configs.settings import Settings
from storage.buffer.frames import FrameBuffer
from storage.canary.images import CanaryImage
from storage.errors import CorruptCheckpoint, UnknownVersion
from storage.registry.weight_changes import differing_tensors
from storage.rounds.records import ConditionScores, ImageCounts, KnownCondition, ModelScores, RoundSpec
from storage.source.labelled import LabelledSet


class ScoredImages(NamedTuple):
    """Images that all models are scored on, uint8 [h, w, 3] without padding, with their labels [h, w]."""

    frames: list[Tensor]
    source: list[tuple[Tensor, Tensor]]
    styled: list[tuple[Tensor, Tensor]]  # the source images, the i-th in the style of frame i modulo their number
    ignored: int
    canary: Sequence[tuple[Tensor, Tensor]] = ()  # labelled target images, `IGNORE_INDEX` where nothing is
    plugins: Mapping[str, Score] = MappingProxyType({})  # further scores of the frames


LoadVersion = Callable[[int], SegmentationNetwork]
"""Reads a version of the registry on the device of the round. Raises CorruptCheckpoint, UnknownVersion."""
GOLDEN_SCORED = 8
"""Most golden frames of each other condition that are scored."""


class ScoredRound(NamedTuple):
    """What the gate compares; fields of `RoundScores`."""

    released: ModelScores | None
    incumbent: ModelScores
    candidate: ModelScores
    reference_marginal: list[float]
    others: dict[str, ModelScores]
    elsewhere: tuple[ConditionScores, ...]


@torch.inference_mode()
def score_round(
    settings: Settings,
    spec: RoundSpec,
    buffer: FrameBuffer,
    source: LabelledSet | None,
    *,
    candidate: SegmentationNetwork,
    incumbent: SegmentationNetwork,
    released: SegmentationNetwork,
    others: Mapping[str, SegmentationNetwork] | None = None,
    name: str = "candidate",
    load: LoadVersion | None = None,
    canary: Sequence[CanaryImage] = (),
    on_scored: Callable[[], None] = lambda: None,
) -> ScoredRound:
    """Score the networks, in eval mode on one device; `released` is `incumbent` itself when they are one version.

    Each image is read once, and all lists over images have one order. `others`: further candidates by name; `name`
    is that of `candidate`. `load` reads the best versions of other conditions, which are not scored without it.
    `canary`: labelled target images, at most `round.advanced.score_images` are scored, evenly chosen. `on_scored` is
    called after each model.

    A model whose weights or logits are not finite gets `finite=False` and no scores. Raises CorruptBuffer.
    """
    device = next(candidate.parameters()).device
    images = load_images(settings, spec.deciding_frames, buffer, source, device)
    chosen = [canary[place] for place in evenly(range(len(canary)), settings.round.advanced.score_images)]
    labelled = [(_tensor(image.pixels, device), _tensor(image.label, device)) for image in chosen]
    images = images._replace(canary=labelled)
    incumbent_scores, incumbent_maps = score_version(incumbent, spec.incumbent, images)
    on_scored()

    def scored(network: SegmentationNetwork) -> ModelScores:
        missing = differing_tensors(_shapes(incumbent), _shapes(network))
        if missing:
            return ModelScores(version=None, finite=True, missing=missing)
        scores = score_version(network, None, images, incumbent_maps)[0]
        on_scored()
        return scores

    counts = incumbent_scores.source if released is incumbent else _counts(released, images.source, images.ignored)
    released_scores = ModelScores(version=spec.released, finite=True, source=counts) if images.source else None
    reference = reference_shares(released, _trusted(spec, buffer, images, device), source)
    further = {name: scored(network) for name, network in (others or {}).items()}
    own = scored(candidate)
    whole = {
        key: network
        for key, network in {name: candidate, **(others or {})}.items()
        if not (own if key == name else further[key]).missing
    }
    known = {spec.incumbent: incumbent, spec.released: released}
    elsewhere = []
    for condition in spec.conditions.others if spec.conditions and load else ():
        elsewhere.append(_in_condition(condition, known, load, whole, buffer, images))
        on_scored()
    return ScoredRound(released_scores, incumbent_scores, own, reference, further, tuple(elsewhere))


def _trusted(spec: RoundSpec, buffer: FrameBuffer, images: ScoredImages, device: torch.device) -> list[Tensor]:
    """Return frames on which the released model's class shares can be trusted: of conditions where it is still best.

    The deciding frames without such a condition. On a night that it never saw it may answer one class everywhere.
    """
    known = spec.conditions.others if spec.conditions else ()
    golden = [frame for it in known if it.best == spec.released for frame in evenly(it.golden, GOLDEN_SCORED)]
    return _frames(golden, buffer, device) or images.frames


def _in_condition(
    condition: KnownCondition,
    known: Mapping[int, SegmentationNetwork],
    load: LoadVersion | None,
    candidates: Mapping[str, SegmentationNetwork],
    buffer: FrameBuffer,
    images: ScoredImages,
) -> ConditionScores:
    """Score the best version of a condition and every candidate on its golden frames; that version on source too."""
    found = ConditionScores(
        number=condition.number, name=condition.name, labelled=condition.labelled, version=condition.best
    )
    network = known.get(condition.best)
    try:
        if network is None and load is not None:
            network = load(condition.best)
    except (CorruptCheckpoint, UnknownVersion) as error:
        return found.model_copy(update={"missing": str(error)})
    assert network is not None
    frames = _frames(evenly(condition.golden, GOLDEN_SCORED), buffer, next(network.parameters()).device)
    golden = ScoredImages(frames, images.source if condition.labelled else [], [], images.ignored)
    best, maps = score_version(network, condition.best, golden)
    golden = golden._replace(source=[])
    scores = {name: score_version(each, None, golden, maps)[0] for name, each in candidates.items()}
    return found.model_copy(update={"best": best, "candidates": scores})


def _shapes(network: SegmentationNetwork) -> dict[str, tuple[int, ...]]:
    """Shape of each tensor of a network."""
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def evenly(items: Sequence[int], most: int) -> list[int]:
    """Return at most `most` of `items`, evenly spaced, first and last among them."""
    if len(items) <= most:
        return list(items)
    return [items[int(place)] for place in np.linspace(0, len(items) - 1, most).round()]


def load_images(
    settings: Settings,
    ids: Collection[int],
    buffer: FrameBuffer,
    source: LabelledSet | None,
    device: torch.device,
    validation: Sequence[int] | None = None,
) -> ScoredImages:
    """Read at most `round.advanced.score_images` of the frames `ids` and of the source validation images.

    `validation`: indices of the source images to take instead of all validation images. Raises CorruptBuffer,
    FrameEvicted, ConfigError for a score of a plug-in that cannot be imported.
    """
    most = settings.round.advanced.score_images
    ids = evenly(sorted(ids), most)
    frames = _frames(ids, buffer, device)
    labelled = evenly(source.validation if validation is None else validation, most) if source else []
    pairs = [labelled_image(source, index, device) for index in labelled] if source else []
    styled = [(restyle(pixels, frames[n % len(frames)]), label) for n, (pixels, label) in enumerate(pairs) if frames]
    ignored = source.ignore_index if source else IGNORE_INDEX
    return ScoredImages(frames, pairs, styled, ignored, plugins=load_scores(settings.round))


def _frames(ids: Sequence[int], buffer: FrameBuffer, device: torch.device) -> list[Tensor]:
    return [
        _tensor(buffer.read(record)[: record.valid_height, : record.valid_width], device)
        for record in (buffer.records(ids=ids) if ids else [])
    ]


@torch.inference_mode()
def score_version(
    network: SegmentationNetwork, version: int | None, images: ScoredImages, incumbent_maps: list[Tensor] | None = None
) -> tuple[ModelScores, list[Tensor]]:
    """Return scores of one model, the incumbent itself without `incumbent_maps`, and its class maps of the frames."""
    try:
        for tensor in network.state_dict().values():
            check_finite(tensor)
        frames = [
            frame_scores(network, enlarged(normalise(frame[None])), index) for index, frame in enumerate(images.frames)
        ]
        source = _counts(network, images.source, images.ignored)
        styled = _counts(network, images.styled, images.ignored)
        canary = _counts(network, images.canary, IGNORE_INDEX)
    except NotFinite:
        return ModelScores(version=version, finite=False), []
    maps = [prediction for _, prediction in frames]
    # An incumbent that is not finite has no maps: agreement stays empty, and the gate does not compare.
    both = zip(maps, maps if incumbent_maps is None else incumbent_maps, strict=False)
    columns: dict[str, Any] = {name: [scores[name] for scores, _ in frames] for name in frames[0][0]} if frames else {}
    columns["agreement"] = [float(torch.eq(own, other).double().mean()) for own, other in both]
    columns["plugins"] = plugin_scores(images.plugins, network, images.frames, maps)
    columns["entropy"] = float(np.mean(columns["entropy"])) if frames else None
    return ModelScores(version=version, finite=True, source=source, styled=styled, canary=canary, **columns), maps


def _counts(network: SegmentationNetwork, pairs: Sequence[tuple[Tensor, Tensor]], ignored: int) -> ImageCounts | None:
    """Count images uint8 [h, w, 3] against labels [h, w]; None without images. Raises NotFinite."""
    predicted = (
        (class_map(check_finite(logits_of(network, normalise(pixels[None]))[0])), label) for pixels, label in pairs
    )
    return count_images(predicted, network.num_classes, ignored) if pairs else None


@torch.inference_mode()
def reference_shares(
    released: SegmentationNetwork, frames: Sequence[Tensor], source: LabelledSet | None
) -> list[float]:
    """Return the reference class shares [K]: of the source labels, or of the released model on the frames."""
    return _source_shares(source) or _mean_softmax(released, frames)


def _source_shares(source: LabelledSet | None) -> list[float]:
    """Return class shares [K] of all source labels; empty without labels."""
    pixels = source.class_pixels.sum(axis=0) if source else np.zeros(0)
    return (pixels / pixels.sum()).tolist() if pixels.any() else []


def _mean_softmax(network: SegmentationNetwork, frames: Sequence[Tensor]) -> list[float]:
    """Return the mean softmax [K] over hold-out frames; empty without frames."""
    rows = [marginal(logits_of(network, normalise(frame[None]))[0].softmax(dim=0)).tolist() for frame in frames]
    return list(np.mean(rows, axis=0).tolist()) if rows else []


def labelled_image(source: LabelledSet, index: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return a source image uint8 [h, w, 3] and its label [h, w], without padding."""
    height, width = source.valid[index]
    pixels, label = source.images.read(index)[:height, :width], source.labels.read(index)[:height, :width]
    return _tensor(pixels, device), _tensor(label, device)


def _tensor(pixels: NDArray[np.uint8], device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels)).to(device)
