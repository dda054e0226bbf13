"""Masks as files when something is wrong: a plane, a disk, a name, another process."""

import errno
import io
import os
import socket
import threading
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from daemon.masks.mask_file import Version
from daemon.masks.plane_client import PlaneClient, PlaneUnavailable
from daemon.masks.writer import MaskWriter
from daemon.runtime.run_record import publish_record
from daemon.serving.errors import QueueFull
from daemon.serving.plane import InferencePlane
from daemon.watch.arrival import Arrival, read_arrival
from storage import durable
from storage.errors import DurabilityLost
from tests.daemon.masks.masks_world import Folders, masked, writing
from tests.daemon.serving.serving_world import (
    image_bytes,
    running,
    wait_until,
)


def test_of_two_processes_one_writes_and_the_other_takes_over(folders: Folders) -> None:
    settings = folders.settings()
    with masked(settings) as first:
        folders.put("a.png", 1)
        folders.wait_for("a.png")
        with writing(settings, first.served) as second:
            folders.put("b.png", 2)
            folders.wait_for("b.png")
            assert not second.report.active
            first.stop()
            wait_until(lambda: second.report.active, "the second takes over")
            folders.put("c.png", 3)
            folders.wait_for("c.png")
            wait_until(lambda: second.report.written == 1, "it counts the mask")
            assert first.report.written == 2


def test_what_a_kill_left_is_removed(folders: Folders) -> None:
    (folders.masks / "cam").mkdir(parents=True)
    left = folders.masks / "cam" / ".a.png.png.12345678.partial"
    left.write_bytes(b"half")
    theirs = folders.masks / "cam" / "notes.partial"
    theirs.write_text("somebody's own")
    folders.put("cam/a.png", 1)
    with masked(folders.settings()):
        folders.wait_for("cam/a.png")
        assert not left.exists()
        assert theirs.read_text() == "somebody's own"


def test_requests_are_answered_while_masks_are_made(folders: Folders) -> None:
    """One image at a time: a request waits for one of ours at the most."""
    for seed in range(40):
        folders.put(f"{seed}.png", seed)
    with masked(folders.settings()) as made:
        made.served.wait_for(1)
        answers: list[httpx.Response] = []
        while made.report.written < 40:
            answers.append(made.served.segment(image_bytes(seed=len(answers))))
            assert made.served.plane.batcher.depth <= 1
        assert answers and all(answer.status_code == 200 for answer in answers)
        for seed, answer in enumerate(answers):
            np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(answer.content))), folders.expected(1, seed))


def test_a_full_queue_makes_masks_wait_and_counts_nothing(folders: Folders) -> None:
    """The plane answers 503 with Retry-After: requests go first, and the mask comes afterwards."""
    refused = 0

    def busy(plane: InferencePlane) -> None:
        check = plane.batcher.check_room

        def full_at_first(*images: int) -> None:
            nonlocal refused
            if refused < 2:
                refused += 1
                raise QueueFull(plane.settings.serving.advanced.queue_images, 1)
            check(*images)

        plane.batcher.check_room = full_at_first

    folders.put("a.png", 1)
    with masked(folders.settings(), busy) as made:
        np.testing.assert_array_equal(folders.wait_for("a.png"), folders.expected(1, 1))
        assert refused == 2 and made.report.failed == made.report.refused == 0


def test_an_image_that_the_plane_never_answers_keeps_no_other_from_its_mask(folders: Folders) -> None:
    folders.put("old.png", 1)
    os.utime(folders.drop / "old.png", (1.0, 1.0))  # the newest come first
    folders.put("deadly.png", 2)
    deadly = (folders.drop / "deadly.png").read_bytes()
    ask = PlaneClient.mask

    def mask(client: PlaneClient, image: bytes, kind: str) -> tuple[bytes, Version]:
        if image == deadly:
            raise PlaneUnavailable("the connection was reset", 0.01, answered=False)
        return ask(client, image, kind)

    with pytest.MonkeyPatch.context() as patch, masked(folders.settings()) as made:
        patch.setattr(PlaneClient, "mask", mask)
        folders.wait_for("old.png")
        assert made.report.failed == 1


def test_a_plane_that_restarts_is_waited_for(folders: Folders) -> None:
    """A writer whose plane is gone waits, counts nothing and goes on when it is back."""
    settings = folders.settings()
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    stop = threading.Event()
    serving = settings.serving.model_copy(update={"port": port})
    with closing(PlaneClient(settings.model_copy(update={"serving": serving}))) as client:
        writer = MaskWriter(settings, client, stop)
        thread = threading.Thread(target=writer.run)
        thread.start()
        try:
            folders.put("a.png", 1)
            wait_until(lambda: writer.report.active, "the writer is ready")
            with running(settings) as served:
                publish_record(folders.world.layout, "serve", "127.0.0.1", served.client.base_url.port)
                folders.wait_for("a.png")
            assert writer.report.failed == 0
        finally:
            stop.set()
            thread.join(30)


