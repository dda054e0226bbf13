import errno
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest

from storage.buffer.catalog import Catalog
from storage.buffer.catalog_records import FileFact, FrameRecord
from storage.errors import BufferMismatch, NewerRecord, StorageError

FILE = FileFact("cam/a.png", 10, 20)


@pytest.fixture
def catalog(tmp_path: Path):
    catalog = Catalog.open(tmp_path / "catalog.sqlite", writable=True)
    yield catalog
    catalog.close()


def test_it_is_durable_by_its_settings(catalog: Catalog):
    with catalog.reading() as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
        assert connection.execute("PRAGMA synchronous").fetchone()[0] == 2
        assert connection.execute("PRAGMA foreign_keys").fetchone()[0] == 1


def test_a_refused_file_is_known_until_it_changes(catalog: Catalog):
    catalog.note(FILE, "refused", "truncated", "cut off after 10 bytes", "d" * 64)
    assert catalog.known(FILE)
    assert not catalog.known(FileFact("cam/a.png", 11, 20))
    assert not catalog.known(FileFact("cam/a.png", 10, 21))
    assert not catalog.known(FileFact("cam/b.png", 10, 20))
    assert catalog.known_files() == {"cam/a.png": FILE}
    (refused,) = catalog.refused(limit=5)
    assert (refused.file, refused.reason, refused.detail) == (FILE, "truncated", "cut off after 10 bytes")
    assert not catalog.has_digest("d" * 64)


def test_a_changed_file_replaces_what_was_known(catalog: Catalog):
    catalog.note(FILE, "refused", "truncated", "", None)
    changed = FileFact(FILE.path, 30, 40)
    catalog.note(changed, "duplicate", digest="d" * 64)
    assert catalog.known(changed) and not catalog.known(FILE)
    counts = catalog.counts()
    assert counts.refused == {} and counts.duplicates == 1


def test_counts_and_the_newest_refusals(catalog: Catalog):
    for number, reason in enumerate(["empty", "truncated", "empty"]):
        catalog.note(FileFact(f"{number}.png", 0, number), "refused", reason, "")
    catalog.note(FileFact("d.png", 1, 1), "duplicate", digest="d" * 64)
    counts = catalog.counts()
    assert counts.refused == {"empty": 2, "truncated": 1}
    assert (counts.frames, counts.committed_total, counts.evicted_total, counts.duplicates) == (0, 0, 0, 1)
    assert counts.last_committed_at is None
    assert [item.file.path for item in catalog.refused(limit=2)] == ["2.png", "1.png"]


def test_a_reader_without_a_catalog_is_told(tmp_path: Path):
    with pytest.raises(StorageError, match="no frame buffer yet"):
        Catalog.open(tmp_path / "catalog.sqlite", writable=False)
    assert not list(tmp_path.iterdir())


def test_a_reader_cannot_write(catalog: Catalog):
    reader = Catalog.open(catalog.path, writable=False)
    with pytest.raises(StorageError, match="reading only"):
        reader.note(FILE, "refused", "empty", "")
    reader.close()


READ = """
import sys
from pathlib import Path
from storage.buffer.catalog import Catalog
catalog = Catalog.open(Path(sys.argv[1]), writable=False)
for line in sys.stdin:
    print(sum(catalog.counts().refused.values()), flush=True)
assert "zarr" not in sys.modules and "torch" not in sys.modules
"""


def test_another_process_reads_while_this_one_writes(catalog: Catalog):
    with subprocess.Popen(
        [sys.executable, "-c", READ, str(catalog.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as reader:
        assert reader.stdin is not None and reader.stdout is not None
        for number in range(3):
            catalog.note(FileFact(f"{number}.png", 0, number), "refused", "empty", "")
            reader.stdin.write("\n")
            reader.stdin.flush()
            assert reader.stdout.readline() == f"{number + 1}\n"
        with catalog.transaction() as connection:  # an open transaction shows nothing and stops nobody
            connection.execute("DELETE FROM files")
            reader.stdin.write("\n")
            reader.stdin.flush()
            assert reader.stdout.readline() == "3\n"
        reader.stdin.close()
        assert reader.wait() == 0


def test_it_is_readable_after_the_writer_has_gone(tmp_path: Path):
    writer = Catalog.open(tmp_path / "catalog.sqlite", writable=True)
    writer.note(FILE, "refused", "empty", "")
    writer.close()
    reader = Catalog.open(tmp_path / "catalog.sqlite", writable=False)
    assert reader.known(FILE)
    reader.close()


def test_a_failed_transaction_leaves_nothing(catalog: Catalog):
    with pytest.raises(RuntimeError), catalog.transaction() as connection:
        connection.execute("INSERT INTO digests VALUES ('d', 1)")
        raise RuntimeError
    assert not catalog.has_digest("d")
    catalog.note(FILE, "refused", "empty", "")


def test_a_full_disk_is_an_os_error(catalog: Catalog):
    with catalog.reading() as connection:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(OSError, match="No space left") as caught:
        catalog.note(FILE, "refused", "empty", "x" * 100_000)
    assert caught.value.errno == errno.ENOSPC
    assert not catalog.known(FILE)


def test_another_schema_is_refused(tmp_path: Path):
    path = tmp_path / "catalog.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    for writable in (True, False):
        with pytest.raises(NewerRecord, match=r"schema 99.*use the mfmd version that wrote it"):
            Catalog.open(path, writable=writable)


def test_a_file_that_is_no_database_is_named(tmp_path: Path):
    path = tmp_path / "catalog.sqlite"
    path.write_bytes(b"something else" * 100)
    with pytest.raises(StorageError, match=str(path)):
        Catalog.open(path, writable=True)


def test_threads_share_it(catalog: Catalog):
    def write(offset: int) -> None:
        for number in range(10):
            catalog.note(FileFact(f"{offset}/{number}", 0, 0), "refused", "empty", "")
            catalog.counts()

    threads = [threading.Thread(target=write, args=(offset,)) for offset in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert catalog.counts().refused == {"empty": 40}


def test_records_are_selected_by_id_and_slice(catalog: Catalog):
    values = {"name": "n", "captured_at": 1.0, "committed_at": 2.0, "crc32": 2**32 - 1}
    sizes = dict.fromkeys(("source_height", "source_width", "valid_height", "valid_width"), 4)
    with catalog.transaction() as connection:
        for number in range(1, 7):
            row = {"slot": number, "digest": f"{number:064d}", "holdout": number % 3 == 0, **values, **sizes}
            names = ", ".join(row)
            connection.execute(f"INSERT INTO frames ({names}) VALUES ({', '.join('?' * len(row))})", [*row.values()])
    assert [record.id for record in catalog.records()] == [1, 2, 3, 4, 5, 6]
    assert [record.id for record in catalog.records(holdout=True)] == [3, 6]
    assert [record.id for record in catalog.records(holdout=False)] == [1, 2, 4, 5]
    assert [record.id for record in catalog.records(ids=[6, 2, 99])] == [2, 6]
    assert [record.id for record in catalog.records(ids={3, 4}, holdout=True)] == [3]
    assert catalog.records(ids=[]) == []
    assert catalog.records()[0] == FrameRecord(id=1, slot=1, digest=f"{1:064d}", holdout=False, **values, **sizes)
    assert catalog.counts().holdout == 2


def test_a_reader_is_told_how_an_older_schema_is_brought_up(tmp_path: Path):
    path = tmp_path / "catalog.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 1")
    with pytest.raises(BufferMismatch, match=r"schema 1.*mfmd run.*upgrades it"):
        Catalog.open(path, writable=False)
