"""`mfmd buffer compact` as a function: what is forgotten, what is not, and what it gives back."""

import os
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from configs.buffer import BufferSettings
from configs.watch import WatchSettings
from daemon.watch.missing import missing_files
from storage.buffer.catalog import Catalog
from storage.buffer.catalog_records import FileFact
from storage.buffer.compact import Compacted, compact_buffer
from storage.buffer.frames import FrameBuffer, NewFrame
from storage.checking.state import check_state
from storage.errors import AlreadyRunning, StorageError
from storage.layout import StateLayout

Maker = Callable[..., NewFrame]
FRAMES = 3


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The drop folder, with the files of `filled` in it."""
    folder = tmp_path / "drop"
    for name in ("cam/0000.png", "cam/0001.png", "cam/0002.png", "bad.png", "near.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"any")
    return folder


@pytest.fixture
def filled(layout: StateLayout, small: BufferSettings, new_frame: Maker, folder: Path) -> StateLayout:
    """A closed buffer: three committed files, a refused one, a skipped one."""
    with FrameBuffer.open(layout, small, writable=True) as buffer:
        buffer.append([new_frame(number) for number in range(FRAMES)])
        buffer.catalog.note(fact(folder, "bad.png"), "refused", "truncated", "cut off", "d" * 64)
        buffer.catalog.note(fact(folder, "near.png"), "skipped", "near_duplicate", "of frame 1", "e" * 64)
    return layout


@pytest.fixture
def known(filled: StateLayout) -> Iterator[Callable[[], set[str]]]:
    """Asks which files the catalog knows."""

    def ask() -> set[str]:
        catalog = Catalog.open(filled.catalog, writable=False)
        try:
            return set(catalog.known_files())
        finally:
            catalog.close()

    return ask


EVERYTHING = {"cam/0000.png", "cam/0001.png", "cam/0002.png", "bad.png", "near.png"}


def compact(layout: StateLayout, settings: BufferSettings, watch: WatchSettings) -> Compacted:
    """As the command does it."""
    return compact_buffer(layout, settings, partial(missing_files, watch))


def fact(folder: Path, name: str) -> FileFact:
    status = (folder / name).stat()
    return FileFact(name, status.st_size, status.st_mtime_ns)


def empty(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


def test_files_that_are_gone_are_forgotten_and_the_others_are_not(filled, small, folder, known):
    (folder / "cam" / "0001.png").unlink()
    (folder / "bad.png").unlink()
    (folder / "cam" / "0002.png").unlink()
    (folder / "cam" / "0002.png").symlink_to("nowhere")  # there is something of that name
    done = compact(filled, small, WatchSettings(folder=folder))
    assert (done.files_forgotten, done.kept_because) == (2, "")
    assert known() == {"cam/0000.png", "cam/0002.png", "near.png"}
    assert not check_state(filled, read_data=True)


def test_no_frame_goes_with_its_file_and_its_content_is_not_taken_again(filled, small, folder, known, new_frame):
    (folder / "cam" / "0001.png").unlink()
    compact(filled, small, WatchSettings(folder=folder))
    with FrameBuffer.open(filled, small, writable=True) as buffer:
        assert len(buffer.records()) == FRAMES and all(buffer.read(record).any() for record in buffer.records())
        assert buffer.append([new_frame(1)]) == []
        state = buffer.catalog.state_of(new_frame(1).file)
        assert state is not None and state.state == "duplicate"


def test_nothing_is_gone(filled, small, folder, known):
    done = compact(filled, small, WatchSettings(folder=folder))
    assert (done.files_forgotten, done.kept_because) == (0, "")
    assert known() == EVERYTHING


def test_a_folder_that_is_not_there(filled, small, folder, known):
    done = compact(filled, small, WatchSettings(folder=folder / "away"))
    assert done.files_forgotten == 0 and done.kept_because == f"{folder / 'away'} does not exist"
    assert known() == EVERYTHING


def test_an_empty_folder_may_be_an_unmounted_one(filled, small, folder, known):
    empty(folder)
    (folder / "other.png").write_bytes(b"not one of them")
    done = compact(filled, small, WatchSettings(folder=folder))
    assert done.files_forgotten == 0 and "may not be mounted" in done.kept_because
    assert known() == EVERYTHING


def test_a_marker_tells_an_empty_folder_from_an_unmounted_one(filled, small, folder, known):
    empty(folder)
    watch = WatchSettings(folder=folder, marker=".mounted")
    done = compact(filled, small, watch)
    assert done.files_forgotten == 0 and done.kept_because == f"{folder} holds no .mounted (watch.marker)"
    assert known() == EVERYTHING
    (folder / ".mounted").touch()
    done = compact(filled, small, watch)
    assert (done.files_forgotten, done.kept_because) == (len(EVERYTHING), "")
    assert known() == set()


def test_where_originals_are_deleted_an_empty_folder_is_what_is_expected(filled, small, folder, known):
    empty(folder)
    done = compact(filled, small, WatchSettings(folder=folder, after_commit="delete"))
    assert done.files_forgotten == len(EVERYTHING) and known() == set()


def test_a_refused_file_in_the_quarantine_is_not_gone(filled, small, folder, known, tmp_path):
    watch = WatchSettings(folder=folder, quarantine=tmp_path / "quarantine")
    (folder / "cam" / "0001.png").unlink()
    watch.quarantine.mkdir()
    (folder / "bad.png").rename(watch.quarantine / "bad-2.png")
    (watch.quarantine / "bad.png").write_bytes(b"an earlier one of that name")
    assert compact(filled, small, watch).files_forgotten == 1
    assert known() == EVERYTHING - {"cam/0001.png"}
    (watch.quarantine / "bad-2.png").rename(tmp_path / "kept.png")
    (watch.quarantine / "bad.png").unlink()
    watch.quarantine.rmdir()
    assert compact(filled, small, watch).files_forgotten == 0, "the quarantine may be unmounted"
    watch.quarantine.mkdir()
    assert compact(filled, small, watch).files_forgotten == 1
    assert known() == EVERYTHING - {"cam/0001.png", "bad.png"}


def test_a_folder_that_cannot_be_looked_into_may_hold_its_files(filled, small, folder, known):
    """Root may look everywhere, so a link that leads to itself stands for every error but `no such file`."""
    empty(folder / "cam")
    (folder / "cam").rmdir()
    (folder / "cam").symlink_to("cam")
    (folder / "bad.png").unlink()
    with pytest.raises(OSError, match="symbolic links"):
        (folder / "cam" / "0000.png").lstat()
    assert compact(filled, small, WatchSettings(folder=folder)).files_forgotten == 1
    assert known() == EVERYTHING - {"bad.png"}


def test_pixels_of_no_frame_and_unfinished_files_go(filled, small, folder):
    group = filled.frames_zarr / "frames"
    stray, partial = group / "c.5.0.0.0", filled.buffer / ".x.partial"
    stray.write_bytes((group / "c.0.0.0.0").read_bytes())
    partial.touch()
    compact(filled, small, WatchSettings(folder=folder))
    assert not stray.exists() and not partial.exists()
    assert (group / "c.0.0.0.0").exists()


def test_the_catalog_becomes_smaller(filled, small, folder, known):
    catalog = Catalog.open(filled.catalog, writable=True)
    with catalog.transaction() as connection:
        rows = [(f"old/{number:05d}.png", "x" * 200) for number in range(2000)]
        connection.executemany("INSERT INTO files VALUES (?, 1, 1, 'refused', 'truncated', ?, NULL, 1.0, NULL)", rows)
    with closing(Catalog.open(filled.catalog, writable=False)):  # the rows stay in the log, as after a kill
        catalog.close()
        assert filled.catalog.stat().st_size < 100_000
        done = compact(filled, small, WatchSettings(folder=folder))
    assert done.files_forgotten == 2000 and known() == EVERYTHING
    assert done.bytes_before > 400_000 > 100_000 > done.bytes_after == filled.catalog.stat().st_size


def test_refused_beside_a_daemon_or_a_writer(filled, small, folder, known):
    (folder / "bad.png").unlink()
    watch = WatchSettings(folder=folder)
    with filled.lock(), pytest.raises(AlreadyRunning, match="already works on this state directory"):
        compact(filled, small, watch)
    with FrameBuffer.open(filled, small, writable=True), pytest.raises(AlreadyRunning, match="writes to this buffer"):
        compact(filled, small, watch)
    assert known() == EVERYTHING


def test_beside_a_reader(filled, small, folder, new_frame):
    (folder / "bad.png").unlink()
    with FrameBuffer.open(filled, small, writable=False) as reader:
        records = reader.records()
        assert compact(filled, small, WatchSettings(folder=folder)).files_forgotten == 1
        assert reader.records() == records
        assert reader.catalog.refused() == []


def test_without_a_buffer_none_is_made(tmp_path, small, folder):
    nothing = StateLayout(tmp_path / "nothing")
    with pytest.raises(StorageError, match="no frame buffer yet"):
        compact(nothing, small, WatchSettings(folder=folder))
    assert not nothing.root.exists()


def test_a_name_that_is_no_text_is_not_taken_for_a_missing_one(filled, small, folder, known):
    """The catalog holds such a name escaped: there is no file of exactly that name."""
    Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.png")).write_bytes(b"any")
    with FrameBuffer.open(filled, small, writable=True) as buffer:
        buffer.catalog.note(FileFact(r"caf\xe9.png", 3, 4), "skipped", "near_duplicate", "of frame 1", "f" * 64)
        buffer.catalog.note(FileFact(r"gone\xe9.png", 3, 4), "skipped", "near_duplicate", "of frame 1", "f" * 64)
    assert compact(filled, small, WatchSettings(folder=folder)).files_forgotten == 1
    assert known() == EVERYTHING | {r"caf\xe9.png"}
