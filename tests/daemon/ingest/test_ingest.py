"""From file to committed frame: bad files cost one line each, a full disk costs a pause, memory stays bounded."""

import errno
import io
import os
import shutil
import struct
import zlib
from collections import namedtuple
from pathlib import Path
from threading import current_thread
from typing import BinaryIO

import numpy as np
import pytest
from PIL import Image

from daemon.ingest.decode import Decoder, RetryLater
from daemon.watch import arrival
from daemon.watch.arrival import FileChanged, find_arrival, read_arrival
from storage.buffer.catalog import Catalog
from storage.buffer.frames import FrameBuffer
from storage.buffer.pixel_array import PixelArray
from storage.durable.digest import digest_of
from storage.errors import BufferFull, DurabilityLost, RefusedImage
from storage.media.images import Fit, decode_image, decode_photo, fit_frame


def _huge_png(path: Path, width: int, height: int) -> None:
    """A PNG whose header promises width x height and whose data is nearly nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    )


def test_every_kind_of_bad_file_is_refused_with_its_reason_and_the_good_ones_go_on(bench, drop, write_image, caplog):
    caplog.set_level("INFO")
    content = write_image(drop / "good.png", 1).read_bytes()
    (drop / "truncated.png").write_bytes(content[: len(content) // 2])
    (drop / "empty.png").touch()
    (drop / "notes.txt").write_text("not an image")
    _huge_png(drop / "huge.png", 50_000, 50_000)
    (drop / "fat.png").write_bytes(content + bytes(400_000))
    (drop / "secret.png").symlink_to("/etc/passwd")
    (drop / "dangling.png").symlink_to(drop / "nowhere.png")
    (drop / "folder.png").symlink_to("/etc")
    world = bench()
    world.until(lambda: sum(world.counts.refused.values()) == 8 and world.counts.frames == 1)
    assert world.counts.refused == {
        "truncated": 1, "empty": 1, "not_an_image": 1, "too_many_pixels": 1, "too_many_bytes": 1, "outside_folder": 3,
    }  # fmt: skip
    details = {item.file.path: item.detail for item in world.buffer.catalog.refused()}
    assert "50000x50000 pixels" in details["huge.png"]
    assert "/etc/passwd" in details["secret.png"]
    for reason, count in world.counts.refused.items():
        assert world.value("mfmd_ingest_rejected_total", reason=reason) == count
    lines = [record.msg for record in caplog.records if isinstance(record.msg, dict)]
    digests = {line["file"]: line["digest"] for line in lines if line["event"] == "file_refused"}
    assert digests["truncated.png"] == digest_of(drop / "truncated.png")[:12]
    (committed,) = [line for line in lines if line["event"] == "frames_committed"]
    assert (committed["ids"], committed["digests"]) == ([1], [digest_of(content)[:12]])
    assert world.value("mfmd_ingest_files_total", outcome="rejected") == 8
    write_image(drop / "later.png", 2)
    world.until(lambda: world.counts.frames == 2)


def test_a_file_without_permission_is_refused_and_taken_once_it_has_one(bench, drop, write_image, monkeypatch):
    path = write_image(drop / "locked.png", 1)
    path.chmod(0)
    if os.geteuid() == 0:  # root may read everything: let the system call say what it says to others
        real = arrival._open

        def open_as_user(path: Path) -> BinaryIO:
            if not path.stat().st_mode & 0o444:
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return real(path)

        monkeypatch.setattr(arrival, "_open", open_as_user)
    world = bench()
    world.until(lambda: world.counts.refused == {"unreadable": 1})
    rescans = world.value("mfmd_watcher_rescans_total")
    world.until(lambda: world.value("mfmd_watcher_rescans_total") >= rescans + 3)
    assert world.value("mfmd_ingest_rejected_total", reason="unreadable") == 1, "not tried again while nothing changed"
    path.chmod(0o644)
    world.until(lambda: world.counts.frames == 1)
    assert world.counts.refused == {}


def test_a_file_that_opens_but_may_not_be_read_is_refused(bench, drop, write_image, monkeypatch):
    """Network file systems check the permission when the data is asked for."""
    write_image(drop / "locked.png", 1)

    class Guarded(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(arrival, "_open", lambda path: Guarded())
    world = bench()
    world.until(lambda: world.counts.refused == {"unreadable": 1})
    assert "chmod" in world.buffer.catalog.refused()[0].detail


def test_a_file_that_is_too_large_is_refused_unopened(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(b"abc")
    monkeypatch.setattr(arrival, "_open", None)
    with pytest.raises(RefusedImage) as refused:
        read_arrival(tmp_path, find_arrival(tmp_path, "a.png"), 2)
    assert refused.value.reason == "too_many_bytes"


def test_a_passing_read_error_is_tried_again(bench, drop, write_image, monkeypatch):
    write_image(drop / "a.png", 1)
    real, failures = arrival._open, [OSError(errno.EIO, "I/O error"), OSError(errno.ESTALE, "Stale file handle")]

    def flaky(path: Path) -> BinaryIO:
        if failures:
            raise failures.pop()
        return real(path)

    monkeypatch.setattr(arrival, "_open", flaky)
    monkeypatch.setattr("daemon.watch.arrival.RETRIES.__class__.delay", lambda self, failures: 0.05)
    world = bench()
    world.until(lambda: world.counts.frames == 1)
    assert world.value("mfmd_ingest_retries_total") == 2
    assert world.counts.refused == {}


def test_equal_content_is_stored_once_whatever_its_name(bench, drop, write_image):
    image = write_image(drop / "a.png", 1)
    (drop / "same_group.png").write_bytes(image.read_bytes())
    world = bench()
    world.until(lambda: world.counts.duplicates == 1)
    shutil.copy(image, drop / "later.png")
    (drop / "link.png").symlink_to(image)
    world.until(lambda: world.counts.duplicates == 3)
    assert world.counts.frames == 1
    assert world.value("mfmd_ingest_files_total", outcome="stored") == 1
    assert world.value("mfmd_ingest_files_total", outcome="duplicate") == 3


def test_frames_hold_what_the_image_showed(bench, drop):
    pixels = np.zeros((32, 40, 3), np.uint8)
    pixels[:, 20:] = (200, 100, 50)
    Image.fromarray(pixels).save(drop / "halves.png")
    world = bench()
    world.until(lambda: world.counts.frames == 1)
    record = world.buffer.records()[0]
    frame = world.buffer.read(record)
    assert (record.source_height, record.source_width, record.valid_height, record.valid_width) == (32, 40, 32, 40)
    assert tuple(frame[5, 35]) == (200, 100, 50)
    assert not frame[:, 40:].any()
    assert record.captured_at == pytest.approx((drop / "halves.png").stat().st_mtime)


def test_groups_are_committed_together(bench, drop, write_image, monkeypatch):
    for number in range(10):
        write_image(drop / f"{number}.png", number)
    sizes = []
    real = FrameBuffer.append

    def append(self, frames, **how):
        sizes.append(len(frames))
        return real(self, frames, **how)

    monkeypatch.setattr(FrameBuffer, "append", append)
    world = bench(watch={"advanced": {"group_frames": 4, "group_seconds": 0.3}})
    world.until(lambda: world.counts.frames == 10)
    assert sizes == [4, 4, 2]


def test_below_the_reserve_ingest_pauses_and_resumes_alone(bench, drop, write_image, monkeypatch):
    free = [10_000]
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("daemon.ingest.worker.shutil.disk_usage", lambda path: usage(0, 0, free[0]))
    monkeypatch.setattr("daemon.ingest.worker.PAUSE_SECONDS", 0.05)
    world = bench(buffer={"reserve_bytes": 1_000_000})
    write_image(drop / "a.png", 1)
    world.until(lambda: world.activity.ingest.state == "paused")
    assert "buffer.reserve_bytes" in world.activity.ingest.reason
    world.until(lambda: world.activity.watch.pending == 1)
    assert world.value("mfmd_ingest_paused") == 1
    assert world.counts.frames == 0
    free[0] = 2_000_000
    world.until(lambda: world.counts.frames == 1)
    assert world.activity.ingest.state == "running"
    assert world.value("mfmd_ingest_paused") == 0


@pytest.mark.parametrize("full", [OSError(errno.ENOSPC, "No space left on device"), BufferFull("every slot is leased")])
def test_a_commit_that_finds_no_room_is_repeated_and_nothing_is_lost(bench, drop, write_image, monkeypatch, full):
    for number in range(3):
        write_image(drop / f"{number}.png", number)
    real, attempts = FrameBuffer.append, []

    def append(self, frames, **how):
        attempts.append(len(frames))
        if len(attempts) < 3:
            raise full
        return real(self, frames, **how)

    monkeypatch.setattr(FrameBuffer, "append", append)
    monkeypatch.setattr("daemon.ingest.worker.PAUSE_SECONDS", 0.05)
    world = bench()
    world.until(lambda: world.activity.ingest.state == "paused")
    assert (full.strerror if isinstance(full, OSError) else str(full)) in world.activity.ingest.reason
    world.until(lambda: world.counts.frames == 3)
    world.until(lambda: world.activity.ingest.state == "running")


def test_a_refusal_that_finds_no_room_is_recorded_later(bench, drop, monkeypatch):
    (drop / "bad.png").write_bytes(b"rubbish")
    real, attempts = Catalog.note, []

    def refuse(self, *arguments):
        attempts.append(1)
        if len(attempts) < 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(self, *arguments)

    monkeypatch.setattr(Catalog, "note", refuse)
    world = bench()
    world.until(lambda: world.counts.refused == {"not_an_image": 1})
    assert world.value("mfmd_ingest_rejected_total", reason="not_an_image") == 1


def test_a_real_full_disk_pauses_ingest_and_loses_nothing(bench, drop, write_image, layout, monkeypatch):
    """/dev/full stands in for the disk: the kernel's own ENOSPC comes up from inside the commit."""
    real = FrameBuffer.append
    refused = []

    def append(self, frames, **how):
        if len(refused) < 2:
            refused.append(1)
            with Path("/dev/full").open("wb", buffering=0) as full:
                full.write(b"x")
        return real(self, frames, **how)

    monkeypatch.setattr(FrameBuffer, "append", append)
    monkeypatch.setattr("daemon.ingest.worker.PAUSE_SECONDS", 0.05)
    world = bench()
    write_image(drop / "a.png", 1)
    world.until(lambda: world.activity.ingest.state == "paused")
    assert "No space left on device" in world.activity.ingest.reason
    world.until(lambda: world.counts.frames == 1)


