"""After the commit: originals stay, move or go; a kill in between is made up for; what changed is never touched."""

import errno
import os
import shutil
import threading
from pathlib import Path

import pytest

from daemon.errors import Stopping
from daemon.ingest import refusals
from daemon.ingest.originals import Originals
from daemon.ingest.refusals import RetryQueue, Selection
from daemon.watch.arrival import find_arrival
from daemon.watch.scan import FolderScan
from storage import durable, failpoints
from storage.buffer.catalog import note_file
from storage.buffer.catalog_records import FileFact
from storage.durable.digest import digest_of


@pytest.fixture
def done(tmp_path):
    return tmp_path / "done"


@pytest.fixture
def aside(tmp_path):
    return tmp_path / "aside"


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


def test_originals_are_kept_by_default(bench, drop, write_image):
    write_image(drop / "a.png", 1)
    world = bench()
    world.until(lambda: world.counts.frames == 1)
    assert files(drop) == ["a.png"]


def test_delete_comes_after_the_commit_and_spares_what_is_not_stored(bench, drop, write_image, monkeypatch):
    write_image(drop / "cam" / "a.png", 1)
    shutil.copy(drop / "cam" / "a.png", drop / "copy.png")
    (drop / "bad.png").write_text("no image")
    world = bench(watch={"after_commit": "delete"})
    real, seen = durable.remove_file, []
    remove = lambda path: (seen.append(world.buffer.catalog.has_digest(digest_of(path))), real(path))  # noqa: E731
    monkeypatch.setattr(durable, "remove_file", remove)
    world.until(lambda: files(drop) == ["bad.png"])
    assert seen == [True, True] and world.counts.frames == 1
    write_image(drop / "cam" / "a.png", 2)
    world.until(lambda: world.counts.frames == 2)
    assert files(drop) == ["bad.png"]


def test_move_keeps_sub_folders_and_overwrites_nothing(bench, drop, done, write_image):
    write_image(done / "cam" / "a.png", 9)
    first = write_image(drop / "cam" / "a.png", 1).read_bytes()
    (drop / "link.png").symlink_to(drop / "cam" / "a.png")
    world = bench(watch={"after_commit": "move", "done_folder": done})
    world.until(lambda: not files(drop))
    assert (done / "cam" / "a-2.png").read_bytes() == first
    write_image(drop / "cam" / "a.png", 2)
    world.until(lambda: world.counts.frames == 2 and not files(drop))
    assert files(done) == ["cam/a-2.png", "cam/a-3.png", "cam/a.png"]


def without_links(monkeypatch, number):
    """As on another file system."""

    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("storage.durable.os.link", refuse)


def test_a_link_that_leads_nowhere_keeps_its_name(tmp_path):
    """The place that it leads to may be unmounted for now."""
    source, link = tmp_path / "a.png", tmp_path / "to" / "a.png"
    source.write_bytes(b"image")
    link.parent.mkdir()
    link.symlink_to("elsewhere")
    assert durable.move_file(source, link) == tmp_path / "to" / "a-2.png"
    assert link.is_symlink()


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EPERM])
def test_a_move_to_another_file_system_is_a_copy_that_keeps_the_time(tmp_path, monkeypatch, number):
    without_links(monkeypatch, number)
    source = tmp_path / "a.png"
    source.write_bytes(b"content")
    os.utime(source, ns=(5, 1_600_000_000_123_456_789))
    (tmp_path / "to").mkdir()
    (tmp_path / "to" / "a.png").write_bytes(b"another")
    assert durable.move_file(source, tmp_path / "to" / "a.png") == tmp_path / "to" / "a-2.png"
    assert (tmp_path / "to" / "a-2.png").read_bytes() == b"content" and not source.exists()
    assert (tmp_path / "to" / "a-2.png").stat().st_mtime_ns == 1_600_000_000_123_456_789
    assert (tmp_path / "to" / "a.png").read_bytes() == b"another"


