"""`mfmd backup` and `mfmd restore`: what is restored is what was there at one moment, whatever happened meanwhile."""

import io
import sqlite3
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from storage.buffer.frames import FrameBuffer, NewFrame
from storage.checking import check_state
from storage.directory import backup as backup_module
from storage.directory.archive import MARK
from storage.directory.backup import write_backup
from storage.directory.format import FORMAT, read_format
from storage.directory.restore import RESTORED, finish_restore, restore_backup
from storage.directory.upgrade import prepare
from storage.errors import AlreadyRunning, BackupRefused, NewerFormat, StorageError
from storage.layout import StateLayout
from storage.registry.registry import CheckpointRegistry
from storage.rounds.folder import RoundStore
from tests.storage.directory.conftest import BUFFER, killed_at, open_everything

NOT_IN_IT = {"catalog.sqlite", "catalog.sqlite-wal", "catalog.sqlite-shm", "observations.sqlite",
             "observations.sqlite-wal", "observations.sqlite-shm", "format.json"}  # fmt: skip


def _files(layout: StateLayout) -> dict[str, bytes]:
    """Content of all files but databases, run files and locks."""
    return {
        path.relative_to(layout.root).as_posix(): path.read_bytes()
        for path in layout.root.rglob("*")
        if path.is_file() and path.name not in NOT_IN_IT and layout.run not in path.parents and path.name[0] != "."
    }


