"""Videos through real ingest: each frame once, the file known when all of it is, images beside it not held up."""

import os
import shutil
from dataclasses import replace

import numpy as np
import pytest

from daemon.ingest.refusals import Selection
from storage.buffer.compact import compact_buffer
from storage.buffer.frames import FrameBuffer
from storage.checking import check_state, repair_state
from storage.durable.digest import digest_in_video, digest_of
from tests.video_files import TOLERANCE, grey_of, make_video

pytest.importorskip("av")
LIMITS = {"max_file_bytes": 1000}
"""Smaller than any video here: their own limit holds for them."""


def state_of(world, name: str) -> tuple[str, str, str] | None:
    """State, reason and detail of a file."""
    with world.buffer.catalog.reading() as connection:
        row = connection.execute("SELECT state, reason, detail FROM files WHERE path = ?", (name,)).fetchone()
    return None if row is None else tuple(row)


def dealt_with(world, name: str) -> tuple[str, str, str]:
    return world.until(lambda: state_of(world, name))


def names(world) -> list[str]:
    return [record.name for record in world.buffer.records()]


def put(folder, name: str, content: bytes):
    """A video that comes whole."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    (folder / ".coming").write_bytes(content)
    return (folder / ".coming").rename(path)


def whole(world) -> None:
    """`mfmd check` finds nothing."""
    assert not check_state(world.buffer._layout, read_data=True)


def test_frames_of_a_video(bench, drop):
    content = make_video(35, created="2024-05-01T10:00:00.000000Z")
    put(drop, "cam/a.mp4", content)
    world = bench(watch=LIMITS)
    assert dealt_with(world, "cam/a.mp4") == ("committed", "", "")
    records = world.buffer.records()
    assert [record.name for record in records] == [f"cam/a.mp4#{second}s" for second in range(4)]
    assert [record.captured_at for record in records] == [1714557600.0 + second for second in range(4)]
    assert {record.source for record in records} == {"cam"}
    assert [record.digest for record in records] == [
        digest_in_video(digest_of(content), second * 1_000_000) for second in range(4)
    ]
    for number, record in enumerate(records):
        assert (record.valid_height, record.valid_width) == (29, 48)
        assert world.buffer.read(record)[:24].mean() == pytest.approx(grey_of(number * 10), abs=TOLERANCE)
    assert world.buffer.catalog.has_digest(digest_of(content))
    assert world.value("mfmd_ingest_files_total", outcome="stored") == 1
    assert world.value("mfmd_ingest_bytes_total") == len(content)
    whole(world)


def test_the_mtime_is_the_begin_where_the_file_says_nothing(bench, drop):
    path = put(drop, "a.mkv", make_video(12, container="matroska"))
    os.utime(path, (1_600_000_000, 1_600_000_000))
    world = bench(watch={"video_seconds": 0.5})
    dealt_with(world, "a.mkv")
    assert names(world) == ["a.mkv#0s", "a.mkv#0.5s", "a.mkv#1s"]
    assert [record.captured_at for record in world.buffer.records()] == [1.6e9, 1.6e9 + 0.5, 1.6e9 + 1]


def test_a_long_video_comes_in_groups_and_is_known_with_the_last(bench, drop, monkeypatch):
    put(drop, "a.mp4", make_video(50))
    groups = []
    real = FrameBuffer.append

    def append(self, frames, **how):
        groups.append((len(frames), len(how["videos"])))
        known.append(self.catalog.known_paths())
        return real(self, frames, **how)

    known: list[set[str]] = []
    monkeypatch.setattr(FrameBuffer, "append", append)
    world = bench(watch={"video_seconds": 0.1, "group_frames": 8, "group_seconds": 60.0})
    world.until(lambda: sum(size for size, _ in groups) >= 48)
    soon = world.settings.watch.model_copy(update={"group_seconds": 0.05})
    world.ingest.use(world.settings.model_copy(update={"watch": soon}))  # the last ones wait for more
    dealt_with(world, "a.mp4")
    assert world.counts.frames == 50
    assert max(size for size, _ in groups) <= 8 + 2, "a part of a video is a quarter of a group"
    assert [videos for _, videos in groups] == [0] * (len(groups) - 1) + [1]
    assert not set().union(*known), "the file is not known before its last frames are"
    whole(world)


def test_images_go_on_beside_a_long_video(bench, drop, write_image):
    put(drop, "a.mp4", make_video(1500, rate=30))
    world = bench(watch={"video_seconds": 30.0}, buffer={"capacity_frames": 64})
    world.until(lambda: world.counts.frames)
    for number in range(20):
        write_image(drop / f"{number}.png", number)
        world.until(lambda expected=number: f"{expected}.png" in names(world))
    dealt_with(world, "a.mp4")
    assert world.counts.frames == 22


def test_the_same_video_under_several_names(bench, drop):
    content = make_video(35)
    for name in ("a.mp4", "b.mp4", "north/c.mp4"):
        put(drop, name, content)
    world = bench(watch={"video_seconds": 0.1, "group_frames": 64})
    world.until(lambda: all(state_of(world, name) for name in ("a.mp4", "b.mp4", "north/c.mp4")))
    put(drop, "later.mp4", content)
    assert dealt_with(world, "later.mp4")[0] == "duplicate"
    states = [state_of(world, name)[0] for name in ("a.mp4", "b.mp4", "north/c.mp4")]
    assert sorted(states) == ["committed", "duplicate", "duplicate"]
    assert world.counts.frames == world.counts.committed_total == 35
    whole(world)


def test_a_stop_in_the_middle_goes_on_at_the_next_start(bench, drop):
    put(drop, "a.mp4", make_video(60))
    how = {"watch": {"video_seconds": 0.1, "group_frames": 4, "group_seconds": 0.0}}
    world = bench(**how)
    world.until(lambda: world.counts.frames >= 12)
    world.close()
    first = FrameBuffer.open(world.buffer._layout, world.settings.buffer, writable=False)
    before = first.records()
    assert not first.catalog.known_paths()
    first.close()
    assert 12 <= len(before) < 60
    again = bench(**how)
    assert dealt_with(again, "a.mp4") == ("committed", "", "")
    records = again.buffer.records()
    assert records[: len(before)] == before
    assert sorted(record.captured_at for record in records) == [record.captured_at for record in records]
    assert len({record.name for record in records}) == len(records) == again.counts.committed_total == 60
    whole(again)


def test_a_stop_between_the_last_frame_and_the_row(bench, drop):
    """Every frame is known, and the file is not: it needs no further frame."""
    content = make_video(25)
    put(drop, "a.mp4", content)
    world = bench()
    dealt_with(world, "a.mp4")
    with world.buffer.catalog.transaction() as connection:
        connection.execute("DELETE FROM files")
        connection.execute("DELETE FROM digests WHERE digest = ?", (digest_of(content),))
    world.close()
    again = bench()
    assert dealt_with(again, "a.mp4")[0] == "committed"
    assert again.counts.frames == again.counts.committed_total == 3
    whole(again)


def test_a_cut_off_video_is_taken_as_far_as_it_goes(bench, drop):
    content = make_video(60, container="matroska")
    put(drop, "cut.mkv", content[: len(content) // 2])
    put(drop, "index.mp4", make_video()[:1000])
    world = bench(watch={"quarantine": drop.parent / "quarantine"})
    state, reason, detail = dealt_with(world, "cut.mkv")
    assert (state, reason) == ("committed", "truncated")
    assert "of 6.0 s" in detail and f"{world.counts.frames} frames were taken" in detail
    assert 0 < world.counts.frames < 6
    assert dealt_with(world, "index.mp4")[:2] == ("refused", "truncated")
    assert (drop.parent / "quarantine" / "index.mp4").exists() and (drop / "cut.mkv").exists()
    frames = world.counts.frames
    put(drop, "cut.mkv", content)
    world.until(lambda: state_of(world, "cut.mkv") == ("committed", "", ""))
    assert world.counts.frames == frames + 6, "another file, so all of its frames"
    whole(world)


def test_refusals_and_another_chance(bench, drop, monkeypatch):
    monkeypatch.setattr("storage.media.videos.util.find_spec", lambda name: None)
    put(drop, "a.mp4", make_video())
    world = bench()
    assert dealt_with(world, "a.mp4")[:2] == ("refused", "needs_extra")
    assert "mfmd[video]" in state_of(world, "a.mp4")[2]
    monkeypatch.undo()
    assert world.ingest._retry(Selection(reason="needs_extra")) == ["a.mp4"]
    assert dealt_with(world, "a.mp4")[0] == "committed"
    assert world.counts.frames == 4


def test_limits_of_videos(bench, drop):
    put(drop, "fat.mp4", make_video(60, height=96, width=160))
    put(drop, "many.mp4", make_video(2, height=400, width=400))
    world = bench(watch={"max_video_bytes": 3000})
    assert dealt_with(world, "fat.mp4")[:2] == ("refused", "too_many_bytes")
    assert "watch.max_video_bytes is 3000" in state_of(world, "fat.mp4")[2]
    assert dealt_with(world, "many.mp4")[:2] == ("refused", "too_many_pixels")
    assert world.counts.frames == 0


def test_without_a_spacing_videos_are_not_looked_at(bench, drop, write_image):
    for name in ("a.mp4", "B.MKV", "c.mov"):
        put(drop, name, make_video())
    put(drop, "named.png", make_video())
    write_image(drop / "image.png", 1)
    world = bench(watch={"video_seconds": None})
    world.until(lambda: world.counts.frames == 1 and world.counts.refused == {"not_an_image": 1})
    assert world.buffer.catalog.known_paths() == {"image.png", "named.png"}
    world.until(lambda: world.activity.watch.pending == 0)


@pytest.mark.parametrize("after", ["move", "delete"])
def test_the_original_goes_after_the_last_frame(bench, drop, tmp_path, after):
    content = make_video(50)
    path = put(drop, "cam/a.mp4", content)
    more = {"done_folder": tmp_path / "done"} if after == "move" else {}
    world = bench(watch={"video_seconds": 0.1, "group_frames": 4, "after_commit": after, **more})
    world.until(lambda: world.counts.frames > 20)
    assert path.exists()
    world.until(lambda: not path.exists())
    assert world.counts.frames == 50
    assert state_of(world, "cam/a.mp4")[0] == "committed"
    assert after == "delete" or (tmp_path / "done" / "cam" / "a.mp4").read_bytes() == content


def test_admission_judges_every_frame(bench, drop):
    def still(seed: int) -> bytes:
        return make_video(30, container="matroska", codec="ffv1", still=seed)

    put(drop, "a.mkv", still(1))
    world = bench(admission={"near_duplicate_bits": 2})
    assert dealt_with(world, "a.mkv")[0] == "committed"
    assert names(world) == ["a.mkv#0s"]
    put(drop, "b.mkv", still(1)[:-1] + b"\x01")
    state, reason, detail = dealt_with(world, "b.mkv")
    assert (state, reason) == ("skipped", "near_duplicate")
    assert detail.startswith("all 3 frames")
    assert world.counts.frames == 1
    put(drop, "c.mkv", still(2))
    assert dealt_with(world, "c.mkv")[0] == "committed"
    assert names(world) == ["a.mkv#0s", "c.mkv#0s"]
    whole(world)


def test_spacing_in_time_holds_within_a_video(bench, drop):
    put(drop, "a.mp4", make_video(50))
    world = bench(watch={"video_seconds": 0.5}, admission={"min_spacing_seconds": 2.0})
    dealt_with(world, "a.mp4")
    assert names(world) == ["a.mp4#0s", "a.mp4#2s", "a.mp4#4s"]


def test_a_video_that_changes_while_it_is_decoded_is_taken_anew(bench, drop):
    path = put(drop, "a.mp4", make_video(300, height=96, width=160))
    world = bench(
        watch={"video_seconds": 0.1, "group_frames": 4, "group_seconds": 0.0}, buffer={"capacity_frames": 400}
    )
    world.until(lambda: world.counts.frames)
    before = world.counts.committed_total
    assert before < 300
    fresh = make_video(20, first=5)
    put(drop, "a.mp4", fresh)
    dealt_with(world, "a.mp4")
    digest = digest_of(fresh)
    assert path.read_bytes() == fresh and world.buffer.catalog.has_digest(digest)
    of_fresh = {digest_in_video(digest, number * 100_000) for number in range(20)}
    records = [record for record in world.buffer.records() if record.digest in of_fresh]
    assert len(records) == 20
    assert world.buffer.read(records[3])[:24].mean() == pytest.approx(grey_of(8), abs=TOLERANCE)
    assert not world.buffer.catalog.has_digest(digest_of(make_video(300, height=96, width=160)))
    whole(world)


def test_compact_keeps_it_known(bench, drop):
    content = make_video(35)
    path = put(drop, "a.mp4", content)
    world = bench()
    dealt_with(world, "a.mp4")
    world.close()
    layout, settings = world.buffer._layout, world.settings
    assert compact_buffer(layout, settings.buffer, settings.watch).files_forgotten == 0
    path.rename(drop / "b.mp4")
    assert compact_buffer(layout, settings.buffer, settings.watch).kept_because
    shutil.copy(drop / "b.mp4", path)
    again = bench()
    assert dealt_with(again, "b.mp4")[0] == "duplicate"
    assert again.counts.frames == again.counts.committed_total == 4


def test_a_frame_that_went_bad_is_taken_again_and_no_other(bench, drop):
    put(drop, "a.mp4", make_video(35))
    world = bench()
    dealt_with(world, "a.mp4")
    records = world.buffer.records()
    shard = world.buffer._array.shard_path(records[2].slot)
    world.close()
    shard.write_bytes(shard.read_bytes()[:-100] + bytes(100))
    layout = world.buffer._layout
    repair = repair_state(layout, read_data=True)
    assert len(repair.mended) == 1 and not repair.left
    again = bench()
    assert dealt_with(again, "a.mp4")[0] == "committed"
    found = again.buffer.records()
    assert found[:3] == [records[0], records[1], records[3]]
    taken = replace(found[3], id=0, slot=0, committed_at=0.0)
    assert taken == replace(records[2], id=0, slot=0, committed_at=0.0)
    assert np.abs(again.buffer.read(found[3])[:24].astype(int) - grey_of(20)).max() <= TOLERANCE
    whole(again)