def test_a_disk_that_lies_stops_masks_and_nothing_else(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[Path] = []

    write = durable.write_bytes

    def lost(path: Path, data: bytes, **options: int) -> None:
        if path.parent != folders.masks:
            return write(path, data, **options)
        tried.append(path)
        raise DurabilityLost(f"{path}: fsync failed")

    folders.put("a.png", 1)
    folders.put("b.png", 2)
    with masked(folders.settings()) as made:
        folders.wait_for("a.png")
        folders.wait_for("b.png")
        monkeypatch.setattr(durable, "write_bytes", lost)
        folders.put("c.png", 3)
        wait_until(lambda: not made.report.active, "masks stop")
        assert len(tried) == 1, "an fsync is never tried again"
        assert made.served.segment(image_bytes()).status_code == 200


def test_a_mask_whose_name_is_taken_or_too_long_keeps_no_other_from_its_own(folders: Folders) -> None:
    folders.put("old.png", 1)
    os.utime(folders.drop / "old.png", (1.0, 1.0))  # the newest come first, and these two are newer
    folders.put("a.png", 2)
    (folders.masks / "a.png.png" / "in the way").mkdir(parents=True)
    folders.put("n" * 240 + ".png", 3)
    with masked(folders.settings()) as made:
        folders.wait_for("old.png")
        assert made.report.failed == 2
        wait_until(lambda: made.report.pending == 0, "they are given up")


def test_a_mask_or_sub_folder_that_cannot_be_written_keeps_no_other_from_its_masks(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = durable.write_bytes

    def refuse(path: Path, data: bytes, **options: bool) -> None:
        if path.parent.name == "locked" or path == folders.mask("bad.png"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return write(path, data, **options)

    folders.put("old.png", 1)
    os.utime(folders.drop / "old.png", (1.0, 1.0))  # the newest come first
    for seed, name in enumerate(("locked/2.png", "locked/3.png", "bad.png"), 2):
        folders.put(name, seed)
    monkeypatch.setattr(durable, "write_bytes", refuse)
    with masked(folders.settings()) as made:
        folders.wait_for("old.png")
        assert made.report.failed >= 1
        monkeypatch.setattr(durable, "write_bytes", write)
        np.testing.assert_array_equal(folders.wait_for("locked/2.png"), folders.expected(1, 2))
        folders.wait_for("locked/3.png")
        folders.wait_for("bad.png")


def test_a_full_disk_lets_no_refused_file_be_asked_about_again(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, tries = durable.write_bytes, 0

    def full_at_first(path: Path, data: bytes, **options: bool) -> None:
        nonlocal tries
        tries += path == folders.mask("a.png")
        if path == folders.mask("a.png") and tries < 3:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return write(path, data, **options)

    (folders.drop / "bad.png").write_text("rubbish")
    with masked(folders.settings()) as made:
        wait_until(lambda: made.report.refused == 1, "it is refused")
        monkeypatch.setattr(durable, "write_bytes", full_at_first)
        folders.put("a.png", 1)
        folders.wait_for("a.png")
        assert (made.report.refused, made.report.failed) == (1, 2)


def test_a_file_that_the_disk_does_not_give_is_tried_at_each_walk_and_counted_once(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = 0

    def broken(root: Path, arrival: Arrival, max_bytes: int) -> bytes:
        nonlocal tries
        if arrival.path.name == "bad.png" and tries < 3:
            tries += 1
            raise OSError(errno.EIO, "Input/output error", str(arrival.path))
        return read_arrival(root, arrival, max_bytes)

    monkeypatch.setattr("daemon.masks.writer.read_arrival", broken)
    folders.put("bad.png", 1)
    with masked(folders.settings()) as made:
        folders.wait_for("bad.png")
        assert (tries, made.report.failed) == (3, 1)


class _OtherServer(BaseHTTPRequestHandler):
    """Another program on the plane's port."""

    asked = 0

    def do_GET(self) -> None:
        type(self).asked += 1
        self.send_error(404)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


def test_another_server_on_the_port_is_asked_rarely_and_ends_nothing(folders: Folders) -> None:
    settings = folders.settings()
    with HTTPServer(("127.0.0.1", 0), _OtherServer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        serving = settings.serving.model_copy(update={"port": server.server_port})
        with closing(PlaneClient(settings.model_copy(update={"serving": serving}))) as client:
            with pytest.raises(PlaneUnavailable, match="no inference plane answers there"):
                client.version()
            stop = threading.Event()
            thread = threading.Thread(target=MaskWriter(settings, client, stop).run)
            thread.start()
            wait_until(lambda: _OtherServer.asked >= 2, "the writer asks")
            assert not stop.wait(0.3) and _OtherServer.asked <= 3, "a plane that is not there is not asked without rest"
            assert thread.is_alive()
            stop.set()
            thread.join(30)
        server.shutdown()


def test_a_folder_that_cannot_be_written_is_tried_again(folders: Folders) -> None:
    folders.masks.write_text("a file is in the way")
    folders.put("a.png", 1)
    with masked(folders.settings()) as made:
        wait_until(lambda: made.report.failed >= 1, "it is counted")
        assert made.served.segment(image_bytes()).status_code in (200, 503)
        folders.masks.unlink()
        folders.wait_for("a.png")


def test_no_mask_is_written_while_a_link_leads_into_the_drop_folder(folders: Folders) -> None:
    real, own = folders.masks.with_name("real"), folders.drop / "own"
    for folder in (real, own):
        folder.mkdir()
    folders.masks.symlink_to(real)
    with masked(folders.settings()) as made:
        folders.put("a.png", 1)
        folders.wait_for("a.png")
        for target, name in ((own, "b.png"), (real, "c.png")):
            turning = folders.masks.with_name("turning")
            turning.symlink_to(target)
            turning.replace(folders.masks)
            folders.put(name, 2)
            if target == own:
                with pytest.raises(AssertionError):
                    wait_until(lambda: any(own.iterdir()), "a mask, or the lock, is written", seconds=0.5)
                assert not made.report.active
        folders.wait_for("c.png")