def test_a_lost_fsync_is_final(bench, drop, write_image, monkeypatch):
    def lose(self, frames, **how):
        raise DurabilityLost("fsync failed")

    monkeypatch.setattr(FrameBuffer, "append", lose)
    world = bench()
    write_image(drop / "a.png", 1)
    with pytest.raises(DurabilityLost):
        world.until(lambda: world.counts.frames == 1)
    world.ingest.batch.frames.clear()


def test_frames_held_by_a_round_keep_ingest_waiting_until_it_ends(bench, drop, write_image, monkeypatch):
    monkeypatch.setattr("daemon.ingest.worker.PAUSE_SECONDS", 0.05)
    world = bench(buffer={"capacity_frames": 2})
    for number in range(2):
        write_image(drop / f"{number}.png", number)
    world.until(lambda: world.counts.frames == 2)
    world.buffer.lease(1)
    write_image(drop / "new.png", 9)
    world.until(lambda: world.activity.ingest.state == "paused")
    assert "wait for the round to end" in world.activity.ingest.reason
    world.buffer.release(1)
    world.until(lambda: world.counts.committed_total == 3)
    assert world.counts.frames == 2


def test_memory_holds_one_group_however_many_files_wait(bench, drop, write_image, monkeypatch):
    for number in range(30):
        write_image(drop / f"{number}.png", number)

    def full(self, frames, **how):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(FrameBuffer, "append", full)
    monkeypatch.setattr("daemon.ingest.worker.PAUSE_SECONDS", 0.0)
    world = bench(watch={"advanced": {"group_frames": 5}})
    world.until(lambda: len(world.ingest.batch) == 5)
    for _ in range(20):
        world.ingest.step()
    assert len(world.ingest.batch) == 5
    assert world.activity.watch.pending == 30


