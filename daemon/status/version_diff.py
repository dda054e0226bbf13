"""What differs between two versions: settings, manifest, scores, weights. Reads manifests and weights; no torch."""

import math
from typing import Any

from pydantic import Field

from daemon.runtime.activity import ActivityPart
from storage.registry.registry import CheckpointRegistry
from storage.registry.weight_changes import TensorChange, weight_changes

APART = {"settings", "scores", "files", "verdict", "version"}
"""Parts of a manifest that are compared by themselves, or say nothing beside the rest."""


class FieldChange(ActivityPart):
    """A value that differs."""

    before: Any
    """In the first version; none where it is not there."""
    after: Any
    """In the second."""


class VersionDiff(ActivityPart):
    """`mfmd checkpoints diff A B`."""

    first: int
    """Version A."""
    second: int
    """Version B."""
    settings: dict[str, FieldChange] = Field(default_factory=dict)
    """Settings that differ, as `section.field`."""
    settings_known: bool
    """Whether both manifests hold their settings; those of earlier versions of mfmd do not."""
    manifest: dict[str, FieldChange] = Field(default_factory=dict)
    """Other fields of the manifest that differ."""
    scores: dict[str, FieldChange] = Field(default_factory=dict)
    """Headline scores that differ (0-1)."""
    tensors: int
    """Tensors of both together."""
    relative: float | None
    """Root mean square of the relative changes of all tensors that both have; none without any."""
    changed: list[TensorChange]
    """Tensors that differ, the largest change first."""


def diff_versions(registry: CheckpointRegistry, first: int, second: int, *, weights: bool = True) -> VersionDiff:
    """Compare two versions, without `weights` only their manifests. Raises UnknownVersion or CorruptCheckpoint."""
    one, other = registry.manifest(first), registry.manifest(second)
    changes = weight_changes(registry.weight_files(first), registry.weight_files(second)) if weights else []
    compared = [change.relative for change in changes if change.relative is not None]
    known = bool(one.settings and other.settings)
    return VersionDiff(
        first=first,
        second=second,
        settings=_changes(flat(one.settings), flat(other.settings)) if known else {},
        settings_known=known,
        manifest=_changes(*(flat(item.model_dump(mode="json", exclude=APART)) for item in (one, other))),
        scores=_changes(one.scores, other.scores),
        tensors=len(changes),
        relative=math.sqrt(sum(value**2 for value in compared) / len(compared)) if compared else None,
        changed=sorted((change for change in changes if change.relative != 0.0), key=_largest_first),
    )


def flat(values: Any, path: str = "") -> dict[str, Any]:
    """Nested mappings as one, keys joined by dots."""
    if not isinstance(values, dict):
        return {path: values}
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{path}.{key}" if path else str(key))
    return found


def _changes(before: dict[str, Any], after: dict[str, Any]) -> dict[str, FieldChange]:
    names = dict.fromkeys([*before, *after])
    return {
        name: FieldChange(before=before.get(name), after=after.get(name))
        for name in names
        if before.get(name) != after.get(name)
    }


def _largest_first(change: TensorChange) -> tuple[float, str]:
    return (-math.inf if change.relative is None else -change.relative), change.name
