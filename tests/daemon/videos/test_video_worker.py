"""Videos of the drop folder through the real worker and real ingest: each frame once, the video done after the last."""

import os
import time
from dataclasses import replace

import pytest

from daemon.ingest.refusals import Selection, retry_videos
from daemon.runtime.backoff import Backoff
from daemon.videos import frame_files
from daemon.videos.frame_files import frame_name, write_frames
from daemon.videos.worker import ATTEMPTS, VideoWorker
from storage.buffer.catalog_records import FileFact
from storage.buffer.video_records import VideoRecord, VideoRecords, read_video_records, refused_videos
from storage.checking.state import check_state, repair_state
from storage.durable.digest import digest_of
from tests.video_files import TOLERANCE, grey_of, make_video

pytest.importorskip("av")
LIMITS = {"max_file_bytes": 100_000}


class VideoWorld:
    """Ingest and the worker of videos, stepped in turn."""

    def __init__(self, bench, sections) -> None:
        self.bench = bench(**sections)
        self.worker = VideoWorker(self.bench.settings)
        self.folder = self.bench.settings.watch.folder

    def step(self) -> None:
        self.worker.step()
        self.bench.ingest.step()

    def until(self, condition):
        """Step both until `condition` holds."""
        return self.bench.until(lambda: self.worker.step() is not None and condition())

    def record(self, name: str) -> VideoRecord | None:
        """What became of a video; None while it is open."""
        found = read_video_records(self.bench.settings.state / "videos.jsonl").get(name)
        path = self.folder / name
        current = found is not None and (not os.path.lexists(path) or path.lstat().st_mtime_ns == found.mtime_ns)
        return found if current and found.state != "begun" else None

    def finished(self, name: str) -> VideoRecord:
        return self.until(lambda: self.record(name))

    @property
    def names(self) -> list[str]:
        return [record.name for record in self.bench.buffer.records()]

    def close(self) -> None:
        self.worker.close()
        self.bench.close()


@pytest.fixture
def videos(bench):
    """Makes worlds; each is closed at the end."""
    made: list[VideoWorld] = []

    def make(**sections) -> VideoWorld:
        sections = {"videos": {"seconds": 1.0}, **sections}
        made.append(VideoWorld(bench, sections))
        return made[-1]

    yield make
    for world in made:
        world.worker.close()