def test_a_bug_in_a_decoder_costs_one_file(bench, drop, write_image, monkeypatch):
    real, calls = decode_photo, []

    def decode(data, **limits):
        calls.append(1)
        if len(calls) == 1:
            raise ZeroDivisionError("a bug")
        return real(data, **limits)

    monkeypatch.setattr("storage.media.images.decode_photo", decode)
    write_image(drop / "a.png", 1)
    write_image(drop / "b.png", 2)
    world = bench(watch={"advanced": {"decode_threads": 1}})
    world.until(lambda: world.counts.frames == 1 and world.counts.refused == {"not_an_image": 1})
    assert "ZeroDivisionError" in world.buffer.catalog.refused()[0].detail


def test_a_file_that_changes_after_it_was_read_is_taken_again(bench, drop, write_image):
    path = write_image(drop / "a.png", 1)
    world = bench(watch={"advanced": {"group_seconds": 0.5}})
    world.until(lambda: world.ingest.batch)
    write_image(path, 2)
    world.until(lambda: world.counts.frames == 2)
    digests = {record.digest for record in world.buffer.records()}
    assert digest_of(path) in digests


def test_names_that_are_no_text_are_taken(bench, drop, write_image):
    write_image(drop / "a.png", 1).rename(Path(os.fsdecode(os.fsencode(drop) + b"/caf\xe9.png")))
    world = bench()
    world.until(lambda: world.counts.frames == 1)
    assert world.buffer.records()[0].name == r"caf\xe9.png"
    rescans = world.value("mfmd_watcher_rescans_total")
    world.until(lambda: world.value("mfmd_watcher_rescans_total") >= rescans + 2)
    assert world.value("mfmd_ingest_files_total", outcome="stored") == 1


