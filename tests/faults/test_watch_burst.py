"""More files than events can tell of: an observer that goes deaf or dies, a kernel queue that overflows."""

import os

import pytest

from daemon.watch.events import Hints
from daemon.watch.watcher import Watcher
from storage.buffer.catalog import Catalog, note_file
from tests.faults.drop_world import picture

FILES = 1_000
QUEUE = 16_384
"""`fs.inotify.max_queued_events`, at most."""
COMMIT = 500


@pytest.fixture
def watcher(drop_world):
    """The watcher and the catalog, without decoding."""
    world = drop_world()
    made = Watcher(world.settings.watch, world.buffer.catalog, world.metrics.ingest, world.hints)
    yield world, made
    made.close()


def _take_all(watcher: Watcher, catalog: Catalog, wanted: int) -> list[str]:
    """What ingest would do with files that need no decoding: note them in groups until `wanted` are known."""
    taken: list[str] = []
    while len(taken) < wanted:
        watcher.poll()
        arrivals = watcher.take(COMMIT)
        with catalog.transaction() as connection:
            for arrival in arrivals:
                note_file(connection, arrival.file, "refused", None, "not_an_image")
        for arrival in arrivals:
            watcher.mark_done(arrival)
        taken += [arrival.file.path for arrival in arrivals]
    return taken


def _fill(folder, names: range) -> None:
    """Files of one content each thousand, made as fast as the kernel can: links raise one event each."""
    for number in names:
        if number % 1000 == 0:
            (folder / f"{number:06d}.png").write_bytes(b"x" * number)
            first = folder / f"{number:06d}.png"
        else:
            os.link(first, folder / f"{number:06d}.png")


@pytest.mark.parametrize("names", [8_000, pytest.param(100_000, marks=pytest.mark.nightly)])
def test_many_names_each_once_though_the_observer_goes_deaf_half_way(watcher, monkeypatch, names: int):
    world, watching = watcher
    watching.poll()
    assert watching.activity.mode == "events"
    _fill(world.folder, range(names // 2))
    taken = _take_all(watching, world.buffer.catalog, names // 4)
    monkeypatch.setattr(Hints, "add", lambda self, path, renamed: None)
    _fill(world.folder, range(names // 2, names))
    taken += _take_all(watching, world.buffer.catalog, names - len(taken))
    assert len(taken) == len(set(taken)) == names
    assert set(world.buffer.catalog.known_files()) == set(taken) == {entry.name for entry in os.scandir(world.folder)}
    watching.poll()
    assert watching.take(1) == []
    assert watching.activity.pending == 0


def test_a_burst_is_committed_whole_though_the_observer_dies_half_way(drop_world):
    world = drop_world()
    world.listening()
    for number in range(FILES // 2):
        world.drop(f"{number % 7}/{number}.png", picture(number))
    world.until(lambda: len(world.buffer.records()) > 100)
    observer = world.observer
    for number in range(FILES // 2, FILES):
        world.drop(f"{number % 7}/{number}.png", picture(number))
        if number == FILES * 3 // 4:
            observer.stop()
            observer.join()
    kept = world.settled()
    assert len(kept.committed) == FILES
    assert world.value("mfmd_watcher_restarts_total") >= 1


def test_an_overflow_of_the_kernels_queue_is_made_up_for_at_once(drop_world):
    """The thread that empties the queue is held; the kernel drops what comes, and only a rescan can find it."""
    world = drop_world(advanced={"rescan_seconds": 600.0})
    world.listening()
    world.until(lambda: world.value("mfmd_watcher_rescans_total") == 1)
    with world.observer._inotify_fd._lock:
        path, other = world.folder / "a.tmp", world.folder / "b.tmp"
        path.touch()
        for _ in range(QUEUE // 2 + 2048):  # two events each, that no kernel merges; one read takes 2,048 at most
            path.rename(other)
            path, other = other, path
        for number in range(20):
            world.drop(f"{number}.png", picture(number))
    world.until(lambda: world.value("mfmd_watcher_overflows_total") >= 1)
    world.until(lambda: not world.kept().waiting)
    assert len(world.kept().committed) == 20
    assert world.value("mfmd_watcher_rescan_found_total") == 20, "no event told of them"
    world.drop("later.png", picture(99))
    world.until(lambda: "later.png" in world.kept().committed)  # events come again: the timer is ten minutes away
