"""Score the candidate of a round against the incumbent and the released model; the gate decides on these numbers.

Every score is kept per image, in one order for all models, so that the gate can resample images in pairs. Scores are
deterministic: images are chosen evenly, dropout masks are seeded by image, nothing else is random. Frames are scored
whole, at frame size, valid region only, in float32.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adapters.inference.palette import class_map
from adapters.inference.segment import logits_of
from adapters.networks.network import SegmentationNetwork, normalise
from adapters.scoring.scores.counts import CountsOverImages
from adapters.scoring.scores.diversity import marginal
from adapters.scoring.scores.frames import FrameScores, NotFinite, check_finite, enlarged
from adapters.scoring.scores.styled import restyle
from configs.settings import Settings
from storage.buffer.frames import FrameBuffer
from storage.registry.weight_changes import differing_tensors
from storage.rounds.records import ImageCounts, ModelScores, RoundSpec
from storage.source.labelled import LabelledSet


@dataclass(frozen=True, slots=True)
class ScoredRound:
    """What the gate compares."""

    released: ModelScores | None
    """The released model: source counts only; None without source."""
    incumbent: ModelScores
    """The version that serves."""
    candidate: ModelScores
    """The candidate. Where its tensors differ from the incumbent's it has their names in `missing`, and no scores."""
    reference_marginal: list[float]
    """Class shares [K] of the source labels, else the mean softmax of the released model on the hold-out frames."""


class RoundScorer:
    """Scores networks on the images of one round: hold-out frames, and source images where there are any."""

    def __init__(
        self, settings: Settings, spec: RoundSpec, buffer: FrameBuffer, source: LabelledSet | None, device: torch.device
    ) -> None:
        """Load the images. Raises CorruptBuffer."""
        self._spec, self._source, self._device = spec, source, device
        self._images = _load(settings, spec, buffer, source, device)

    @torch.inference_mode()
    def score(
        self,
        candidate: SegmentationNetwork,
        incumbent: SegmentationNetwork,
        released: SegmentationNetwork | None = None,
        reference: Sequence[float] | None = None,
    ) -> ScoredRound:
        """Score the candidate, the incumbent and the released model, which is the incumbent unless `released` is given.

        Moves the networks to the device and puts them in eval mode. `reference` replaces the reference marginal. A
        model whose weights or logits are not finite gets `finite=False` and no scores. Raises ValueError when the
        released version is another than the incumbent and `released` is missing.
        """
        spec, images = self._spec, self._images
        if released is None and spec.released != spec.incumbent:
            raise ValueError(f"round {spec.round}: the released version {spec.released} must be given for scoring")
        anchor = incumbent if released is None or spec.released == spec.incumbent else released
        for network in (anchor, incumbent, candidate):
            network.to(self._device).eval()
        incumbent_scores, incumbent_maps = _score(incumbent, spec.incumbent, images)
        missing = differing_tensors(_shapes(incumbent), _shapes(candidate))
        if missing:
            candidate_scores = ModelScores(version=None, finite=True, missing=missing)
        else:
            candidate_scores, _ = _score(candidate, None, images, incumbent_maps)
        same = anchor is incumbent
        counts = incumbent_scores.source if same else _counts(anchor, images.source, images.ignore_index)
        released_scores = ModelScores(version=spec.released, finite=True, source=counts) if images.source else None
        marginals = list(reference or _source_shares(self._source) or _mean_softmax(anchor, images.frames))
        return ScoredRound(released_scores, incumbent_scores, candidate_scores, marginals)


def _shapes(network: SegmentationNetwork) -> dict[str, tuple[int, ...]]:
    """Shape of each tensor of a network."""
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def evenly(items: Sequence[int], most: int) -> list[int]:
    """Return at most `most` of `items`, evenly spaced, first and last among them."""
    if len(items) <= most:
        return list(items)
    return [items[int(place)] for place in np.linspace(0, len(items) - 1, most).round()]


