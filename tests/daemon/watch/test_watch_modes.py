"""How files are noticed, and when nothing may be taken: modes, the marker, patterns, files renamed into place."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from daemon.runtime.activity import MODES
from daemon.status.collect import collect_status
from daemon.watch.arrival import StabilityQueue, find_arrival
from daemon.watch.mode import choose_mode, is_silent
from daemon.watch.scan import FolderScan
from tests.sections import changed

LONG = 600.0
"""A delay that no test waits for (seconds)."""


@pytest.fixture
def on_mount(tmp_path: Path, monkeypatch):
    """Let the mount table say that the drop folder lies on this type of file system."""

    def use(kind: str) -> None:
        mounts = [
            SimpleNamespace(mountpoint="/", fstype="ext4"),
            SimpleNamespace(mountpoint=f"{tmp_path}/drop", fstype=kind),
        ]
        monkeypatch.setattr("psutil.disk_partitions", lambda all: mounts)

    return use


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "9p", "virtiofs", "fuse.sshfs", "fuse.anything"])
def test_auto_polls_where_no_events_come(bench, drop, write_image, on_mount, kind):
    on_mount(kind)
    world = bench()
    write_image(drop / "a.png", 1)
    world.until(lambda: world.counts.frames == 1)
    watch = world.activity.watch
    assert (watch.mode, watch.mode_reason, watch.file_system, watch.detail) == ("polling", "silent_mount", kind, "")
    assert world.value("mfmd_watcher_mode_info", mode="polling", reason="silent_mount") == 1
    assert world.value("mfmd_watcher_events_total") == 0
    write_image(drop / "b.png", 2)
    world.until(lambda: world.counts.frames == 2)
    assert world.wakes == 0, "nobody listens"


def test_polling_can_be_asked_for(bench, drop, write_image):
    world = bench(watch={"mode": "polling"})
    world.until(lambda: world.value("mfmd_watcher_mode_info", mode="polling", reason="configured") == 1)
    write_image(drop / "a.png", 1)
    world.until(lambda: world.counts.frames == 1)
    assert (world.value("mfmd_watcher_events_total"), world.wakes) == (0, 0)
    assert world.activity.watch.file_system


def test_events_on_a_silent_mount_are_tried_and_the_doubt_is_said(bench, on_mount):
    on_mount("nfs")
    world = bench(watch={"mode": "events"})
    world.until(lambda: world.activity.watch.state == "watching")
    watch = world.activity.watch
    assert (watch.mode, watch.mode_reason) == ("events", "configured")
    assert "nfs sends none" in watch.detail and "watch.mode: auto" in watch.detail


def test_a_folder_that_comes_back_on_another_file_system_is_watched_accordingly(bench, drop, write_image, on_mount):
    world = bench()
    world.until(lambda: world.activity.watch.mode == "events")
    drop.rename(drop.with_name("old"))
    on_mount("nfs4")
    write_image(drop / "a.png", 1)
    world.until(lambda: world.counts.frames == 1)
    assert (world.activity.watch.mode, world.activity.watch.mode_reason) == ("polling", "silent_mount")


def test_a_refused_watch_is_given_back_whole(bench, drop, monkeypatch):
    """Each attempt must let go of its inotify instance: a user has 128."""

    def instances() -> int:
        return sum("inotify" in str(item.readlink()) for item in Path("/proc/self/fd").iterdir() if item.is_symlink())

    def refuse(self, path):
        raise OSError(28, "inotify watch limit reached")

    monkeypatch.setattr("watchdog.observers.inotify.InotifyWatchGroup._add_all_callbacks", refuse)
    monkeypatch.setattr("daemon.watch.folder.OBSERVER_RETRY_SECONDS", 0.0)
    before = instances()
    world = bench()
    world.until(lambda: world.value("mfmd_watcher_restarts_total") >= 3)
    assert world.activity.watch.mode_reason == "refused"
    assert "inotify watch limit reached" in world.activity.watch.detail
    assert instances() == before


def test_the_kinds_of_file_systems():
    assert not any(map(is_silent, ("ext4", "xfs", "btrfs", "overlay", "tmpfs", "fuseblk", None)))
    assert all(map(is_silent, ("nfs", "smb3", "fuse", "fuse.rclone", "vboxsf")))


def test_every_choice_is_a_series_of_the_metric(tmp_path, on_mount):
    for kind in ("ext4", "nfs4"):
        on_mount(kind)
        for wanted in ("auto", "events", "polling"):
            chosen = choose_mode(wanted, tmp_path / "drop")
            assert (chosen.mode, chosen.mode_reason) in MODES
            assert chosen.file_system == kind


def test_without_its_marker_nothing_is_taken(bench, drop, write_image, make_settings):
    write_image(drop / "a.png", 1)
    watch = {"marker": "MOUNTED", "stability_seconds": 0.0}
    world = bench(watch=watch)
    world.until(lambda: world.activity.watch.state == "unmounted")
    assert "MOUNTED" in world.activity.watch.detail
    assert world.value("mfmd_watcher_state_info", state="unmounted") == 1
    assert world.value("mfmd_watcher_folder_present") == 0
    status = collect_status(make_settings(watch=watch))
    assert status.watch.state == "unmounted"
    assert any("MOUNTED" in message for message in status.messages)
    for _ in range(10):
        world.ingest.step()
    assert world.counts.frames == 0
    (drop / "MOUNTED").touch()
    world.until(lambda: world.counts.frames == 1)
    assert world.value("mfmd_watcher_state_info", state="watching") == 1
    assert world.counts.refused == {}, "the marker is no image"
    (drop / "MOUNTED").unlink()
    world.until(lambda: world.activity.watch.state == "unmounted")
    write_image(drop / "b.png", 2)
    for _ in range(10):
        world.ingest.step()
    assert world.counts.frames == 1
    (drop / "MOUNTED").touch()
    world.until(lambda: world.counts.frames == 2)


def test_patterns_choose_what_is_looked_at(make_settings, drop, write_image):
    names = ["a.PNG", "deep/b.png", "c.jpg", "notes.txt", "png"]
    for name in [*names, "d.png.part", "E.TMP", ".syncthing.x.png", "._a.png", "@EADIR/t.png", "THUMBS.DB"]:
        (drop / name).parent.mkdir(exist_ok=True)
        (drop / name).write_bytes(b"x")

    def seen(**watch: object) -> list[str]:
        scan = FolderScan(changed(make_settings().watch, **watch))
        found = sorted(scan.names(lambda name, error: None))
        heard = filter(None, (scan.relative(str(path)) for path in drop.rglob("*") if path.is_file()))
        assert sorted(heard) == found, "events and rescan look at the same files"
        return found

    assert seen() == sorted(names)
    assert seen(include=["*.png", "*.jp*g"]) == ["a.PNG", "c.jpg", "deep/b.png"]
    assert seen(recursive=False, include=["*.png"]) == ["a.PNG"]
    assert seen(include=["*.png"], ignore=["deep", ".*", "@*"]) == ["a.PNG"]


def test_a_file_renamed_into_the_folder_is_taken_at_once(bench, drop, write_image):
    world = bench(watch={"stability_seconds": LONG})
    world.until(lambda: world.activity.watch.mode == "events")
    write_image(drop / "written.png", 0)
    write_image(drop.parent / "outside.png", 1).rename(drop / "moved.png")
    world.until(lambda: world.counts.frames == 1)
    assert [record.name for record in world.buffer.records()] == ["moved.png"]
    whole = write_image(drop.parent / "x.png", 3).read_bytes()
    (drop / "inside.part").write_bytes(whole)
    (drop / "inside.part").rename(drop / "inside.png")
    world.until(lambda: world.counts.frames == 2)
    assert {record.name for record in world.buffer.records()} == {"moved.png", "inside.png"}
    world.until(lambda: world.activity.watch.pending == 1)  # what was written in place waits


def test_a_renamed_file_that_is_no_whole_image_gets_the_delay(bench, drop, write_image):
    world = bench(watch={"stability_seconds": 0.5})
    world.until(lambda: world.activity.watch.mode == "events")
    whole = write_image(drop.parent / "whole.png", 1).read_bytes()
    half = drop.parent / "half.png"
    half.write_bytes(whole[: len(whole) // 2])
    half.rename(drop / "a.png")
    world.until(lambda: world.value("mfmd_ingest_retries_total") == 1)
    assert world.counts.refused == {}
    with (drop / "a.png").open("ab") as file:  # the writer had not finished
        file.write(whole[len(whole) // 2 :])
    world.until(lambda: world.counts.frames == 1)
    assert world.counts.refused == {}


def test_a_renamed_file_that_stays_bad_is_refused_after_the_delay(bench, drop):
    world = bench()
    world.until(lambda: world.activity.watch.mode == "events")
    (drop.parent / "x").write_bytes(b"rubbish")
    (drop.parent / "x").rename(drop / "a.png")
    world.until(lambda: world.counts.refused == {"not_an_image": 1})
    world.until(lambda: world.activity.watch.pending == 0)


def test_another_image_of_the_same_size_and_time_that_is_renamed_over_it_is_a_new_frame(bench, drop):
    from PIL import Image

    def bitmap(path: Path, value: int) -> Path:
        Image.new("RGB", (40, 24), (value, value, value)).save(path)
        os.utime(path, (1e9, 1e9))
        return path

    world = bench()
    bitmap(drop / "a.bmp", 1)
    world.until(lambda: world.counts.frames == 1)
    bitmap(drop.parent / "b.bmp", 2).rename(drop / "a.bmp")
    world.until(lambda: world.counts.frames == 2)


def test_what_is_written_after_its_rename_is_not_whole(drop, write_image):
    queue = StabilityQueue(delay=1.0)
    for name in ("still.png", "written.png"):
        write_image(drop / name, 1)
        queue.note_renamed(name, find_arrival(drop, name), now=10.0)
    write_image(drop / "written.png", 2, height=30)

    def taken(now: float) -> list[tuple[str, bool]]:
        found = queue.take(lambda name: find_arrival(drop, name), now=now)
        return [(name, arrival.renamed_into_place) for name, arrival, _ in found]

    assert taken(10.0) == [("still.png", True)]
    assert taken(11.0) == [("written.png", False)]


def test_whole_files_do_not_starve_the_others(drop, write_image):
    queue = StabilityQueue(delay=1.0)
    for number, name in enumerate(("old.png", "new.png", "newer.png")):
        write_image(drop / name, number)
    queue.note("old.png", find_arrival(drop, "old.png"), now=10.0)
    queue.note_renamed("new.png", find_arrival(drop, "new.png"), now=11.5)
    queue.note_renamed("newer.png", find_arrival(drop, "newer.png"), now=11.6)
    taken = [name for name, _, _ in queue.take(lambda name: find_arrival(drop, name), now=12.0)]
    assert taken == ["old.png", "new.png", "newer.png"]