@pytest.mark.disk
def test_a_real_other_file_system(tmp_path):
    shm = os.access("/dev/shm", os.W_OK) and Path("/dev/shm").stat().st_dev != tmp_path.stat().st_dev
    if not shm:
        pytest.skip("no second file system")
    source = tmp_path / "a.png"
    source.write_bytes(b"content")
    target = Path(f"/dev/shm/mfmd-test-{os.getpid()}")
    try:
        durable.move_file(source, target / "a.png")
        assert files(target) == ["a.png"] and not source.exists()
    finally:
        shutil.rmtree(target, ignore_errors=True)


@pytest.mark.parametrize("links", [True, False])
def test_a_move_that_was_killed_before_the_old_name_went_is_finished(tmp_path, monkeypatch, links):
    if not links:
        without_links(monkeypatch, errno.EXDEV)
    source, target = tmp_path / "a.png", tmp_path / "to" / "a.png"
    source.write_bytes(b"content")
    with monkeypatch.context() as killed:
        killed.setattr(durable, "remove_file", lambda path: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            durable.move_file(source, target)
    assert source.exists() and target.exists()
    assert durable.move_file(source, target) == target
    assert files(tmp_path) == ["to/a.png"]


@pytest.mark.parametrize("after", ["move", "delete"])
def test_a_kill_between_commit_and_disposal_is_made_up_for_at_the_start(bench, drop, done, write_image, after):
    content = write_image(drop / "cam" / "a.png", 1).read_bytes()
    (drop / "bad.png").write_text("no image")
    before = bench()
    before.until(lambda: before.counts.frames == 1 and before.counts.refused)
    before.close()
    extra = {"done_folder": done} if after == "move" else {}
    world = bench(watch={"after_commit": after, "quarantine": done.with_name("bad"), **extra})
    world.until(lambda: not files(drop))
    assert (done.with_name("bad") / "bad.png").read_text() == "no image"
    assert after == "delete" or (done / "cam" / "a.png").read_bytes() == content
    assert world.counts.frames == 1


def test_a_file_that_changed_is_never_touched(bench, drop, write_image, make_settings):
    path = write_image(drop / "a.png", 1)
    world = bench()
    world.until(lambda: world.counts.frames == 1)
    watch = make_settings(watch={"after_commit": "delete"}).watch
    originals = Originals(watch, world.buffer.catalog.state_of, FolderScan(watch))
    seen = find_arrival(drop, "a.png")
    write_image(path, 2)
    originals.dispose(seen)
    assert path.exists(), "another size or mtime"
    content = bytearray(path.read_bytes())
    content = content[: seen.file.size].ljust(seen.file.size, b"x")
    path.write_bytes(content)
    os.utime(path, ns=(seen.file.mtime_ns, seen.file.mtime_ns))
    assert find_arrival(drop, "a.png").file == seen.file
    originals.dispose(seen)
    originals.sweep()
    assert path.read_bytes() == content, "same size and mtime, other content"
    write_image(path, 1)
    os.utime(path, ns=(seen.file.mtime_ns, seen.file.mtime_ns))
    originals.dispose(seen)
    assert not path.exists(), "the very content that is committed"


def test_what_cannot_move_stays_and_is_tried_again(bench, drop, tmp_path, write_image, monkeypatch):
    monkeypatch.setattr("daemon.ingest.originals.RETRY_SECONDS", 0.05)
    (tmp_path / "done").write_text("a file where the folder should be")
    write_image(drop / "a.png", 1)
    world = bench(watch={"after_commit": "move", "done_folder": tmp_path / "done"})
    world.until(lambda: world.counts.frames == 1)
    assert files(drop) == ["a.png"]
    (tmp_path / "done").unlink()
    world.until(lambda: not files(drop))
    assert files(tmp_path / "done") == ["a.png"]


def test_the_quarantine_keeps_sub_folders_and_a_retry_brings_files_back(bench, drop, aside, write_image):
    (drop / "cam").mkdir()
    good = write_image(drop.parent / "good.png", 1).read_bytes()
    (drop / "cam" / "a.png").write_bytes(good[:-30])
    world = bench(watch={"quarantine": aside})
    world.until(lambda: files(aside) == ["cam/a.png"])
    (drop / "cam" / "a.png").write_bytes(good[:-40])
    world.until(lambda: files(aside) == ["cam/a-2.png", "cam/a.png"])
    assert not files(drop)
    (refused,) = world.buffer.catalog.refused()
    assert refused.digest == digest_of(good[:-40])
    assert ask(world, Selection(frozenset(["cam/a.png", "none.png"]))) == ["cam/a.png"]
    world.until(lambda: files(aside) == ["cam/a-2.png", "cam/a.png"] and not files(drop))
    assert (aside / "cam" / "a-2.png").read_bytes() == good[:-40]
    assert world.value("mfmd_ingest_rejected_total", reason="truncated") == 3


def ask(world, selection):
    """Ask as the control API does, from another thread."""
    answers = []
    asker = threading.Thread(target=lambda: answers.append(world.ingest.retries.ask(selection)))
    asker.start()
    world.until(lambda: answers)
    asker.join()
    return answers[0]


def test_a_retry_takes_what_is_good_by_now(bench, drop, write_image):
    """The reader was wrong about it, or an extra was missing: here, the limit was too low."""
    write_image(drop / "a.png", 1)
    (drop / "bad.png").write_text("no image")
    strict = bench(watch={"max_pixels": 10})
    strict.until(lambda: strict.counts.refused == {"too_many_pixels": 1, "not_an_image": 1})
    strict.close()
    world = bench()
    world.ingest.step()
    assert ask(world, Selection(reason="too_many_pixels")) == ["a.png"]
    world.until(lambda: world.counts.frames == 1)
    assert world.counts.refused == {"not_an_image": 1}


def test_a_kill_between_coming_back_and_being_forgotten_leaves_it_refused(bench, drop, aside, monkeypatch):
    (drop / "bad.png").write_text("no image")
    world = bench(watch={"quarantine": aside})
    world.until(lambda: files(aside) == ["bad.png"])
    watch, catalog = world.settings.watch, world.buffer.catalog
    with monkeypatch.context() as killed:
        killed.setattr(type(catalog), "forget_refusals", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            refusals.retry_refused(watch, catalog, Selection())
    assert files(drop) == ["bad.png"] and catalog.counts().refused == {"not_an_image": 1}
    Originals(watch, catalog.state_of, FolderScan(watch)).sweep()
    assert files(aside) == ["bad.png"] and not files(drop)


def test_a_request_that_nobody_serves_is_told_so():
    wakes = []
    with pytest.raises(Stopping, match="does not answer"):
        RetryQueue(lambda: wakes.append(1)).ask(Selection(), seconds=0.01)
    assert wakes == [1]


def test_an_error_reaches_who_asked_and_ingest():
    requests, errors = RetryQueue(lambda: None), []

    def ask_and_note():
        with pytest.raises(OSError) as caught:
            requests.ask(Selection())
        errors.append(caught.value.errno)

    asker = threading.Thread(target=ask_and_note)
    asker.start()

    def fail(selection):
        raise OSError(errno.EROFS, "read-only")

    with pytest.raises(OSError):
        while True:
            requests.serve(fail)
    asker.join()
    assert errors == [errno.EROFS]


def test_a_refusal_is_forgotten_only_for_the_very_file(bench):
    catalog = bench().buffer.catalog
    catalog.note(FileFact("a", 1, 2), "refused", "empty", "", None)
    catalog.forget_refusals([FileFact("a", 1, 3)])
    assert catalog.counts().refused == {"empty": 1}
    catalog.forget_refusals([FileFact("a", 1, 2)])
    assert catalog.counts().refused == {}


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("place", ["move.placed", "move.synced"])
def test_a_file_that_takes_the_name_during_a_move_stays(bench, drop, done, write_image, monkeypatch, links, place):
    """A camera that renames its newest image over the last one; the move waits for a disk meanwhile."""
    first = write_image(drop / "latest.png", 1).read_bytes()
    newer = write_image(drop.parent / "newer.png", 2)
    second = newer.read_bytes()
    monkeypatch.setattr(failpoints, "_hook", None)

    def replace(name):
        if name == place and newer.exists():
            newer.rename(drop / "latest.png")

    world = bench(watch={"after_commit": "move", "done_folder": done})
    failpoints.watch(replace)
    if not links:
        without_links(monkeypatch, errno.EXDEV)
    world.until(lambda: world.counts.frames == 2 and not files(drop))
    assert {(done / name).read_bytes() for name in files(done)} == {first, second}


def test_a_file_that_changes_while_it_is_copied_away_stays(tmp_path, monkeypatch):
    without_links(monkeypatch, errno.EXDEV)
    source = tmp_path / "a.png"
    source.write_bytes(b"first")
    real = durable.copy_in

    def copy(source, target):
        real(source, target)
        source.write_bytes(b"second")

    monkeypatch.setattr(durable, "copy_in", copy)
    durable.move_file(source, tmp_path / "to" / "a.png")
    assert source.read_bytes() == b"second" and (tmp_path / "to" / "a.png").read_bytes() == b"first"


def test_a_retry_moves_nothing_through_a_link_out_of_the_folder(bench, drop, aside, tmp_path):
    """Whoever may write to the drop folder must not choose where else mfmd writes."""
    (drop / "cam").mkdir()
    (drop / "cam" / "authorized_keys").write_text("no image")
    world = bench(watch={"quarantine": aside})
    world.until(lambda: files(aside) == ["cam/authorized_keys"])
    (tmp_path / "home").mkdir()
    (drop / "cam").rmdir()
    (drop / "cam").symlink_to(tmp_path / "home")
    with pytest.raises(OSError, match="out of the drop folder"):
        refusals.retry_refused(world.settings.watch, world.buffer.catalog, Selection())
    assert not files(tmp_path / "home") and files(aside) == ["cam/authorized_keys"]
    assert world.counts.refused == {"not_an_image": 1}


def test_a_file_that_is_replaced_while_its_digest_is_made_stays(bench, drop, write_image, make_settings, monkeypatch):
    path = write_image(drop / "a.png", 1)
    newer = write_image(drop.parent / "newer.png", 2)
    world = bench()
    world.until(lambda: world.counts.frames == 1)
    watch = make_settings(watch={"after_commit": "delete"}).watch

    def slowly(path):
        digest = digest_of(path)
        newer.rename(path)
        return digest

    monkeypatch.setattr("daemon.ingest.originals.digest_of", slowly)
    Originals(watch, world.buffer.catalog.state_of, FolderScan(watch)).sweep()
    assert path.exists()


def test_many_refusals_are_forgotten_in_one_commit(bench, drop, tmp_path):
    """One commit for each of 100,000 would take longer than the daemon's health check waits for a step."""
    world = bench()
    catalog = world.buffer.catalog
    with catalog.transaction() as connection:
        for number in range(500):
            note_file(connection, FileFact(f"{number}.png", 1, number), "refused", None, "empty")
    commits = []
    failpoints.watch(lambda name: commits.append(name) if name == "transaction.committed" else None)
    try:
        done = refusals.retry_refused(world.settings.watch, catalog, Selection())
    finally:
        failpoints.watch(None)
    assert len(done) == 500 and catalog.counts().refused == {}
    assert len(commits) == 1


def test_what_came_back_before_a_file_that_cannot_is_tried_again(bench, drop, aside):
    (drop / "cam").mkdir()
    for name in ("a.png", "cam/b.png", "c.png"):
        (drop / name).write_text("no image")
    world = bench(watch={"quarantine": aside})
    world.until(lambda: files(aside) == ["a.png", "c.png", "cam/b.png"])
    order = [item.file.path for item in world.buffer.catalog.refused()]
    shutil.rmtree(drop / "cam")
    (drop / "cam").symlink_to("/")
    with pytest.raises(OSError, match="out of the drop folder"):
        refusals.retry_refused(world.settings.watch, world.buffer.catalog, Selection())
    before = order[: order.index("cam/b.png")]
    assert files(drop) == sorted(["cam", *before]) or files(drop) == sorted(before)
    assert sum(world.counts.refused.values()) == 3 - len(before)
