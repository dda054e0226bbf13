"""A round's candidate as the control plane sees it: tensor names in its file, and its manifest. No torch."""

import time
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from adapters.scoring.scores.iou import labelled_mean_iou
from storage.errors import CorruptCheckpoint
from storage.registry.manifest import Manifest
from storage.registry.provenance import code_digest, library_versions, settings_hash
from storage.rounds.records import ImageCounts, ModelScores, RoundSpec, Verdict


def tensor_differences(candidate: Path, incumbent: Path) -> list[str]:
    """Names of tensors that only one of two safetensors files has, or whose type or shape differs; reads headers only.

    A candidate that cannot be read is named as a whole. Raises CorruptCheckpoint when the incumbent cannot.
    """
    try:
        expected = _header(incumbent)
    except (SafetensorError, OSError) as error:
        raise CorruptCheckpoint(f"{incumbent}: not a readable safetensors file: {error}; roll back") from error
    try:
        found = _header(candidate)
    except (SafetensorError, OSError) as error:
        return [f"{candidate.name} cannot be read ({error})"]
    return sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))


def candidate_manifest(parent: Manifest, spec: RoundSpec, scores: ModelScores, verdict: Verdict | None) -> Manifest:
    """Manifest of an accepted candidate: architecture, classes and input size are its parent's.

    Without a verdict as long as it is in the shadow.
    """
    return Manifest(
        parent=spec.incumbent,
        origin="round",
        round=spec.round,
        created=time.time(),
        network=parent.network,
        classes=parent.classes,
        input_height=parent.input_height,
        input_width=parent.input_width,
        seed=_seed(spec),
        config_hash=settings_hash(spec.settings),
        settings=spec.settings,
        frames=len(spec.train_frames) + len(spec.holdout_frames),
        snapshot=spec.snapshot,
        libraries=library_versions(),
        code=code_digest(),
        scores=headline_scores(scores),
        verdict=verdict.model_dump(mode="json") if verdict else None,
    )


def headline_scores(scores: ModelScores) -> dict[str, float]:
    """What people want to see first (0-1): mIoU on source and on restyled source, flip consistency, agreement."""
    counts = {"source_miou": scores.source, "styled_source_miou": scores.styled}
    shares = {"flip_consistency": scores.flip_consistency, "agreement": scores.agreement}
    headline = {name: _miou(value) for name, value in counts.items() if value is not None}
    headline |= {name: float(np.mean(values)) for name, values in shares.items() if values}
    return {name: value for name, value in headline.items() if np.isfinite(value)}


def _header(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and shape of each tensor."""
    with safe_open(path, framework="numpy") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        return {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}


def _seed(spec: RoundSpec) -> int | None:
    """A round's seed: the configured one plus its number."""
    seed = spec.settings.get("round", {}).get("seed")
    return None if seed is None else int(seed) + spec.round


def _miou(counts: ImageCounts) -> float:
    tp, fp, fn = (np.asarray(kind, dtype=np.float64).sum(axis=0) for kind in (counts.tp, counts.fp, counts.fn))
    return float(labelled_mean_iou(tp, fp, fn))