def put(folder, name: str, content: bytes):
    """A video that is renamed into place."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    (folder / ".coming").write_bytes(content)
    return (folder / ".coming").rename(path)


def images(folder) -> list[str]:
    return sorted(path.name for path in folder.rglob("*.png"))


def test_frames_of_a_video(videos, drop):
    content = make_video(35, created="2024-05-01T10:00:00.000000Z")
    put(drop, "cam/a.mp4", content)
    world = videos(watch=LIMITS)
    assert world.finished("cam/a.mp4").state == "committed"
    records = world.bench.buffer.records()
    digest = digest_of(content)
    assert [record.name for record in records] == [f"cam/{frame_name(digest, n * 10**6)}" for n in range(4)]
    assert [record.captured_at for record in records] == [1714557600.0 + second for second in range(4)]
    assert {record.source for record in records} == {"cam"}
    for number, record in enumerate(records):
        assert (record.valid_height, record.valid_width) == (29, 48)
        assert world.bench.buffer.read(record)[:24].mean() == pytest.approx(grey_of(number * 10), abs=TOLERANCE)
    assert images(drop) == [], "the files go once their frames are in the buffer"
    assert (drop / "cam" / "a.mp4").read_bytes() == content
    assert not check_state(world.bench.buffer._layout, read_data=True)


@pytest.mark.parametrize("order", [("exif", "name", "mtime"), ("name", "mtime"), ("mtime",)])
def test_capture_times_count_from_the_begin_of_the_video(videos, drop, order):
    path = put(drop, "a.mkv", make_video(12, container="matroska"))
    os.utime(path, (1_600_000_000, 1_600_000_000))
    world = videos(watch={"advanced": {"capture_time": order}}, videos={"seconds": 0.5})
    world.finished("a.mkv")
    assert [record.captured_at for record in world.bench.buffer.records()] == [1.6e9, 1.6e9 + 0.5, 1.6e9 + 1]
    assert {record.source for record in world.bench.buffer.records()} == {""}


def test_only_a_few_files_wait_for_ingest(videos, drop):
    put(drop, "a.mp4", make_video(50))
    world = videos(watch={"advanced": {"group_frames": 4}}, videos={"seconds": 0.1})
    deadline = time.monotonic() + 20
    while len(images(drop)) < 8 and time.monotonic() < deadline:
        world.worker.step()
    for _ in range(50):
        world.worker.step()
    assert len(images(drop)) == 8 and world.record("a.mp4") is None
    world.finished("a.mp4")
    assert world.bench.counts.frames == world.bench.counts.committed_total == 50


def test_the_same_video_under_another_name_is_a_duplicate(videos, drop):
    content = make_video(35)
    put(drop, "a.mp4", content)
    world = videos()
    world.finished("a.mp4")
    put(drop, "north/b.mp4", content)
    assert world.finished("north/b.mp4").state == "duplicate"
    assert world.bench.counts.committed_total == 4


def test_a_stop_in_the_middle_goes_on_at_the_next_start(videos, drop):
    put(drop, "a.mp4", make_video(60))
    how = {"watch": {"advanced": {"group_frames": 4, "group_seconds": 0.0}}, "videos": {"seconds": 0.1}}
    world = videos(**how)
    world.until(lambda: world.bench.counts.frames >= 12)
    world.close()
    again = videos(**how)
    before = again.bench.buffer.records()
    assert again.finished("a.mp4").state == "committed"
    records = again.bench.buffer.records()
    assert records[: len(before)] == before
    assert len({record.name for record in records}) == len(records) == again.bench.counts.committed_total == 60


def test_a_video_that_no_frame_file_is_left_of_is_finished_without_writing(videos, drop, monkeypatch):
    """As after a kill between the last frame and the record of the video."""
    put(drop, "a.mp4", make_video(25))
    world = videos()
    world.finished("a.mp4")
    world.close()
    (world.bench.settings.state / "videos.jsonl").unlink()
    again = videos()
    monkeypatch.setattr(frame_files, "write_frame", lambda *_: pytest.fail("a known frame was written again"))
    assert again.finished("a.mp4").state == "committed"
    assert again.bench.counts.committed_total == 3


def test_a_cut_off_video_is_taken_as_far_as_it_goes(videos, drop):
    content = make_video(60, container="matroska")
    put(drop, "cut.mkv", content[: len(content) // 2])
    put(drop, "index.mp4", make_video()[:1000])
    world = videos(watch={"quarantine": drop.parent / "quarantine"})
    cut, index = world.finished("cut.mkv"), world.finished("index.mp4")
    assert (cut.state, cut.reason) == ("committed", "truncated") and "of 6.0 s" in cut.detail
    assert 0 < world.bench.counts.frames < 6
    assert (index.state, index.reason) == ("refused", "truncated")
    assert (drop.parent / "quarantine" / "index.mp4").exists() and (drop / "cut.mkv").exists()
    assert [item.file.path for item in refused_videos(world.bench.settings.state / "videos.jsonl")] == ["index.mp4"]
    frames = world.bench.counts.frames
    put(drop, "cut.mkv", content)
    world.until(lambda: (found := world.record("cut.mkv")) and found.reason == "")
    assert world.bench.counts.frames == frames + 6, "another file, so all of its frames"


def test_refusals(videos, drop):
    put(drop, "fat.mp4", make_video(60, height=96, width=160))
    put(drop, "many.mp4", make_video(2, height=400, width=400))
    put(drop, "text.mp4", b"no video at all")
    put(drop, "empty.mp4", b"")
    (drop / "out.mp4").symlink_to("/etc/passwd")
    world = videos(videos={"max_bytes": 3000})
    expected = {
        "fat.mp4": "too_many_bytes", "many.mp4": "too_many_pixels", "text.mp4": "not_an_image", "empty.mp4": "empty",
        "out.mp4": "outside_folder",
    }  # fmt: skip
    assert {name: world.finished(name).reason for name in expected} == expected
    assert "videos.max_bytes is 3000" in world.record("fat.mp4").detail
    assert world.bench.counts.frames == 0 and images(drop) == []


def test_after_the_extra_was_installed_a_video_is_taken(videos, drop, monkeypatch):
    monkeypatch.setattr("storage.media.util.find_spec", lambda name: None)
    put(drop, "a.mp4", make_video())
    world = videos()
    refused = world.finished("a.mp4")
    assert (refused.state, refused.reason) == ("refused", "needs_extra") and "mfmd[video]" in refused.detail
    world.close()
    monkeypatch.undo()
    again = videos()
    again.until(lambda: (found := again.record("a.mp4")) and found.state == "committed")
    assert again.bench.counts.frames == 4


def test_a_refused_video_is_taken_again_by_hand(videos, drop, monkeypatch):
    monkeypatch.setattr("storage.media.util.find_spec", lambda name: None)
    content = make_video()
    put(drop, "cam/a.mp4", content)
    world = videos(watch={"quarantine": drop.parent / "aside"})
    world.finished("cam/a.mp4")
    assert not (drop / "cam" / "a.mp4").exists()
    monkeypatch.undo()
    watch, records = world.bench.settings.watch, world.bench.settings.state / "videos.jsonl"
    assert retry_videos(watch, records, Selection(reason="truncated")) == []
    assert retry_videos(watch, records, Selection()) == ["cam/a.mp4"]
    world.until(lambda: (found := world.record("cam/a.mp4")) and found.state == "committed")
    assert (drop / "cam" / "a.mp4").read_bytes() == content


def test_ingest_leaves_videos_alone_and_takes_what_is_only_named_like_an_image(bench, drop, write_image):
    for name in ("a.mp4", "B.MKV", "c.mov"):
        put(drop, name, make_video())
    put(drop, "named.png", make_video())
    write_image(drop / "image.png", 1)
    world = bench()
    world.until(lambda: world.counts.frames == 1 and world.counts.refused == {"not_an_image": 1})
    assert set(world.buffer.catalog.known_files()) == {"image.png", "named.png"}
    world.until(lambda: world.activity.watch.pending == 0)


@pytest.mark.parametrize("patterns", [{"advanced": {"include": ("*.mp4",)}}, {"ignore": ("*.png", ".*")}])
def test_patterns_for_videos_let_their_frames_in(videos, drop, write_image, patterns):
    put(drop, "a.mp4", make_video())
    write_image(drop / "image.png", 1)
    world = videos(watch=patterns)
    world.finished("a.mp4")
    assert world.bench.counts.frames == 4 and images(drop) == ["image.png"]


@pytest.mark.parametrize("after", ["move", "delete"])
def test_the_original_goes_after_the_last_frame(videos, drop, tmp_path, after):
    content = make_video(50)
    path = put(drop, "cam/a.mp4", content)
    more = {"done_folder": tmp_path / "done"} if after == "move" else {}
    world = videos(watch={"after_commit": after, **more, "advanced": {"group_frames": 4}}, videos={"seconds": 0.1})
    world.until(lambda: world.bench.counts.frames > 20)
    assert path.exists()
    world.until(lambda: not path.exists())
    assert world.bench.counts.frames == 50
    world.until(lambda: images(drop) == [])
    if after == "move":
        assert (tmp_path / "done" / "cam" / "a.mp4").read_bytes() == content
        assert len(images(tmp_path / "done")) == 50


def test_admission_judges_every_frame(videos, drop):
    put(drop, "a.mkv", make_video(30, container="matroska", codec="ffv1", still=1))
    world = videos(admission={"near_duplicate_bits": 2}, watch={"after_commit": "delete"})
    assert world.finished("a.mkv").state == "committed"
    assert world.bench.counts.frames == 1 and world.bench.counts.skipped == {"near_duplicate": 2}
    assert images(drop) == [], "skipped frames do not stay: the video was their original"


def test_a_video_that_changes_while_it_is_decoded_is_taken_anew(videos, drop):
    put(drop, "a.mp4", make_video(300, height=96, width=160))
    world = videos(watch={"advanced": {"group_frames": 4, "group_seconds": 0.0}}, videos={"seconds": 0.1})
    world.until(lambda: world.bench.counts.frames)
    assert world.bench.counts.committed_total < 300
    fresh = make_video(20, first=5)
    put(drop, "a.mp4", fresh)
    assert world.finished("a.mp4").digest == digest_of(fresh)
    wanted = {frame_name(digest_of(fresh), number * 100_000) for number in range(20)}
    records = {record.name: record for record in world.bench.buffer.records() if record.name in wanted}
    assert len(records) == 20
    third = records[frame_name(digest_of(fresh), 300_000)]
    assert world.bench.buffer.read(third)[:24].mean() == pytest.approx(grey_of(8), abs=TOLERANCE)


def test_a_video_that_kills_its_process_is_refused_after_a_few(videos, drop):
    path = put(drop, "a.mp4", make_video())
    world = videos()
    status = path.stat()
    file = FileFact("a.mp4", status.st_size, status.st_mtime_ns)
    VideoRecords(world.bench.settings.state / "videos.jsonl").add(file, "begun", attempts=ATTEMPTS - 1)
    world.worker = VideoWorker(world.bench.settings)
    world.until(lambda: world.worker._work is not None)
    world.worker.close()
    world.worker = VideoWorker(world.bench.settings)
    assert world.finished("a.mp4").state == "committed", "a clean stop is no death"
    VideoRecords(world.bench.settings.state / "videos.jsonl").add(file, "begun", attempts=ATTEMPTS)
    world.worker = VideoWorker(world.bench.settings)
    refused = world.finished("a.mp4")
    assert (refused.state, refused.reason) == ("refused", "not_an_image") and "crashed" in refused.detail


def test_a_full_disk_is_waited_for(videos, drop, monkeypatch):
    put(drop, "a.mp4", make_video())
    world, left, write = videos(), [2], frame_files.write_frame

    def fail(*arguments) -> None:
        if left[0]:
            left[0] -= 1
            raise OSError(28, "No space left on device")
        write(*arguments)

    monkeypatch.setattr(frame_files, "write_frame", fail)
    monkeypatch.setattr("daemon.watch.arrival.RETRIES", Backoff(base=0.0, cap=0.0))
    for _ in range(2):
        with pytest.raises(OSError, match="No space"):
            world.until(lambda: world.record("a.mp4"))
    assert world.finished("a.mp4").state == "committed"
    assert world.bench.counts.frames == 4


def test_a_frame_that_went_bad_comes_again_by_the_command(videos, drop):
    path = put(drop, "a.mp4", make_video(35))
    world = videos()
    world.finished("a.mp4")
    records = world.bench.buffer.records()
    shard = world.bench.buffer._array.shard_path(records[2].slot)
    world.close()
    shard.write_bytes(shard.read_bytes()[:-100] + bytes(100))
    layout = world.bench.buffer._layout
    assert len(repair_state(layout, read_data=True).repaired) == 1
    settings = world.bench.settings
    done = write_frames(path, drop, settings.videos, settings.watch)
    assert (done.written, done.there, done.damage) == (4, 0, "")
    again = videos()
    again.until(lambda: again.bench.counts.frames == 4 and again.bench.activity.watch.pending == 0)
    assert again.bench.counts.committed_total == 5, "the others are known"
    found = again.bench.buffer.records()
    assert found[:3] == [records[0], records[1], records[3]]
    same = {"id": 0, "slot": 0, "committed_at": 0.0}
    assert replace(found[3], **same) == replace(records[2], **same)