@dataclass(frozen=True, slots=True)
class _Images:
    """Images that all models of a round are scored on, without padding, on the device."""

    frames: list[Tensor]
    """Hold-out frames, uint8 [h, w, 3]."""
    source: list[tuple[Tensor, Tensor]]
    """Source validation images uint8 [h, w, 3] with their labels uint8 [h, w]."""
    styled: list[tuple[Tensor, Tensor]]
    """The same, the i-th in the style of hold-out frame i modulo their number."""
    ignore_index: int
    """Label value that does not count."""


@torch.inference_mode()
def _load(
    settings: Settings, spec: RoundSpec, buffer: FrameBuffer, source: LabelledSet | None, device: torch.device
) -> _Images:
    most = settings.round.advanced.score_images
    ids = evenly(sorted(spec.holdout_frames), most)
    frames = [
        _tensor(buffer.read(record)[: record.valid_height, : record.valid_width], device)
        for record in (buffer.records(ids=ids) if ids else [])
    ]
    pairs = [_labelled(source, index, device) for index in evenly(source.validation, most)] if source else []
    styled = [(restyle(pixels, frames[n % len(frames)]), label) for n, (pixels, label) in enumerate(pairs) if frames]
    return _Images(frames, pairs, styled, source.ignore_index if source else 255)


def _score(
    network: SegmentationNetwork, version: int | None, images: _Images, incumbent_maps: list[Tensor] | None = None
) -> tuple[ModelScores, list[Tensor]]:
    """Return scores of one model and its class maps of the frames.

    Without `incumbent_maps` the model is the incumbent itself.
    """
    target = FrameScores()
    try:
        for tensor in network.state_dict().values():
            check_finite(tensor)
        for frame in images.frames:
            target.add(network, enlarged(normalise(frame[None])))
        source = _counts(network, images.source, images.ignore_index)
        styled = _counts(network, images.styled, images.ignore_index)
    except NotFinite:
        return ModelScores(version=version, finite=False), []
    # An incumbent that is not finite has no maps: agreement stays empty, and the gate does not compare.
    others = target.maps if incumbent_maps is None else incumbent_maps
    scores = ModelScores(
        version=version,
        finite=True,
        source=source,
        styled=styled,
        area=target.area,
        gram=target.gram,
        marginal=target.marginal,
        dropout_disagreement=target.dropout_disagreement,
        flip_consistency=target.flip_consistency,
        agreement=[_share_equal(own, other) for own, other in zip(target.maps, others, strict=False)],
        entropy=float(np.mean(target.entropy)) if target.entropy else None,
    )
    return scores, target.maps


def _counts(
    network: SegmentationNetwork, pairs: Sequence[tuple[Tensor, Tensor]], ignore_index: int
) -> ImageCounts | None:
    """Count images uint8 [h, w, 3] against labels [h, w]; None without images. Raises NotFinite."""
    counts = CountsOverImages(network.num_classes, ignore_index)
    for pixels, label in pairs:
        logits = check_finite(logits_of(network, normalise(pixels[None]))[0])  # [K, h, w]
        counts.add(class_map(logits), label)
    return counts.counts() if pairs else None


def _source_shares(source: LabelledSet | None) -> list[float]:
    """Return class shares [K] of all source labels; empty without labels."""
    pixels = source.class_pixels.sum(axis=0) if source else np.zeros(0)
    return (pixels / pixels.sum()).tolist() if pixels.any() else []


def _mean_softmax(network: SegmentationNetwork, frames: Sequence[Tensor]) -> list[float]:
    """Return the mean softmax [K] over hold-out frames; empty without frames."""
    rows = [marginal(logits_of(network, normalise(frame[None]))[0].softmax(dim=0)).tolist() for frame in frames]
    return list(np.mean(rows, axis=0).tolist()) if rows else []


def _labelled(source: LabelledSet, index: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return a source image uint8 [h, w, 3] and its label [h, w], without padding."""
    height, width = source.valid(index)
    pixels, label = source.image(index)[:height, :width], source.label(index)[:height, :width]
    return _tensor(pixels, device), _tensor(label, device)


def _tensor(pixels: NDArray[np.uint8], device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels)).to(device)


def _share_equal(one: Tensor, other: Tensor) -> float:
    return float(torch.eq(one, other).double().mean())