def test_what_is_decoded_is_committed_at_the_end(bench, drop, write_image, layout):
    write_image(drop / "a.png", 1)
    world = bench(watch={"advanced": {"group_seconds": 600}})
    world.until(lambda: world.ingest.batch)
    assert world.counts.frames == 0
    world.ingest.close()
    assert world.counts.frames == 1


def test_a_file_that_changes_while_it_is_read_is_left_for_later(drop, write_image, make_settings):
    path = write_image(drop / "a.png", 1)
    seen = find_arrival(drop, "a.png")
    path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(FileChanged):
        read_arrival(drop, seen, 10**6)
    path.unlink()
    with pytest.raises(FileChanged):
        read_arrival(drop, seen, 10**6)
    settings = make_settings()
    assert isinstance(Decoder(settings, lambda digest: False, None).decode(seen), RetryLater)


def test_a_file_that_became_a_pipe_does_not_block(drop, write_image):
    path = write_image(drop / "a.png", 1)
    seen = find_arrival(drop, "a.png")
    path.unlink()
    os.mkfifo(path)
    with pytest.raises((FileChanged, RefusedImage)):
        read_arrival(drop, seen, 10**6)


@pytest.mark.parametrize(("threads", "fit"), [(1, "aspect"), (2, "squash")])
def test_frames_are_packed_where_there_is_time_and_stored_alike(bench, drop, write_image, monkeypatch, threads, fit):
    packed_by, pack = list[str](), PixelArray.pack
    monkeypatch.setattr(
        PixelArray, "pack", lambda array, pixels: packed_by.append(current_thread().name) or pack(array, pixels)
    )
    paths = [write_image(drop / f"{number}.png", number) for number in range(4)]
    world = bench(watch={"advanced": {"decode_threads": threads}}, buffer={"advanced": {"fit": fit}})
    world.until(lambda: world.counts.frames == 4)
    decoders = [name for name in packed_by if name.startswith("decode")]
    assert len(packed_by) == 4 and len(decoders) == (0 if threads == 1 else 4)
    pixels = {record.digest: world.buffer.read(record) for record in world.buffer.records()}
    for path in paths:
        whole = decode_image(path, max_bytes=1 << 20, max_pixels=1 << 20)
        fitted = fit_frame(whole, *pixels[digest_of(path)].shape[:2], Fit(fit))
        assert np.array_equal(pixels[digest_of(path)], fitted.pixels)


def test_settings_of_a_reload_are_used_from_the_next_step_on(bench, make_settings, drop, write_image):
    slow = {"stability_seconds": 0.0, "advanced": {"group_seconds": 600.0, "rescan_seconds": 600.0}}
    world = bench(watch=slow)
    write_image(drop / "a.png", 1)
    world.until(lambda: len(world.ingest.batch) == 1)
    assert world.counts.frames == 0, "the group waits for more"
    world.ingest.use(make_settings(watch={**slow, "advanced": {"rescan_seconds": 600.0}}))
    world.until(lambda: world.counts.frames == 1)
    world.ingest.use(make_settings(buffer={"reserve_bytes": 10**18}))
    world.until(lambda: world.activity.ingest.state == "paused")
    world.ingest.use(make_settings())
    world.until(lambda: world.activity.ingest.state == "running")
    world.ingest.use(make_settings(watch={"stability_seconds": 600.0}))
    world.ingest.step()
    write_image(drop / "b.png", 2)
    world.until(lambda: world.activity.watch.pending == 1)
    for _ in range(20):
        world.ingest.step()
    assert world.counts.frames == 1, "it must stand still for long now"