def _rows(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as connection:
        return [*connection.iterdump()]


@pytest.fixture
def target(tmp_path: Path) -> StateLayout:
    return StateLayout(tmp_path / "restored")


@pytest.mark.parametrize("number", [1, FORMAT])
def test_all_comes_back(old: StateLayout, target: StateLayout, tmp_path: Path, number: int) -> None:
    if number == FORMAT:
        prepare(old)
    (old.checkpoints / "versions" / ".000009.partial").mkdir()
    (old.run / "control.token").parent.mkdir(exist_ok=True)
    (old.run / "control.token").write_text("secret")
    seen: list[tuple[int, int]] = []
    done = write_backup(old, tmp_path / "b.tar", lambda *step: seen.append(step))
    assert (done.frames, done.missing) == (8, 0) and seen[-1][0] == seen[-1][1]
    with tarfile.open(tmp_path / "b.tar") as tar:
        names = tar.getnames()
        assert all(member.isreg() and member.mode == 0o640 for member in tar.getmembers())
    assert names[0] == "format.json" and names[-1] == MARK and len(names) == done.files
    assert not [name for name in names if "token" in name or "lock" in name or "partial" in name or "-wal" in name]
    assert restore_backup(tmp_path / "b.tar", target) == done.files - 1
    assert read_format(target) == number
    older = [] if number == FORMAT else ["catalog_schema"]
    assert [problem.code for problem in check_state(target, read_data=True)] == older
    assert _files(target) == _files(old)
    for path in ("catalog.sqlite", "observations.sqlite"):
        assert _rows(target.buffer / path) == _rows(old.buffer / path)
    prepare(target)
    open_everything(target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.tar", "restored", "state"]


def test_what_changes_while_it_is_written_does_not_break_it(
    old: StateLayout, target: StateLayout, tmp_path: Path, new_frame: Callable[..., NewFrame]
) -> None:
    """Before the first shard is read half of the frames are evicted, versions are pruned, a round is removed."""
    registry, rounds = CheckpointRegistry(old.checkpoints), RoundStore(old.rounds)
    weights = tmp_path / "weights"
    weights.write_bytes(bytes(range(256)) * 1000)
    registry.add(weights, registry.manifest(2), by="test")
    before = _files(old)
    frames = [new_frame(number, 32, 32) for number in range(5)]

    with FrameBuffer.open(old, BUFFER, writable=True) as buffer:
        buffer.lease(1)
        for frame in buffer.records()[:4]:
            with buffer.catalog.transaction() as connection:
                connection.execute("DELETE FROM leases WHERE frame = ?", (frame.id,))

        def disturb(done: int, total: int) -> None:
            if done != 1:
                return
            buffer.append(frames[:4])
            registry.promote(3, by="test", reason="")
            registry.promote(1, by="test", reason="")
            registry.prune(0)
            assert registry.versions() == [1, 3]
            rounds.remove_states(None)
            (old.rounds / "000001").rename(tmp_path / "gone")

        done = write_backup(old, tmp_path / "b.tar", disturb)
    assert done.frames == 4 and done.missing == 0
    restore_backup(tmp_path / "b.tar", target)
    assert [problem for problem in check_state(target, read_data=True) if problem.severity == "error"] == []
    kept = CheckpointRegistry(target.checkpoints)
    assert (kept.serving_version(), kept.versions()) == (2, [1, 2, 3])
    after = _files(target)
    assert {name for name, data in before.items() if after.get(name) != data} == {
        f"buffer/frames.zarr/frames/c.{slot}.0.0.0" for slot in range(4)
    }
    with FrameBuffer.open(target, BUFFER, writable=True) as buffer:
        assert [record.id for record in buffer.records()] == [5, 6, 7, 8]
        assert buffer.catalog.has_digest(frames[0].digest) is False


def test_a_round_that_is_removed_while_it_is_opened_is_left_out(
    old: StateLayout, target: StateLayout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = backup_module._open

    def remove(path: Path, stack: object) -> object:
        if path.name == "scores.json":
            path.parent.rename(tmp_path / "gone")
        return opened(path, stack)

    prepare(old)
    monkeypatch.setattr(backup_module, "_open", remove)
    write_backup(old, tmp_path / "b.tar")
    restore_backup(tmp_path / "b.tar", target)
    assert check_state(target) == [] and RoundStore(target.rounds).numbers() == []


def _resize(layout: StateLayout) -> None:
    layout.buffer.rename(layout.root / "old")
    subprocess.run(["cp", "-a", layout.root / "old", layout.buffer], check=True)


def _import(layout: StateLayout) -> None:
    current = layout.source / "current.json"
    current.write_text('{"fingerprint": "another"}')


@pytest.mark.parametrize("replace", [_resize, _import])
def test_a_buffer_or_a_source_that_is_replaced_meanwhile_is_told(
    old: StateLayout, tmp_path: Path, replace: Callable[[StateLayout], None]
) -> None:
    with pytest.raises(BackupRefused, match="was replaced while it was read; run `mfmd backup` again"):
        write_backup(old, tmp_path / "b.tar", lambda done, total: replace(old) if done == 1 else None)
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_frames_without_pixels_are_counted_and_nothing_hides_them(
    old: StateLayout, target: StateLayout, tmp_path: Path
) -> None:
    prepare(old)
    (old.frames_zarr / "frames" / "c.3.0.0.0").unlink()
    done = write_backup(old, tmp_path / "b.tar")
    assert (done.frames, done.missing) == (8, 1)
    restore_backup(tmp_path / "b.tar", target)
    assert [problem.code for problem in check_state(target)] == ["frame_missing"]


def test_what_cannot_be_backed_up_is_told(old: StateLayout, tmp_path: Path) -> None:
    (tmp_path / "b.tar").write_text("mine")
    with pytest.raises(BackupRefused, match="exists; name a new file"):
        write_backup(old, tmp_path / "b.tar")
    with pytest.raises(BackupRefused, match="nothing to back up"):
        write_backup(StateLayout(tmp_path / "nowhere"), tmp_path / "c.tar")
    (old.root / ".resized").mkdir()
    with pytest.raises(BackupRefused, match="a resize is not finished"):
        write_backup(old, tmp_path / "c.tar")
    (old.root / ".resized").rmdir()
    old.catalog.write_bytes(b"no database at all" * 1000)
    with pytest.raises(StorageError, match=r"catalog\.sqlite: file is not a database"):
        write_backup(old, tmp_path / "c.tar")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.tar", "state"]
    assert (tmp_path / "b.tar").read_text() == "mine"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("a tmpfs may not be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_full_disk_leaves_nothing_behind(old: StateLayout, tmp_path: Path, small_disk: Path) -> None:
    with pytest.raises(OSError, match=r"No space left on device: '.*disk/"):
        write_backup(old, small_disk / "b.tar")
    assert [*small_disk.iterdir()] == []
    write_backup(old, tmp_path / "b.tar")
    with pytest.raises(OSError, match="No space left on device"):
        restore_backup(tmp_path / "b.tar", StateLayout(small_disk / "state"))
    assert [path.name for path in (small_disk / "state").iterdir()] == ["run"]


def test_a_restore_that_is_killed_anywhere_can_be_repeated_or_is_finished(old: StateLayout, tmp_path: Path) -> None:
    prepare(old)
    write_backup(old, tmp_path / "b.tar")
    number, whole, finished = 0, False, 0
    while not whole:
        number += 1
        layout = StateLayout(tmp_path / f"restored-{number}")
        try:
            with killed_at(number):
                restore_backup(tmp_path / "b.tar", layout)
            whole = True
        except KeyboardInterrupt:
            if (layout.root / RESTORED).is_dir():
                finished += 1
                prepare(layout)
            elif not layout.format_file.exists():
                restore_backup(tmp_path / "b.tar", layout)
        finish_restore(layout)
        assert check_state(layout) == []
    assert number > 20 and finished > 10
    prepare(layout)
    open_everything(layout)


def _tar(path: Path, *members: tuple[str, bytes], kind: bytes = tarfile.REGTYPE) -> Path:
    with tarfile.open(path, "w") as tar:
        for index, (name, data) in enumerate(members):
            entry = tarfile.TarInfo(name)
            entry.size, entry.linkname = len(data), "/etc/passwd"
            entry.type = tarfile.REGTYPE if index == 0 else kind
            tar.addfile(entry, io.BytesIO(data))
    return path


GOOD = ("format.json", b'{"format": 2, "mfmd": "0.1.0"}')


@pytest.mark.parametrize(
    ("members", "kind", "words"),
    [
        ([("../out", b"x")], tarfile.REGTYPE, "it begins with|no file of a state directory"),
        ([GOOD, ("../out", b"x")], tarfile.REGTYPE, "'../out' is no file of a state directory"),
        ([GOOD, ("a/../../out", b"x")], tarfile.REGTYPE, "no file of a state directory"),
        ([GOOD, ("/tmp/out", b"x")], tarfile.REGTYPE, "no file of a state directory"),
        ([GOOD, ("run/daemon.lock", b"x")], tarfile.REGTYPE, "no file of a state directory"),
        ([GOOD, ("link", b"")], tarfile.SYMTYPE, "'link' is no file of a state directory"),
        ([GOOD, ("link", b"")], tarfile.LNKTYPE, "'link' is no file of a state directory"),
        ([GOOD, ("device", b"")], tarfile.CHRTYPE, "'device' is no file of a state directory"),
        ([GOOD, ("a", b"x"), ("a", b"y")], tarfile.REGTYPE, "exists"),
        ([GOOD, ("a", b"x"), ("a/b", b"y")], tarfile.REGTYPE, "no whole backup"),
        ([GOOD], tarfile.REGTYPE, "its end is missing"),
        ([GOOD, (MARK, b'{"files": 2, "sha256": "00", "at": 1}')], tarfile.REGTYPE, "missing or damaged"),
        ([("format.json", b"{")], tarfile.REGTYPE, "no whole backup"),
        ([("state/x", b"x")], tarfile.REGTYPE, "it begins with 'state/x'"),
        ([], tarfile.REGTYPE, "its end is missing"),
    ],
)
def test_a_tar_that_is_no_whole_backup_is_refused(
    target: StateLayout, tmp_path: Path, members: list[tuple[str, bytes]], kind: bytes, words: str
) -> None:
    path = _tar(tmp_path / "bad.tar", *members, kind=kind)
    with pytest.raises(BackupRefused, match=words) as refused:
        restore_backup(path, target)
    assert str(refused.value).startswith(str(path)) and "nothing was restored" in str(refused.value)
    assert [path.name for path in target.root.iterdir()] == ["run"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.tar", "restored"]


@pytest.mark.parametrize("damage", ["cut", "flipped", "text"])
def test_a_damaged_backup_is_refused(old: StateLayout, target: StateLayout, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "b.tar"
    write_backup(old, path)
    data = path.read_bytes()
    place = data.index(b"SQLite format 3") + 5000
    change = {"cut": data[: len(data) // 2], "flipped": data[:place] + b"\xff" + data[place + 1 :], "text": b"hello"}
    path.write_bytes(change[damage])
    with pytest.raises(BackupRefused, match=r"b\.tar: no whole backup"):
        restore_backup(path, target)
    path.write_bytes(data)
    assert restore_backup(path, target) > 10, "the directory is still empty"


def test_a_backup_of_a_newer_mfmd_is_refused(target: StateLayout, tmp_path: Path) -> None:
    path = _tar(tmp_path / "b.tar", ("format.json", b'{"format": 9, "mfmd": "7.1.0"}'), ("new", b"x"))
    with pytest.raises(NewerFormat, match=r"b\.tar: format 9 of mfmd 7\.1\.0.*use mfmd 7\.1\.0 or later"):
        restore_backup(path, target)


def test_only_an_empty_directory_without_a_daemon_is_restored_into(old: StateLayout, tmp_path: Path) -> None:
    write_backup(old, tmp_path / "b.tar")
    before = _files(old)
    with pytest.raises(BackupRefused, match=r"state: not empty \(buffer, checkpoints, device_time\.json\)"):
        restore_backup(tmp_path / "b.tar", old)
    assert _files(old) == before
    empty = StateLayout(tmp_path / "empty")
    (empty.root / "lost+found").mkdir(parents=True)
    with empty.lock(), pytest.raises(AlreadyRunning):
        restore_backup(tmp_path / "b.tar", empty)
    with pytest.raises(FileNotFoundError):
        restore_backup(tmp_path / "none.tar", empty)
    restore_backup(tmp_path / "b.tar", empty)
    assert not any((empty.root / "lost+found").iterdir())
    open_everything(empty)
