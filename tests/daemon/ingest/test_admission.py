"""Which good images enter: near-duplicates and images too close in time are skipped, recorded, and stay skipped."""

import errno
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from configs.watch import AdmissionSettings
from daemon.ingest.admission import Admission
from storage.buffer.catalog import Catalog
from storage.buffer.catalog_records import SKIP_REASONS, FileFact
from storage.buffer.eviction_plan import blocks
from storage.buffer.frames import FrameBuffer, NewFrame
from storage.media.images import FittedFrame
from tests.sections import section


@pytest.fixture
def photo():
    """A smooth picture that follows from its number; noise alone would make every hash an accident."""

    def make(number: int) -> Image.Image:
        rng = np.random.default_rng(number)
        image = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8)).resize((80, 60), Image.Resampling.BICUBIC)
        return image.filter(ImageFilter.GaussianBlur(1))

    return make


@pytest.fixture
def still(photo):
    """The picture of a still camera: one scene, a little noise of its own."""

    def make(scene: int, number: int) -> Image.Image:
        noise = np.random.default_rng(1000 + number).integers(-3, 4, (60, 80, 3))
        return Image.fromarray(np.clip(np.asarray(photo(scene), int) + noise, 0, 255).astype(np.uint8))

    return make


def arrive(image: Image.Image, path: Path, at: float | None = None) -> Path:
    """Put a file there whole, under its final name, with this capture time (mtime)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    hidden = path.with_name(f".{path.name}")
    image.save(hidden, format="PNG")
    if at is not None:
        os.utime(hidden, (at, at))
    hidden.rename(path)
    return path


def skipped(world) -> dict[str, tuple[str, str]]:
    with world.buffer.catalog.reading() as connection:
        rows = connection.execute("SELECT path, reason, detail FROM files WHERE state = 'skipped'").fetchall()
    return {row["path"]: (row["reason"], row["detail"]) for row in rows}


def test_a_still_camera_is_stored_once_and_a_new_scene_again(bench, drop, still, layout):
    world = bench(admission={"near_duplicate_bits": 6})
    for number in range(5):
        arrive(still(1, number), drop / f"{number}.png")
    world.until(lambda: world.counts.skipped == {"near_duplicate": 4})
    arrive(still(2, 9), drop / "other.png")
    world.until(lambda: world.counts.frames == 2)
    names = {record.name for record in world.buffer.records()}
    for path, (reason, detail) in skipped(world).items():
        assert reason == "near_duplicate"
        assert any(name in detail for name in names), f"{path}: {detail} names a frame that was committed"
        assert "admission.near_duplicate_bits is 6" in detail
    assert world.value("mfmd_ingest_files_total", outcome="skipped") == 4
    assert world.value("mfmd_ingest_skipped_total", reason="near_duplicate") == 4
    assert world.value("mfmd_ingest_files_total", outcome="stored") == 2


def test_skipped_files_are_known_after_a_restart_and_the_filter_remembers(bench, drop, still):
    first = bench(admission={"near_duplicate_bits": 6})
    arrive(still(1, 0), drop / "a.png")
    first.until(lambda: first.counts.frames == 1)
    arrive(still(1, 1), drop / "b.png")
    first.until(lambda: first.counts.skipped == {"near_duplicate": 1})
    assert "a.png (frame 1)" in skipped(first)["b.png"][1]
    first.close()
    second = bench(admission={"near_duplicate_bits": 6})
    arrive(still(1, 2), drop / "c.png")
    second.until(lambda: second.counts.skipped == {"near_duplicate": 2})
    assert second.value("mfmd_ingest_skipped_total", reason="near_duplicate") == 1, "b.png was not looked at again"
    shutil.copy(drop / "b.png", drop / "b_again.png")  # only its file row remembers a skipped image
    second.until(lambda: second.counts.skipped == {"near_duplicate": 3})
    shutil.copy(drop / "a.png", drop / "a_again.png")
    second.until(lambda: second.counts.duplicates == 1)


def test_the_original_of_a_skipped_image_is_never_deleted(bench, drop, still):
    world = bench(watch={"after_commit": "delete"}, admission={"near_duplicate_bits": 6})
    arrive(still(1, 0), drop / "a.png")
    world.until(lambda: world.counts.frames == 1 and not (drop / "a.png").exists())
    arrive(still(1, 1), drop / "b.png")
    world.until(lambda: world.counts.skipped == {"near_duplicate": 1})
    world.ingest._originals._next_sweep = 0.0  # as after a restart
    world.until(lambda: world.ingest._originals._next_sweep and world.ingest._originals._sweeping is None)
    assert (drop / "b.png").exists()


def test_each_camera_has_its_own_filter(bench, drop, still):
    world = bench(admission={"near_duplicate_bits": 6})
    for camera in ("left", "right"):
        for number in range(3):
            arrive(still(1, number + 10 * (camera == "left")), drop / camera / f"{number}.png")
    world.until(lambda: world.counts.skipped == {"near_duplicate": 4})
    assert sorted(record.source for record in world.buffer.records()) == ["left", "right"]


def test_images_too_close_in_time_are_skipped_whatever_their_order(bench, drop, photo):
    world = bench(admission={"min_spacing_seconds": 10})
    arrive(photo(1), drop / "middle.png", at=1_700_000_000)
    world.until(lambda: world.counts.frames == 1)
    for name, at in {
        "just_after": 1_700_000_009,
        "just_before": 1_699_999_991,
        "after": 1_700_000_010,
        "before": 1_699_999_990,
    }.items():
        arrive(photo(at), drop / f"{name}.png", at=at)
    arrive(photo(7), drop / "other" / "camera.png", at=1_700_000_001)
    world.until(lambda: world.counts.frames + sum(world.counts.skipped.values()) == 6)
    assert {record.name for record in world.buffer.records()} == {
        "middle.png", "after.png", "before.png", "other/camera.png",
    }  # fmt: skip
    assert {path: reason for path, (reason, _) in skipped(world).items()} == {
        "just_after.png": "too_close", "just_before.png": "too_close",
    }  # fmt: skip
    assert "admission.min_spacing_seconds is 10" in skipped(world)["just_after.png"][1]


def test_without_settings_everything_enters(bench, drop, still):
    world = bench()
    for number in range(4):
        arrive(still(1, number), drop / f"{number}.png", at=1_700_000_000)
    world.until(lambda: world.counts.frames == 4)
    assert world.counts.skipped == {}


def test_a_file_is_skipped_only_once_the_frame_it_is_near_to_is_committed(bench, drop, still, monkeypatch):
    """Otherwise a crash, and the other file's disappearance, could lose both."""
    real, full = FrameBuffer.append, [True]

    def append(self, frames, **how):
        if full[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(self, frames, **how)

    monkeypatch.setattr(FrameBuffer, "append", append)
    monkeypatch.setattr("daemon.ingest.worker.PAUSE_SECONDS", 0.01)
    world = bench(admission={"near_duplicate_bits": 6})
    for number in range(4):
        arrive(still(1, number), drop / f"{number}.png")
    world.until(lambda: len(world.ingest.batch.skipped) == 3)
    for _ in range(5):
        world.ingest.step()
    assert world.counts.skipped == {} and world.activity.watch.pending == 4
    full[0] = False
    world.until(lambda: world.counts.skipped == {"near_duplicate": 3})
    assert world.counts.frames == 1


def test_files_waiting_to_be_skipped_count_as_room_of_the_group(bench, drop, still, monkeypatch):
    def full(self, frames, **how):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(FrameBuffer, "append", full)
    monkeypatch.setattr("daemon.ingest.worker.PAUSE_SECONDS", 0.0)
    world = bench(watch={"advanced": {"group_frames": 5}}, admission={"near_duplicate_bits": 6})
    for number in range(20):
        arrive(still(1, number), drop / f"{number}.png")
    world.until(lambda: len(world.ingest.batch) == 5)
    for _ in range(20):
        world.ingest.step()
    assert len(world.ingest.batch) == 5


def test_a_skip_that_finds_no_room_is_recorded_later(bench, drop, still, monkeypatch):
    real, attempts = Catalog.note, []

    def skip(self, *arguments):
        attempts.append(1)
        if len(attempts) < 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(self, *arguments)

    monkeypatch.setattr(Catalog, "note", skip)
    monkeypatch.setattr("daemon.ingest.worker.PAUSE_SECONDS", 0.01)
    world = bench(admission={"near_duplicate_bits": 6})
    for number in range(2):
        arrive(still(1, number), drop / f"{number}.png")
    world.until(lambda: world.counts.skipped == {"near_duplicate": 1})
    assert world.value("mfmd_ingest_skipped_total", reason="near_duplicate") == 1


def bytes_of(buffer: FrameBuffer) -> int:
    """Size of the frames' files, as `mfmd buffer info` shows it."""
    folder = buffer.catalog.path.parent / "frames.zarr" / "frames"
    return sum(blocks(path.stat().st_size) for path in folder.glob("c.*"))


def test_below_the_reserve_new_frames_replace_old_ones_and_below_half_ingest_pauses(bench, drop, photo, monkeypatch):
    reserve, free = 1_000_000, [2_000_000]
    monkeypatch.setattr("daemon.ingest.worker.shutil.disk_usage", lambda path: type("Usage", (), {"free": free[0]}))
    monkeypatch.setattr("daemon.ingest.worker.PAUSE_SECONDS", 0.01)
    world = bench(buffer={"reserve_bytes": reserve})
    for number in range(6):
        arrive(photo(number), drop / f"{number}.png")
    world.until(lambda: world.counts.frames == 6)
    size = bytes_of(world.buffer)
    free[0] = 600_000
    for number in range(6, 10):
        arrive(photo(number), drop / f"{number}.png")
    world.until(lambda: world.counts.committed_total == 10)
    assert bytes_of(world.buffer) <= size
    assert world.activity.ingest.state == "running"
    free[0] = 400_000
    arrive(photo(10), drop / "10.png")
    world.until(lambda: world.activity.ingest.state == "paused")
    assert world.counts.committed_total == 10
    free[0] = 2_000_000
    world.until(lambda: world.counts.committed_total == 11)
    assert bytes_of(world.buffer) > size


def test_frames_that_the_reservoir_does_not_keep_are_counted_apart(bench, drop, photo):
    world = bench(buffer={"capacity_frames": 4, "eviction": "reservoir"})
    for number in range(20):
        arrive(photo(number), drop / f"{number}.png")
    world.until(lambda: world.counts.committed_total == 20)
    stored = world.value("mfmd_ingest_files_total", outcome="stored")
    left = world.value("mfmd_ingest_files_total", outcome="not_kept")
    assert stored + left == 20 and left > 0
    assert world.counts.frames == 4


def frame(name: str, phash: str = "", source: str = "", at: float = 0.0) -> NewFrame:
    pixels = FittedFrame(np.zeros((32, 48, 3), np.uint8), 32, 48)
    return NewFrame(FileFact(name, 1, 1), f"{hash(name) & 2**64 - 1:064x}", at, 32, 48, pixels, source, phash)


@pytest.fixture
def judge(bench):
    world = bench()

    def make(**settings) -> Admission:
        return Admission(section(AdmissionSettings, **settings), world.buffer.catalog)

    return make


@pytest.mark.parametrize(
    ("bits", "limit", "reason"), [(0, 0, SKIP_REASONS[0]), (1, 0, None), (5, 5, SKIP_REASONS[0]), (6, 5, None)]
)
def test_the_limit_is_the_largest_distance_that_is_skipped(judge, bits, limit, reason):
    new, old = frame("new", f"{2**bits - 1:016x}"), frame("old", "0" * 16)
    skip = judge(near_duplicate_bits=limit).judge(new, [old])
    assert (skip.reason if skip else None) == reason
    assert skip is None or (skip.pending and f"{bits} of 64 bits from old" in skip.detail)


def test_only_the_newest_frames_are_compared_with(judge):
    pending = [frame("old", "0" * 16), frame("a", "f" * 16), frame("b", "f" * 16)]
    assert judge(near_duplicate_bits=2, near_duplicate_recent=3).judge(frame("new", "0" * 16), pending)
    assert judge(near_duplicate_bits=2, near_duplicate_recent=2).judge(frame("new", "0" * 16), pending) is None


def test_known_content_is_left_to_the_commit_which_calls_it_a_duplicate(judge):
    old = frame("old", "0" * 16)
    again = replace(old, file=FileFact("again", 1, 1))
    assert judge(near_duplicate_bits=2).judge(again, [old]) is None


def test_frames_without_a_hash_are_not_compared(judge):
    assert judge(near_duplicate_bits=64).judge(frame("new"), [frame("old", "0" * 16)]) is None
    assert judge(near_duplicate_bits=64).judge(frame("new", "0" * 16), [frame("old")]) is None
