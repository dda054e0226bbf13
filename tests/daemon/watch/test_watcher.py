"""The drop folder: nothing is missed whatever events do, nothing is taken before it stands still."""

import os
import shutil
import time
from pathlib import Path

import pytest

from daemon.watch.arrival import StabilityQueue, find_arrival
from daemon.watch.events import MAX_HINTS, Hints
from daemon.watch.scan import FolderScan


def test_files_there_before_the_start_and_files_that_come_are_taken(bench, drop, write_image):
    write_image(drop / "before.png", 1)
    world = bench()
    world.until(lambda: world.counts.frames == 1)
    write_image(drop / "deep" / "er" / "after.png", 2)
    world.until(lambda: world.counts.frames == 2)
    assert {record.name for record in world.buffer.records()} == {"before.png", "deep/er/after.png"}
    assert world.activity.watch.state == "watching"
    assert (world.activity.watch.mode, world.activity.watch.mode_reason) == ("events", "local")
    assert world.value("mfmd_watcher_mode_info", mode="events", reason="local") == 1
    assert world.value("mfmd_watcher_events_total") > 0
    assert world.wakes > 0


def test_a_file_is_taken_only_when_it_stands_still(bench, drop, write_image):
    world = bench(watch={"stability_seconds": 0.4})
    content = write_image(drop.parent / "whole.png", 1).read_bytes()
    path = drop / "slow.png"
    path.write_bytes(content[:100])
    for end in range(200, len(content), len(content) // 8):
        path.write_bytes(content[:end])
        for _ in range(5):
            world.ingest.step()
            time.sleep(0.02)
        assert world.counts.frames == 0
        assert world.counts.refused == {}
    path.write_bytes(content)
    world.until(lambda: world.counts.frames == 1)
    assert world.counts.refused == {}


def test_the_rescan_finds_what_no_event_announced(bench, drop, write_image, monkeypatch):
    monkeypatch.setattr(Hints, "add", lambda self, path, renamed: None)
    world = bench()
    world.until(lambda: world.activity.watch.state == "watching")
    write_image(drop / "silent.png", 1)
    world.until(lambda: world.counts.frames == 1)
    assert world.value("mfmd_watcher_events_total") == 0
    assert world.value("mfmd_watcher_rescan_found_total") == 1


def test_a_refused_file_that_changes_is_taken(bench, drop, write_image):
    world = bench()
    path = drop / "late.png"
    path.write_bytes(b"not yet an image")
    world.until(lambda: world.counts.refused == {"not_an_image": 1})
    write_image(path, 1)
    world.until(lambda: world.counts.frames == 1)
    assert world.counts.refused == {}


def test_a_change_that_no_event_announced_is_found_by_the_deep_rescan(bench, drop, write_image, monkeypatch):
    monkeypatch.setattr(Hints, "add", lambda self, path, renamed: None)
    monkeypatch.setattr("daemon.watch.watcher.DEEP_SECONDS", 0.2)
    world = bench()
    write_image(drop / "a.png", 1)
    world.until(lambda: world.counts.frames == 1)
    write_image(drop / "a.png", 2)
    world.until(lambda: world.counts.frames == 2)


def test_what_is_known_is_not_read_again_after_a_restart(bench, drop, write_image, layout):
    write_image(drop / "a.png", 1)
    (drop / "b.png").write_bytes(b"rubbish")
    first = bench()
    first.until(lambda: first.counts.frames == 1 and first.counts.refused)
    first.close()
    second = bench()
    second.until(lambda: second.value("mfmd_watcher_rescans_total") >= 3)
    assert second.activity.watch.pending == 0
    assert second.value("mfmd_ingest_files_total", outcome="stored") == 0
    assert second.value("mfmd_ingest_files_total", outcome="rejected") == 0


def test_a_folder_missing_at_the_start_is_waited_for(bench, drop, write_image):
    drop.rmdir()
    world = bench()
    world.until(lambda: world.activity.watch.state == "missing")
    assert "does not exist; waiting for it" in world.activity.watch.detail
    assert world.value("mfmd_watcher_folder_present") == 0
    write_image(drop / "a.png", 1)
    world.until(lambda: world.counts.frames == 1)
    assert world.value("mfmd_watcher_folder_present") == 1
    assert world.activity.watch.detail == ""


def test_a_folder_that_vanishes_and_comes_back_is_watched_again(bench, drop, write_image):
    world = bench()
    write_image(drop / "a.png", 1)
    world.until(lambda: world.counts.frames == 1)
    shutil.rmtree(drop)
    world.until(lambda: world.activity.watch.state == "missing")
    write_image(drop / "b.png", 2)
    world.until(lambda: world.counts.frames == 2)
    assert world.value("mfmd_watcher_restarts_total") == 1
    heard = world.value("mfmd_watcher_events_total")
    write_image(drop / "c.png", 3)
    world.until(lambda: world.counts.frames == 3)
    assert world.value("mfmd_watcher_events_total") > heard, "events must come again, not only rescans"


def test_a_folder_that_is_replaced_between_two_looks_is_noticed(bench, drop, write_image, tmp_path):
    world = bench()
    world.until(lambda: world.activity.watch.state == "watching")
    drop.rename(tmp_path / "old")
    write_image(drop / "new.png", 1)
    world.until(lambda: world.counts.frames == 1)
    world.until(lambda: world.value("mfmd_watcher_restarts_total") >= 1)


def test_a_dead_observer_is_replaced(bench, drop, write_image):
    world = bench()
    world.until(lambda: world.activity.watch.state == "watching")
    observer = world.ingest._watcher._root._events._observer
    observer._handlers.clear()
    observer.stop()
    observer.join()
    world.until(lambda: world.value("mfmd_watcher_restarts_total") == 1)
    heard = world.value("mfmd_watcher_events_total")
    write_image(drop / "a.png", 1)
    world.until(lambda: world.counts.frames == 1)
    assert world.value("mfmd_watcher_events_total") > heard


def test_without_events_the_rescan_does_the_work_and_says_so(bench, drop, write_image, monkeypatch):
    def refuse(self: object) -> None:
        raise OSError(28, "inotify watch limit reached")

    monkeypatch.setattr("daemon.watch.events.FolderEvents.start", refuse)
    world = bench()
    write_image(drop / "a.png", 1)
    world.until(lambda: world.counts.frames == 1)
    assert (world.activity.watch.mode, world.activity.watch.mode_reason) == ("polling", "refused")
    assert "inotify watch limit reached" in world.activity.watch.detail
    assert world.value("mfmd_watcher_mode_info", mode="polling", reason="refused") == 1


def test_lost_events_lead_to_a_rescan(bench, drop, write_image, monkeypatch):
    world = bench(watch={"advanced": {"rescan_seconds": 600}})
    world.until(lambda: world.value("mfmd_watcher_rescans_total") == 1)
    monkeypatch.setattr(Hints, "add", lambda self, path, renamed: None)
    write_image(drop / "a.png", 1)
    world.hints.lose()
    world.until(lambda: world.counts.frames == 1)
    assert world.value("mfmd_watcher_overflows_total") == 1


def test_an_overflow_in_watchdogs_log_counts_as_lost_events(bench, drop):
    import logging

    world = bench()
    world.until(lambda: world.activity.watch.mode == "events")
    logging.getLogger("watchdog.observers.inotify_c").warning("Inotify queue overflowed; filesystem events were lost")
    world.until(lambda: world.value("mfmd_watcher_overflows_total") == 1)


def test_hints_are_bounded_and_an_overflow_is_told():
    wakes = []
    hints = Hints(lambda: wakes.append(1))
    for number in range(MAX_HINTS + 5):
        hints.add(f"/drop/{number}")
    paths, heard, lost = hints.take()
    assert (len(paths), heard, lost) == (MAX_HINTS, MAX_HINTS + 5, True)
    assert len(wakes) == 1, "one wake for a burst"
    assert hints.take() == ({}, 0, False)


def test_ignored_names_are_never_looked_at(bench, drop, write_image):
    for name in (".hidden.png", "half.part", "copy.tmp", "@eaDir/thumb.png", "~lock.png", ".stfolder/x.png"):
        write_image(drop / "x.png", 1).rename(_made(drop / name))
    write_image(drop / "seen.png", 2)
    world = bench()
    world.until(lambda: world.counts.frames == 1)
    world.until(lambda: world.value("mfmd_watcher_rescans_total") >= 3)
    assert [record.name for record in world.buffer.records()] == ["seen.png"]
    world.until(lambda: world.activity.watch.pending == 0)


def test_sub_folders_are_left_alone_unless_recursive(bench, drop, write_image):
    write_image(drop / "sub" / "a.png", 1)
    write_image(drop / "b.png", 2)
    world = bench(watch={"advanced": {"recursive": False}})
    world.until(lambda: world.counts.frames == 1)
    world.until(lambda: world.value("mfmd_watcher_rescans_total") >= 3)
    assert world.counts.frames == 1


def test_pipes_are_not_opened(bench, drop, write_image):
    os.mkfifo(drop / "a.png")  # whoever opened it would wait for its other end, for ever
    write_image(drop / "b.png", 1)
    world = bench(watch={"advanced": {"decode_threads": 1}})
    world.until(lambda: world.counts.frames == 1)
    world.until(lambda: world.value("mfmd_watcher_rescans_total") >= 3)
    assert world.activity.watch.pending == 0
    assert world.counts.frames == 1 and [record.name for record in world.buffer.records()] == ["b.png"]


def test_more_files_than_the_queue_holds_wait_in_the_folder(bench, drop, write_image, monkeypatch):
    monkeypatch.setattr("daemon.watch.watcher.StabilityQueue", lambda delay: StabilityQueue(delay, capacity=3))
    for number in range(10):
        write_image(drop / f"{number}.png", number)
    world = bench()
    world.until(lambda: world.activity.watch.pending == 10)
    world.until(lambda: world.counts.frames == 10)
    world.until(lambda: world.activity.watch.pending == 0)


def test_a_burst_is_taken_whole(bench, drop, write_image):
    world = bench(buffer={"capacity_frames": 400})
    image = write_image(drop.parent / "a.png", 1).read_bytes()
    for number in range(300):
        (drop / f"{number}.png").write_bytes(image + b" " * number)
    world.until(lambda: world.counts.frames == 300)
    world.until(lambda: world.activity.watch.pending == 0)


@pytest.fixture
def scan(make_settings) -> FolderScan:
    return FolderScan(make_settings().watch)


def test_paths_of_events_become_names(scan, drop):
    assert scan.relative(str(drop / "a" / "b.png")) == "a/b.png"
    assert scan.relative("/elsewhere/b.png") is None
    assert scan.relative(str(drop / ".git" / "b.png")) is None
    assert scan.relative(str(drop)) is None


def test_a_sub_folder_that_cannot_be_listed_is_told(scan, drop, write_image, monkeypatch):
    write_image(drop / "a.png", 1)
    write_image(drop / "closed" / "b.png", 2)
    real = os.scandir

    def refuse(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr("daemon.watch.scan.os.scandir", refuse)
    told = []
    names = list(scan.names(lambda name, error: told.append(name)))
    assert names == ["a.png"]
    assert told == ["closed/"]


def test_the_stability_queue_gives_back_what_changed_and_drops_what_is_gone(drop, write_image):
    queue = StabilityQueue(delay=1.0)
    for name in ("same.png", "changed.png", "gone.png"):
        write_image(drop / name, 1)
        queue.note(name, find_arrival(drop, name), now=10.0)
    assert list(queue.take(lambda name: find_arrival(drop, name), now=10.9)) == []
    assert queue.next_due(10.9) == pytest.approx(0.1)
    write_image(drop / "changed.png", 2, height=30)
    (drop / "gone.png").unlink()
    taken = [name for name, _, _ in queue.take(lambda name: find_arrival(drop, name), now=11.0)]
    assert taken == ["same.png"]
    assert len(queue) == 1
    assert [name for name, _, _ in queue.take(lambda name: find_arrival(drop, name), now=12.0)] == ["changed.png"]


def test_a_postponed_file_comes_back_after_its_delay_and_does_not_hold_up_others(drop, write_image):
    queue = StabilityQueue(delay=0.0)
    for name in ("bad.png", "good.png"):
        write_image(drop / name, 1)
    queue.postpone("bad.png", failures=3, now=0.0)  # 4 s
    queue.note("good.png", find_arrival(drop, "good.png"), now=0.0)
    look = lambda name: find_arrival(drop, name)  # noqa: E731
    assert [name for name, _, _ in queue.take(look, now=1.0)] == ["good.png"]
    assert queue.next_due(1.0) == pytest.approx(3.0)
    again = [*queue.take(look, now=4.0), *queue.take(look, now=4.0)]  # seen once more, then stable for 0 s
    assert [(name, failures) for name, _, failures in again] == [("bad.png", 3)]


def _made(path: Path) -> Path:
    path.parent.mkdir(exist_ok=True)
    return path
