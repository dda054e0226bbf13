"""Writers that do as they like: renames without end, files in small pieces, two at one name, a handler that raises."""

import random
import threading
import time
from collections.abc import Callable

import pytest

from daemon.watch.events import Hints
from tests.faults.drop_world import DropWorld, picture

FILES = 40


def _while(world: DropWorld, *writers: Callable[[], None]) -> None:
    """Step ingest while the writers write."""
    threads = [threading.Thread(target=writer) for writer in writers]
    for thread in threads:
        thread.start()
    world.until(lambda: not any(thread.is_alive() for thread in threads))
    for thread in threads:
        thread.join()


@pytest.mark.parametrize("mode", ["events", "polling"])
def test_a_storm_of_renames(drop_world, mode):
    """Each file changes its name many times, between folders too; its content is committed once, whatever its name."""
    world = drop_world(mode=mode, stability_seconds=0.05)
    (world.folder / "sub").mkdir()
    contents = [picture(number) for number in range(FILES)]
    final: list[str] = []

    def storm() -> None:
        draws = random.Random(1)
        names = [f"{number}.png" for number in range(FILES)]
        for name, content in zip(names, contents, strict=True):
            world.promise(name, content)
            (world.folder / name).write_bytes(content)
        for turn in range(1500):
            index = draws.randrange(FILES)
            new = draws.choice(["", "sub/"]) + f"{index}-{turn}.png"
            (world.folder / names[index]).rename(world.folder / new)
            names[index] = new
            if turn % 20 == 0:
                time.sleep(0.01)  # or all of it were over before ingest can take the first
        final.extend(names)

    _while(world, storm)
    world.dropped.clear()
    for name, content in zip(final, contents, strict=True):
        world.promise(name, content)
    kept = world.settled()
    assert len(kept.committed | kept.duplicate) == FILES
    assert world.buffer.catalog.counts().committed_total == FILES
    assert world.buffer.catalog.counts().refused == {}


def test_files_written_slowly_in_pieces(drop_world):
    """No piece is taken for the whole, though the writing takes many times the stability delay."""
    world = drop_world(stability_seconds=0.2)
    contents = {f"{number}.png": picture(number) for number in range(8)}
    open_files = {name: (world.folder / name).open("wb", buffering=0) for name in contents}
    for part in range(40):
        for name, file in open_files.items():
            size = len(contents[name])
            file.write(contents[name][size * part // 40 : size * (part + 1) // 40])
        world.ingest.step()  # always after a piece: a machine that stalls cannot make a file look finished
        time.sleep(0.03)
        assert world.buffer.records() == []
    for name, file in open_files.items():
        file.close()
        world.promise(name, contents[name])
    assert len(world.settled().committed) == 8
    assert world.value("mfmd_ingest_files_total", outcome="rejected") == 0


def test_a_writer_that_pauses_longer_than_the_delay_is_refused_and_then_taken(drop_world):
    world = drop_world()
    whole = picture(1)
    (world.folder / "a.png").write_bytes(whole[:300])
    world.until(lambda: world.buffer.catalog.counts().refused == {"truncated": 1})
    world.drop("a.png", whole)
    assert world.settled().committed == {"a.png"}


def test_two_writers_of_one_name(drop_world):
    """One writes in place, one renames over it; what lies there in the end is committed, each whole version once."""
    world = drop_world(stability_seconds=0.05)
    shared = [world.folder / f"{number}.png" for number in range(5)]
    contents = [[picture(100 * writer + turn) for turn in range(30)] for writer in range(2)]
    for path in shared:
        for content in (*contents[0], *contents[1]):
            world.promise(path.name, content)

    def in_place() -> None:
        for turn, content in enumerate(contents[0]):
            shared[turn % 5].write_bytes(content)
            time.sleep(0.01)

    def by_rename() -> None:
        for turn, content in enumerate(contents[1]):
            temporary = world.folder / "next.tmp"
            temporary.write_bytes(content)
            temporary.rename(shared[turn % 5])
            time.sleep(0.013)

    _while(world, in_place, by_rename)
    kept = world.settled()
    assert len(kept.committed | kept.duplicate) == 5
    digests = [record.digest for record in world.buffer.records()]
    assert len(digests) == len(set(digests)) >= 5


def test_a_file_that_changes_after_its_commit_is_another_frame(drop_world):
    world = drop_world()
    for number in range(4):
        world.drop("a.png", picture(number, side=16 + number))
        world.settled()
    world.drop("a.png", picture(0))
    kept = world.settled()
    assert kept.duplicate == {"a.png"}, "back to what it was: known content"
    assert world.buffer.catalog.counts().committed_total == 4


@pytest.mark.parametrize("failures", [1, 1000])
def test_a_handler_that_raises(drop_world, monkeypatch, failures):
    """Once or always: the observer lives on, and a rescan, not the ten-minute timer, makes up for what it missed."""
    world = drop_world(advanced={"rescan_seconds": 600.0})
    world.listening()
    observer, real, raised = world.observer, Hints.add, []

    def add(self, path, *, renamed):
        if len(raised) < failures:
            raised.append(path)
            raise RuntimeError("a bug in the handler")
        real(self, path, renamed=renamed)

    monkeypatch.setattr(Hints, "add", add)
    for number in range(10):
        world.drop(f"{number}.png", picture(number))
    world.until(lambda: len(world.kept().committed) == 10)
    assert raised
    assert observer.is_alive()
    assert world.observer is observer
    assert world.value("mfmd_watcher_overflows_total") >= 1
