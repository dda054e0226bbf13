"""Versions that share a base: stored once, verified with each, removed with the last; a kill leaves nothing broken."""

import json
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from storage import failpoints
from storage.checking.problem import Scope
from storage.checking.registry import check_versions
from storage.directory.backup import write_backup
from storage.directory.restore import finish_restore, restore_backup
from storage.durable.digest import digest_of
from storage.errors import CorruptCheckpoint
from storage.layout import StateLayout
from storage.registry.bases import KEY, base_named_in
from storage.registry.manifest import Manifest
from storage.registry.registry import CheckpointRegistry
from storage.registry.weight_changes import weight_changes

Manifests = Callable[..., Manifest]


class Died(BaseException):
    """The process ends here."""


def base_file(folder: Path, value: float = 1.0) -> tuple[Path, str]:
    path = folder / f"base-{value}.safetensors"
    save_file({"vit": np.full((64, 64), value, np.float32)}, path)
    return path, digest_of(path)


def trained_file(folder: Path, value: float, base: str | None) -> Path:
    path = folder / f"trained-{value}.safetensors"
    save_file({"token": np.full(4, value, np.float32)}, path, metadata={KEY: base} if base else None)
    return path


@pytest.fixture
def registry(tmp_path: Path, manifest: Manifests) -> Iterator[CheckpointRegistry]:
    """Versions 1 to 3 of one base; 1 serves."""
    registry = CheckpointRegistry(tmp_path / "state" / "checkpoints")
    base, digest = base_file(tmp_path)
    registry.add(trained_file(tmp_path, 1.0, digest), manifest(), by="import", base=base)
    for number in (2, 3):
        registry.add(trained_file(tmp_path, float(number), digest), manifest(parent=1, round=number), by="gate")
    registry.promote(1, by="operator", reason="")
    yield registry
    failpoints.watch(None)


def stored(registry: CheckpointRegistry) -> list[str]:
    return sorted(path.name for path in registry.bases.folder.glob("*"))


def test_a_base_is_stored_once_and_each_version_names_it(registry: CheckpointRegistry, tmp_path: Path):
    path, digest = base_file(tmp_path)
    assert stored(registry) == [f"{digest}.safetensors"]
    for version in (1, 2, 3):
        found = registry.manifest(version)
        assert found.base is not None and found.schema_version == 3
        assert (found.base.sha256, found.base.size) == (digest, path.stat().st_size)
        assert registry.weight_files(version) == (registry.weights_path(version), registry.bases.path(digest))
        assert found.files["model.safetensors"].size < found.base.size / 50
        registry.verify(version)
    changes = weight_changes(registry.weight_files(1), registry.weight_files(2))
    assert [(change.name, change.relative) for change in changes] == [("token", 1.0), ("vit", 0.0)]


def test_a_version_without_base_is_as_before(registry: CheckpointRegistry, tmp_path: Path, manifest: Manifests):
    added = registry.add(trained_file(tmp_path, 4.0, None), manifest(), by="import")
    written = json.loads((registry.folder(added.version) / "manifest.json").read_text())
    assert (written["schema_version"], "base" in written) == (2, False)
    assert registry.weight_files(added.version) == (registry.weights_path(added.version),)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: path.unlink(), "missing; versions with this base cannot serve: restore it from a backup"),
        (lambda path: path.write_bytes(path.read_bytes()[:-4]), r"\d+ bytes, expected \d+"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\0"), "content has SHA-256 [0-9a-f]{64}, not that"),
    ],
    ids=["missing", "shorter", "other content"],
)
def test_a_damaged_base_keeps_its_versions_from_serving_until_it_is_back(
    registry: CheckpointRegistry, tmp_path: Path, manifest: Manifests, damage: Callable[[Path], object], said: str
):
    source, digest = base_file(tmp_path)
    damage(registry.bases.path(digest))
    for attempt in (lambda: registry.verify(2), lambda: registry.promote(2, by="gate", reason="")):
        with pytest.raises(CorruptCheckpoint, match=rf"bases/{digest}\.safetensors: {said}"):
            attempt()
    serving = registry.serving()
    assert serving is not None and serving.version == 1
    problems = list(check_versions(Scope(StateLayout(tmp_path / "state"), read_data=True)))
    assert [problem.code for problem in problems] == ["version_damaged"] * 3
    registry.add(trained_file(tmp_path, 9.0, digest), manifest(), by="import", base=source)
    registry.verify(2)


def test_what_names_a_base_that_is_not_there_is_refused(
    registry: CheckpointRegistry, tmp_path: Path, manifest: Manifests
):
    (other, digest), (right, _) = base_file(tmp_path, 2.0), base_file(tmp_path)
    weights, before = trained_file(tmp_path, 5.0, digest), (registry.versions(), stored(registry))
    with pytest.raises(CorruptCheckpoint, match=rf"{digest}\.safetensors: missing or damaged, but the weights name"):
        registry.add(weights, manifest(), by="gate")
    with pytest.raises(CorruptCheckpoint, match=rf"base-1\.0\.safetensors: has SHA-256 .* name base {digest}"):
        registry.add(weights, manifest(), by="import", base=right)
    bad = trained_file(tmp_path, 6.0, "../../refs/serving")
    with pytest.raises(CorruptCheckpoint, match=r"'../../refs/serving' is not the SHA-256 of a base"):
        registry.add(bad, manifest(), by="import", base=other)
    assert (registry.versions(), stored(registry)) == before


