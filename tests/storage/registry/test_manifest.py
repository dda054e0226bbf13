"""Manifests: what is in them, and that those of earlier versions of mfmd are still read."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydantic import ValidationError

from storage.registry.manifest import Manifest
from storage.registry.provenance import code_digest, library_versions, settings_hash, snapshot_of
from storage.registry.registry import CheckpointRegistry

OLD = {
    "schema_version": 1, "version": 1, "parent": None, "origin": "pretrain", "round": None, "created": 1.0,
    "network": {"name": "daformer"}, "classes": [{"name": "road", "color": [1, 2, 3]}], "input_height": 64,
    "input_width": 96, "seed": 3, "config_hash": "ab", "frames": 0, "libraries": {"mfmd": "0.1"}, "scores": {},
    "verdict": None,
}  # fmt: skip
"""As the first versions of mfmd wrote it, without the files."""


@dataclass(frozen=True)
class Frame:
    """What a snapshot looks at."""

    id: int
    digest: str
    captured_at: float
    holdout: bool = False


def test_a_manifest_of_before_is_read_verified_and_served(
    tmp_path: Path, weights: Callable[[str], Path], manifest: Callable[..., Manifest]
):
    registry = CheckpointRegistry(tmp_path / "checkpoints")
    made = registry.add(weights("one"), manifest(), by="pretrain")
    old = OLD | {"files": {name: item.model_dump() for name, item in made.files.items()}}
    (registry.weights_path(1).parent / "manifest.json").write_text(json.dumps(old))
    found = registry.manifest(1)
    assert (found.schema_version, found.seed, found.snapshot, found.settings, found.code) == (1, 3, None, {}, "")
    registry.verify(1)
    assert registry.promote(1, by="pretrain", reason="").version == 1
    assert registry.add(weights("two"), manifest(parent=1), by="gate").schema_version == 2
    assert registry.released(2) == 1


def test_only_a_manifest_of_an_own_network_names_its_code():
    """Those before own networks refuse a field that they do not know."""
    without = Manifest.model_validate(OLD)
    own = without.model_copy(update={"network_code": "ab"})
    assert "network_code" not in json.loads(without.model_dump_json())
    assert [Manifest.model_validate_json(it.model_dump_json()) for it in (without, own)] == [without, own]


def test_a_manifest_of_a_later_layout_is_refused():
    with pytest.raises(ValidationError, match="schema_version"):
        Manifest.model_validate(OLD | {"schema_version": 4})


def test_a_snapshot_counts_its_frames_and_spans_their_capture_times():
    frames = [Frame(7, "b", 30.0), Frame(3, "a", 40.0, holdout=True), Frame(9, "c", 10.0)]
    snapshot = snapshot_of(frames)
    assert snapshot is not None
    assert (snapshot.train, snapshot.holdout, snapshot.first, snapshot.last) == (2, 1, 3, 9)
    assert (snapshot.oldest, snapshot.newest) == (10.0, 40.0)
    again = snapshot_of(list(reversed(frames)))
    assert again is not None and again.digest == snapshot.digest
    other = snapshot_of([*frames[:2], Frame(9, "d", 10.0)])
    assert other is not None and other.digest != snapshot.digest
    assert snapshot_of([]) is None


def test_hashes_follow_what_they_are_of():
    assert settings_hash({"a": 1, "b": 2}) == settings_hash({"b": 2, "a": 1}) != settings_hash({"a": 1, "b": 3})
    assert len(code_digest()) == 64 and set(code_digest()) <= set("0123456789abcdef")
    assert {"mfmd", "python", "torch", "numpy"} <= library_versions().keys()
