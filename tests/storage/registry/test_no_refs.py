"""Whatever lies where a ref belongs: reading it ends at once and says so, writing the ref takes its place."""

import errno
import os
import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from storage.checking import check_state, repair_state
from storage.errors import CorruptCheckpoint, StorageError
from storage.layout import StateLayout
from storage.registry.manifest import Manifest
from storage.registry.refs import Refs
from storage.registry.registry import CheckpointRegistry
from tests.storage.registry.no_refs import NO_REFS

pytestmark = pytest.mark.timeout(20)


@pytest.fixture(params=NO_REFS)
def spoil(request: pytest.FixtureRequest) -> Callable[[Path], None]:
    def put(path: Path) -> None:
        path.unlink(missing_ok=True)
        NO_REFS[request.param](path)

    return put


@pytest.fixture
def registry(
    layout: StateLayout, weights: Callable[[str], Path], manifest: Callable[..., Manifest]
) -> CheckpointRegistry:
    registry = CheckpointRegistry(layout.checkpoints)
    for number in (1, 2):
        registry.add(weights(f"{number}"), manifest(), by="test")
        registry.promote(number, by="test", reason="")
    return registry


def test_it_cannot_be_read_and_is_never_read_whole(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    refs = Refs(tmp_path)
    spoil(refs.path("serving"))
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(StorageError, match=r"serving: .*`mfmd check --repair` rewrites it"):
        refs.read("serving")
    assert refs.read_or_none("serving") is None
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - most < 100_000, "kB"


@pytest.mark.parametrize(
    ("number", "remedy"),
    [(errno.EACCES, "let this user read it"), (errno.EIO, "check the disk"), (errno.ETIMEDOUT, "check the disk")],
)
def test_a_ref_that_the_system_does_not_give_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, remedy: str
) -> None:
    def failing(path: Path, most: int) -> bytes:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr("storage.registry.refs.read_small", failing)
    with pytest.raises(StorageError, match=rf"serving: .*{os.strerror(number)}; {remedy}"):
        Refs(tmp_path).read("serving")


def test_reading_one_again_and_again_leaves_nothing_open(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    refs = Refs(tmp_path)
    spoil(refs.path("serving"))
    refs.read_or_none("serving")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        refs.read_or_none("serving")
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_rollback_to_a_version_takes_its_place(registry: CheckpointRegistry, spoil: Callable[[Path], None]) -> None:
    spoil(registry.ref_path("serving"))
    found, damage = registry.readable_refs()
    assert list(found) == ["previous"] and len(damage) == 1
    assert registry.roll_back(to=1, by="operator", reason="").version == 1
    serving = registry.serving()
    assert serving is not None and serving.version == 1


@pytest.mark.parametrize("name", ["serving", "previous", "shadow", "pinned-000001"])
def test_it_is_found_and_repaired(
    layout: StateLayout, registry: CheckpointRegistry, spoil: Callable[[Path], None], name: str
) -> None:
    spoil(registry.ref_path(name))
    assert [problem.code for problem in check_state(layout)] == ["ref_damaged"]
    assert repair_state(layout).left == []
    assert check_state(layout) == []
    assert {key: ref.version for key, ref in registry.readable_refs()[0].items()} == {"serving": 2, "previous": 1}


def test_a_manifest_that_is_no_file_is_a_damaged_version(
    registry: CheckpointRegistry, spoil: Callable[[Path], None]
) -> None:
    path = registry.weights_path(1).with_name("manifest.json")
    spoil(path)
    with pytest.raises(CorruptCheckpoint, match="manifest"):
        registry.manifest(1)


def test_what_was_in_a_folder_is_kept(registry: CheckpointRegistry) -> None:
    path = registry.ref_path("serving")
    path.unlink()
    path.mkdir()
    (path / "notes.txt").write_text("somebody's")
    registry.roll_back(to=1, by="operator", reason="")
    (aside,) = path.parent.glob("serving.aside-*")
    assert (aside / "notes.txt").read_text() == "somebody's"