def test_a_damaged_base_takes_no_further_version(registry: CheckpointRegistry, tmp_path: Path, manifest: Manifests):
    base, digest = base_file(tmp_path, 2.0)
    registry.add(trained_file(tmp_path, 4.0, digest), manifest(), by="import", base=base)
    path, whole = registry.bases.path(digest), base.read_bytes()
    path.write_bytes(whole[:-4])
    with pytest.raises(CorruptCheckpoint, match="missing or damaged"):
        registry.add(trained_file(tmp_path, 5.0, digest), manifest(), by="gate")
    path.write_bytes(whole)
    added = registry.add(trained_file(tmp_path, 5.0, digest), manifest(), by="gate")
    registry.verify(added.version)


def test_a_manifest_that_names_another_base_than_the_weights_is_damage(
    registry: CheckpointRegistry, tmp_path: Path, manifest: Manifests
):
    other, digest = base_file(tmp_path, 2.0)
    registry.add(trained_file(tmp_path, 4.0, digest), manifest(), by="import", base=other)
    path = registry.folder(2) / "manifest.json"
    base = registry.manifest(4).base
    assert base is not None
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base": base.model_dump()}))
    with pytest.raises(CorruptCheckpoint, match=r"000002/manifest\.json: names another base than model\.safetensors"):
        registry.verify(2)


@pytest.mark.parametrize("content", [b"", b"text as weights", b"\xff" * 64, b"\x02" + bytes(7) + b"[]"])
def test_what_is_no_safetensors_file_names_no_base(tmp_path: Path, content: bytes):
    path = tmp_path / "weights"
    path.write_bytes(content)
    assert base_named_in(path) is None


def test_a_base_goes_with_the_last_version_that_names_it(
    registry: CheckpointRegistry, tmp_path: Path, manifest: Manifests
):
    other, digest = base_file(tmp_path, 2.0)
    registry.add(trained_file(tmp_path, 4.0, digest), manifest(), by="import", base=other)
    both = stored(registry)
    registry.promote(4, by="operator", reason="")
    assert registry.prune(0) == [2, 3] and stored(registry) == both, "version 1 is what a rollback leads to"
    registry.roll_back(to=None, by="operator", reason="")
    damaged = registry.folder(1) / "manifest.json"
    whole = damaged.read_bytes()
    damaged.write_text("{")
    assert registry.unused_bases() == [], "nothing is removed while it is unknown what a version needs"
    damaged.write_bytes(whole)
    assert registry.prune(0) == [4]
    assert stored(registry) == [name for name in both if digest not in name]
    registry.verify(1)


@pytest.mark.parametrize("action", ["add", "prune"])
def test_a_kill_at_any_step_leaves_whole_versions_and_the_next_writer_tidies_up(
    registry: CheckpointRegistry, tmp_path: Path, manifest: Manifests, action: str
):
    other, digest = base_file(tmp_path, 2.0)
    weights = trained_file(tmp_path, 4.0, digest)
    if action == "prune":
        registry.add(weights, manifest(), by="import", base=other)
    for step in range(1, 100):
        copy = CheckpointRegistry(tmp_path / f"{step}" / "checkpoints")
        shutil.copytree(registry.root, copy.root)
        left = [step]

        def count(_: str, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] == 0:
                raise Died

        failpoints.watch(count)
        try:
            if action == "add":
                copy.add(weights, manifest(), by="import", base=other)
            else:
                copy.prune(0)
            died = False
        except Died:
            died = True
        finally:
            failpoints.watch(None)
        for version in copy.versions():
            copy.verify(version)
        problems = list(check_versions(Scope(StateLayout(copy.root.parent), read_data=True)))
        assert {problem.code for problem in problems} <= {"base_unused"}
        for problem in problems:
            assert problem.repair is not None
            problem.repair()
        copy.prune(0)
        assert stored(copy) == sorted(
            {path.name for version in copy.versions() for path in copy.weight_files(version)[1:]}
        )
        if not died:
            break
    assert step > 8


def test_a_backup_has_the_base_once(registry: CheckpointRegistry, tmp_path: Path):
    write_backup(StateLayout(tmp_path / "state"), tmp_path / "backup.tar")
    with tarfile.open(tmp_path / "backup.tar") as tar:
        bases = [name for name in tar.getnames() if "bases" in name]
    assert bases == [f"checkpoints/bases/{name}" for name in stored(registry)]
    restored = StateLayout(tmp_path / "restored")
    restore_backup(tmp_path / "backup.tar", restored)
    finish_restore(restored)
    for version in registry.versions():
        CheckpointRegistry(restored.checkpoints).verify(version)
