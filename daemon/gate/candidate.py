"""The candidate of a round: from its scores to the gate's verdict, and from an accepted verdict to a version.

Nothing here moves the serving ref (`promotion.py`).
"""

import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np

from adapters.scoring.scores.iou import labelled_mean_iou
from configs.settings import Settings
from daemon.gate.decide import GATE, decide
from daemon.runtime.logs import get_logger
from storage.durable.digest import digest_of
from storage.errors import CorruptCheckpoint, StorageError, UnknownVersion
from storage.registry.manifest import Manifest
from storage.registry.provenance import code_digest, library_versions, settings_hash
from storage.registry.registry import CheckpointRegistry
from storage.registry.versions import WEIGHTS
from storage.registry.weight_changes import differing_tensors, tensor_headers
from storage.rounds.folder import RoundFolder
from storage.rounds.records import ModelScores, RoundScores, RoundSpec, Verdict

log = get_logger(__name__)


def decided(
    registry: CheckpointRegistry, folder: RoundFolder, settings: Settings, spec: RoundSpec, scores: RoundScores
) -> Verdict:
    """Return the gate's verdict, with facts beyond the gate: the candidate's file, and the serving version."""
    serving = registry.serving()
    unchanged = serving is not None and serving.version == spec.incumbent
    if scores.status == "completed" and scores.candidate is not None and unchanged:
        incumbent = registry.weights_path(spec.incumbent)
        found = {
            name: model.model_copy(
                update={"missing": sorted({*model.missing, *_other_tensors(_weights(folder, scores, name), incumbent)})}
            )
            for name, model in scores.candidates().items()
        }
        candidate = found.pop(scores.name)
        scores = scores.model_copy(update={"candidate": candidate, "others": found})
    names = [entry.name for entry in settings.classes]
    recalls = settings.recall.advanced.enabled and settings.conditions.advanced.enabled
    twins = _rolled_back_twins(registry, {name: _weights(folder, scores, name) for name in scores.candidates()})
    verdict = decide(spec, scores, settings.gate, names, at=time.time(), recalls=recalls, twins=twins)
    if verdict.decision == "accepted" and not unchanged:
        now = f"version {serving.version} serves ({serving.by}: {serving.reason})" if serving else "no version serves"
        return withdrawn(verdict, f"{now}, the candidate was compared with version {spec.incumbent}")
    return verdict


def _other_tensors(candidate: Path, incumbent: Path) -> list[str]:
    """Return names of tensors that differ in presence, type or shape; an unreadable candidate differs as a whole.

    Raises CorruptCheckpoint when the incumbent cannot be read.
    """
    try:
        expected = tensor_headers(incumbent)
    except CorruptCheckpoint as error:
        raise CorruptCheckpoint(f"{error}; roll back") from error
    try:
        return differing_tensors(expected, tensor_headers(candidate))
    except CorruptCheckpoint as error:
        return [f"{candidate.name} cannot be read ({error})"]


def _rolled_back_twins(registry: CheckpointRegistry, candidates: Mapping[str, Path]) -> dict[str, int]:
    """Return the version with the same weights that was rolled back, by candidate: another number makes none better.

    A damaged manifest must not stop the judgement of others.
    """
    bad = dict[str, int]()
    for version in sorted(registry.state().rolled_back & set(registry.versions())):
        with suppress(CorruptCheckpoint, UnknownVersion, KeyError):
            bad.setdefault(registry.manifest(version).files[WEIGHTS].sha256, version)
    found = {name: bad.get(digest_of(path)) for name, path in candidates.items() if bad and path.is_file()}
    return {name: version for name, version in found.items() if version is not None}


def add_candidate(
    registry: CheckpointRegistry,
    folder: RoundFolder,
    spec: RoundSpec,
    scores: RoundScores,
    verdict: Verdict,
    *,
    judged: bool = True,
) -> int:
    """Add the candidate of a verdict as a version with its parent's architecture, classes and input size.

    Returns its number. It has no verdict while it is in the shadow, so not `judged`.
    """
    name = verdict.candidate or scores.name
    model = scores.candidates().get(name)
    if model is None:
        raise StorageError(f"{folder.path}: accepted without a candidate's scores; the round folder was modified")
    parent = registry.manifest(spec.incumbent)
    seed = spec.settings.get("round", {}).get("advanced", {}).get("seed")
    manifest = Manifest(
        parent=spec.incumbent,
        origin="round",
        round=spec.round,
        created=time.time(),
        network=parent.network,
        classes=parent.classes,
        input_height=parent.input_height,
        input_width=parent.input_width,
        seed=None if seed is None else int(seed) + spec.round,
        config_hash=settings_hash(spec.settings),
        settings=spec.settings,
        frames=len(spec.train_frames) + len(spec.holdout_frames),
        snapshot=spec.snapshot,
        libraries=library_versions(),
        code=code_digest(),
        scores=_headline_scores(model),
        verdict=verdict.model_dump(mode="json") if judged else None,
    )
    reason = f"candidate of round {spec.round}: {name}"
    return registry.add(_weights(folder, scores, name), manifest, by=GATE, reason=reason).version


def _headline_scores(scores: ModelScores) -> dict[str, float]:
    """Return the main scores (0-1): mIoU on source and on restyled source, flip consistency, agreement."""
    counts = {"source_miou": scores.source, "styled_source_miou": scores.styled}
    shares = {"flip_consistency": scores.flip_consistency, "agreement": scores.agreement}
    headline = {name: float(labelled_mean_iou(*value.sums())) for name, value in counts.items() if value is not None}
    headline |= {name: float(np.mean(values)) for name, values in shares.items() if values}
    return {name: value for name, value in headline.items() if np.isfinite(value)}


def added_version(registry: CheckpointRegistry, spec: RoundSpec) -> int | None:
    """Return the version that this round's candidate became before a crash, or None."""
    for version in reversed(registry.versions()):
        with suppress(CorruptCheckpoint):  # another version's damage must not keep this one from serving
            manifest = registry.manifest(version)
            if manifest.round == spec.round and manifest.parent == spec.incumbent:
                return version
    return None


def into_manifest(registry: CheckpointRegistry, folder: RoundFolder, verdict: Verdict) -> None:
    """Write the verdict of a candidate that was registered before it. Damage there must not stop the gate."""
    trial = folder.record().trial
    version = trial.version if trial is not None else verdict.version
    try:
        if version is not None:
            registry.judged(version, verdict.model_dump(mode="json"))
    except (UnknownVersion, CorruptCheckpoint) as error:
        log.error("verdict_not_in_manifest", round=folder.number, reason=str(error))


def scores_of(folder: RoundFolder) -> RoundScores:
    """Return the scores of a round whose process has ended. Raises StorageError when it left none."""
    scores = folder.scores()
    if scores is None:
        raise StorageError(f"round {folder.number} has no scores.json: it crashed or was killed; see {folder.log}")
    return scores


def _weights(folder: RoundFolder, scores: RoundScores, name: str) -> Path:
    return folder.other(name) if name in scores.others else folder.candidate


def withdrawn(verdict: Verdict, why: str) -> Verdict:
    """Return an accepted verdict that can no longer be carried out."""
    reason = f"serving changed during the round: {why}"
    return verdict.model_copy(update={"decision": "inconclusive", "reason": reason})
