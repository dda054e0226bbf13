import errno
import hashlib
import os
from pathlib import Path

import pytest

from storage import durable
from storage.errors import AlreadyRunning, DurabilityLost
from storage.registry.manifest import Ref

pytestmark = pytest.mark.disk


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names in the order in which they are really fsynced; a temporary name shows as its final one."""
    order: list[str] = []
    real = os.fsync  # noqa: TID251 - watched, not replaced

    def fsync(handle: int) -> None:
        order.append(Path(f"/proc/self/fd/{handle}").readlink().name)
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    return order


@pytest.fixture
def failing_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fsync)


def test_write_syncs_the_file_before_and_the_directory_after_the_rename(tmp_path: Path, synced: list[str]):
    durable.write_bytes(tmp_path / "a", b"one")
    assert (tmp_path / "a").read_bytes() == b"one"
    assert synced[0].startswith(".a.") and synced[0].endswith(".partial")
    assert synced[1:] == [tmp_path.name]


def test_write_replaces_wholly_and_leaves_nothing_else(tmp_path: Path):
    durable.write_text(tmp_path / "a", "a long first text")
    durable.write_text(tmp_path / "a", "ü")
    assert (tmp_path / "a").read_text(encoding="utf-8") == "ü"
    assert names(tmp_path) == ["a"]


def test_a_secret_can_be_written_for_its_owner_only(tmp_path: Path):
    durable.write_text(tmp_path / "token", "x", mode=0o600)
    assert (tmp_path / "token").stat().st_mode & 0o777 == 0o600


def test_failed_fsync_is_durability_lost_and_the_old_content_stays(tmp_path: Path, failing_disk: None):
    (tmp_path / "a").write_text("old")
    with pytest.raises(DurabilityLost, match=str(tmp_path)):
        durable.write_text(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "old"
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("call", [durable.fsync_file, lambda path: durable.fsync_directory(path.parent)])
def test_every_failed_fsync_is_durability_lost(tmp_path: Path, failing_disk: None, call):
    (tmp_path / "a").write_text("x")
    with pytest.raises(DurabilityLost):
        call(tmp_path / "a")


def test_one_failed_fsync_among_many_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    paths = [tmp_path / str(number) for number in range(20)]
    for path in paths:
        path.write_text("x")
    real = os.fsync  # noqa: TID251 - watched, not replaced

    def fsync(handle: int) -> None:
        if Path(f"/proc/self/fd/{handle}").readlink().name == "17":
            raise OSError(errno.EIO, "broken")
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(DurabilityLost, match="17"):
        durable.fsync_files(paths)


def test_a_file_system_that_cannot_sync_directories_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fsync(_: int) -> None:
        raise OSError(errno.EINVAL, "no")

    monkeypatch.setattr(os, "fsync", fsync)
    durable.fsync_directory(tmp_path)
    (tmp_path / "a").touch()
    with pytest.raises(DurabilityLost):
        durable.fsync_file(tmp_path / "a")


def test_new_directories_are_synced_in_their_parents(tmp_path: Path, synced: list[str]):
    durable.make_directory(tmp_path / "a" / "b" / "c")
    assert synced == [tmp_path.name, "a", "b"]
    durable.make_directory(tmp_path / "a" / "b")
    assert len(synced) == 3


def test_append_line_syncs_and_survives_a_torn_line(tmp_path: Path, synced: list[str]):
    path = tmp_path / "history"
    durable.append_line(path, "one")
    assert synced == ["history", tmp_path.name]
    with path.open("a") as file:
        file.write('{"torn')
    durable.append_line(path, "two")
    assert path.read_text() == 'one\n{"torn\ntwo\n'


def test_copy_in_hashes_what_it_copies(tmp_path: Path):
    data = os.urandom(3 * durable.COPY_BYTES + 17)
    (tmp_path / "from").write_bytes(data)
    found = durable.copy_in(tmp_path / "from", tmp_path / "to")
    assert (tmp_path / "to").read_bytes() == data
    assert (found.sha256, found.size) == (hashlib.sha256(data).hexdigest(), len(data))


def test_copy_of_a_missing_file_leaves_nothing(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        durable.copy_in(tmp_path / "from", tmp_path / "to")
    assert names(tmp_path) == []


def test_publish_syncs_everything_inside_before_the_name_appears(tmp_path: Path, synced: list[str]):
    temp = tmp_path / ".temp"
    (temp / "inner").mkdir(parents=True)
    (temp / "inner" / "file").write_text("x")
    durable.publish_directory(temp, tmp_path / "final")
    assert synced == ["file", "inner", ".temp", tmp_path.name]
    assert (tmp_path / "final" / "inner" / "file").read_text() == "x"
    (tmp_path / ".again").mkdir()
    with pytest.raises(FileExistsError):
        durable.publish_directory(tmp_path / ".again", tmp_path / "final")


def test_retired_directory_is_gone_and_partials_are_removed(tmp_path: Path):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "file").write_text("x")
    durable.retire_directory(tmp_path / "old")
    (tmp_path / ".left.partial").mkdir()
    (tmp_path / "c.1.abc.partial").touch()
    (tmp_path / "kept").touch()
    durable.remove_partials(tmp_path)
    assert names(tmp_path) == ["kept"]
    durable.remove_partials(tmp_path / "missing")


def test_record_is_json_for_people(tmp_path: Path):
    ref = Ref(version=3, since=1.0, by="gate", reason="better")
    durable.write_record(tmp_path / "ref", ref)
    text = (tmp_path / "ref").read_text()
    assert Ref.model_validate_json(text) == ref
    assert text.count("\n") > 3


def test_lock_excludes_and_names_its_holder(tmp_path: Path):
    path = tmp_path / "lock"
    with durable.exclusive_lock(path):
        assert durable.is_locked(path)
        with pytest.raises(AlreadyRunning, match=str(os.getpid())), durable.exclusive_lock(path, busy="{}".format):
            pass
    assert not durable.is_locked(path)
    with durable.exclusive_lock(path, busy="{}".format):
        pass
