"""Masks as files: one for each image, once, whole, again only when asked for, made by a client of a real plane."""

import errno
import io
import os
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from adapters.inference.palette import colour_mask, overlay
from adapters.inference.segment import segment_image
from configs.class_list import ClassInfo
from configs.errors import ConfigError
from configs.settings import Settings
from daemon.masks.mask_file import Version, check_masks, mask_path, read_note
from daemon.masks.plane_client import PlaneClient, PlaneUnavailable
from daemon.masks.report import MaskReport
from daemon.masks.writer import MaskWriter, run_masks
from daemon.runtime.run_record import publish_record
from daemon.serving.errors import QueueFull
from daemon.serving.plane import InferencePlane
from storage import durable
from storage.errors import DurabilityLost
from tests.daemon.serving.serving_world import (
    CLASSES,
    HEIGHT,
    WIDTH,
    Served,
    World,
    image_bytes,
    picture,
    running,
    settings_for,
    wait_until,
)


class Folders:
    """A drop folder, a folder for masks, and the settings that join them."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.drop, self.masks = world.root / "drop", world.root / "masks"
        self.drop.mkdir()

    def settings(self, *, stability: float = 0.0, **masks: object) -> Settings:
        watch = {"folder": self.drop, "stability_seconds": stability, "advanced": {"rescan_seconds": 0.05}}
        return settings_for(self.world.layout.root, watch=watch, masks={"folder": self.masks, **masks})

    def put(self, name: str, seed: int, height: int = HEIGHT, width: int = WIDTH) -> None:
        """An image under `name`, renamed into place."""
        path = self.drop / name
        path.parent.mkdir(parents=True, exist_ok=True)
        hidden = path.with_name(f".{path.name}")
        hidden.write_bytes(image_bytes(height, width, seed))
        hidden.rename(path)

    def mask(self, name: str) -> Path:
        return mask_path(self.masks, name)

    def wait_for(self, name: str, version: int | None = None) -> np.ndarray:
        """The mask of an image, once it is there (and made by `version`)."""

        def there() -> bool:
            note = read_note(self.mask(name))
            return note is not None and version in (None, note.version)

        wait_until(there, f"the mask of {name} is written")
        with Image.open(self.mask(name)) as image:
            return np.asarray(image)

    def expected(self, version: int, seed: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
        return segment_image(self.world.networks[version], picture(height, width, seed), (HEIGHT, WIDTH))


@pytest.fixture
def folders(world: World) -> Folders:
    world.add(1)
    return Folders(world)


class Masked:
    """A plane that serves, and a writer of masks that asks it over HTTP."""

    def __init__(self, served: Served, writer: MaskWriter, stop: threading.Event) -> None:
        self.served, self._writer, self._stop = served, writer, stop

    @property
    def report(self) -> MaskReport:
        return self._writer.report

    def stop(self) -> None:
        """Let the writer end; the plane serves on."""
        self._stop.set()


@contextmanager
def writing(settings: Settings, served: Served) -> Iterator[Masked]:
    """A writer in a thread beside a plane that runs; an fsync error ends it."""
    serving = settings.serving.model_copy(update={"port": served.client.base_url.port})
    stop = threading.Event()
    with closing(PlaneClient(settings.model_copy(update={"serving": serving}))) as client:
        writer = MaskWriter(settings, client, stop)

        def run() -> None:
            with suppress(DurabilityLost):
                writer.run()

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield Masked(served, writer, stop)
        finally:
            stop.set()
            thread.join(30)
            assert not thread.is_alive()


@contextmanager
def masked(settings: Settings, prepare: Callable[[InferencePlane], None] = lambda plane: None) -> Iterator[Masked]:
    """A plane and a writer."""
    with running(settings, prepare) as served, writing(settings, served) as both:
        yield both


def test_every_image_gets_its_mask_in_the_same_sub_folder(folders: Folders) -> None:
    names = ["a.png", "cam/b.png", "cam/deep/c d é.png"]
    for seed, name in enumerate(names):
        folders.put(name, seed, 50 + 10 * seed, 70)
    with masked(folders.settings()) as made:
        for seed, name in enumerate(names):
            np.testing.assert_array_equal(folders.wait_for(name), folders.expected(1, seed, 50 + 10 * seed, 70))
        folders.put("late.png", 9)
        np.testing.assert_array_equal(folders.wait_for("late.png"), folders.expected(1, 9))
        wait_until(lambda: made.report.pending == 0, "nothing waits")
        assert made.report.written == 4
        assert made.report.active and made.report.folder_present
        assert made.report.last_written > 0
    files = sorted(path.relative_to(folders.masks).as_posix() for path in folders.masks.rglob("*") if path.is_file())
    assert files == [".mfmd-masks.lock", "a.png.png", "cam/b.png.png", "cam/deep/c d é.png.png", "late.png.png"]


def test_images_of_one_stem_get_a_mask_each(folders: Folders) -> None:
    folders.put("a.png", 1)
    folders.put("a.jpg", 2)  # a PNG by content; names decide nothing
    with masked(folders.settings()):
        np.testing.assert_array_equal(folders.wait_for("a.png"), folders.expected(1, 1))
        np.testing.assert_array_equal(folders.wait_for("a.jpg"), folders.expected(1, 2))


@pytest.mark.parametrize("kind", ["color", "overlay"])
def test_masks_in_colour_and_over_the_image(folders: Folders, kind: str) -> None:
    folders.put("a.png", 3)
    labels, classes = folders.expected(1, 3), [ClassInfo.model_validate(entry) for entry in CLASSES]
    wanted = colour_mask(labels, classes) if kind == "color" else overlay(picture(seed=3), labels, classes)
    with masked(folders.settings(kind=kind)):
        np.testing.assert_array_equal(folders.wait_for("a.png"), wanted)


def test_a_restart_does_nothing_again_but_what_changed(folders: Folders) -> None:
    for seed in range(3):
        folders.put(f"{seed}.png", seed)
    with masked(folders.settings()):
        for seed in range(3):
            folders.wait_for(f"{seed}.png")
    before = {name: folders.mask(name).stat().st_ino for name in ("0.png", "1.png", "2.png")}
    folders.put("1.png", 11)
    folders.mask("2.png").unlink()
    folders.world.add(2)  # another version: no reason, as `masks.again` is off
    with masked(folders.settings()) as made:
        wait_until(lambda: made.report.written == 2, "the changed image and the missing mask")
        folders.put("new.png", 5)
        folders.wait_for("new.png", version=2)
        assert made.report.written == 3, "nothing else was done"
    assert folders.mask("0.png").stat().st_ino == before["0.png"]
    np.testing.assert_array_equal(folders.wait_for("1.png"), folders.expected(2, 11))
    with masked(folders.settings(kind="color")) as made:
        wait_until(lambda: made.report.written == 4, "another kind is another mask")


def test_another_version_makes_them_anew_when_asked_to(folders: Folders) -> None:
    for seed in range(3):
        folders.put(f"{seed}.png", seed)
    with masked(folders.settings(again=True)) as made:
        for seed in range(3):
            folders.wait_for(f"{seed}.png", version=1)
        version = folders.world.add(2)
        for seed in range(3):
            mask = folders.wait_for(f"{seed}.png", version=version)
            np.testing.assert_array_equal(mask, folders.expected(version, seed))
        wait_until(lambda: made.report.pending == 0, "nothing waits")
        assert made.report.written == 6


def test_what_is_no_image_is_skipped_and_counted_once(folders: Folders) -> None:
    (folders.drop / "bad.png").write_text("rubbish")
    (folders.drop / "empty.png").write_bytes(b"")
    (folders.drop / "cut.png").write_bytes(image_bytes()[:300])
    (folders.drop / "outside.png").symlink_to("/etc/passwd")
    (folders.drop / "half.part").write_bytes(b"")
    folders.put("good.png", 1)
    with masked(folders.settings()) as made:
        folders.wait_for("good.png")
        wait_until(lambda: made.report.refused == 4, "all four are refused")
        folders.put("later.png", 2)  # several walks later they are still counted once
        folders.wait_for("later.png")
        assert made.report.refused == 4
        folders.put("bad.png", 4)
        np.testing.assert_array_equal(folders.wait_for("bad.png"), folders.expected(1, 4))
        assert not folders.mask("cut.png").exists() and not folders.mask("half.part").exists()


def test_a_file_that_still_grows_is_left_alone(folders: Folders) -> None:
    future = 4e9  # its clock is no help: stands still is what we see
    content = image_bytes(seed=6)
    (folders.drop / "slow.png").write_bytes(content[:200])
    os.utime(folders.drop / "slow.png", (future, future))
    with masked(folders.settings(stability=0.6)) as made:
        wait_until(lambda: made.report.pending == 1, "it is seen")
        (folders.drop / "slow.png").write_bytes(content)
        os.utime(folders.drop / "slow.png", (future, future))
        np.testing.assert_array_equal(folders.wait_for("slow.png"), folders.expected(1, 6))
        assert made.report.refused == 0


def test_the_drop_folder_may_come_and_go(folders: Folders) -> None:
    folders.drop.rmdir()
    with masked(folders.settings()) as made:
        wait_until(lambda: made.report.active, "the writer is ready")
        assert not made.report.folder_present
        folders.drop.mkdir()
        folders.put("a.png", 1)
        folders.wait_for("a.png")
        shutil.rmtree(folders.drop)
        wait_until(lambda: not made.report.folder_present, "it is missed")
        assert folders.mask("a.png").exists(), "masks stay"
        assert made.served.segment(image_bytes()).status_code == 200
        folders.drop.mkdir()
        folders.put("b.png", 2)
        folders.wait_for("b.png")


def test_masks_wait_for_the_first_version(world: World) -> None:
    folders = Folders(world)
    folders.put("a.png", 1)
    with masked(folders.settings()) as made:
        wait_until(lambda: made.report.active, "the writer is ready")
        version = world.add(1)
        folders.wait_for("a.png", version=version)


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


@pytest.mark.parametrize("place", ["drop", "drop/masks", "state/masks", "."])
def test_masks_do_not_go_where_they_would_be_taken_for_images(folders: Folders, place: str) -> None:
    settings = folders.settings()
    wrong = settings.model_copy(
        update={"masks": settings.masks.model_copy(update={"folder": folders.world.root / place})}
    )
    with pytest.raises(ConfigError, match=r"masks\.folder: .* contain each other"):
        run_masks(wrong)
    check_masks(settings)


def test_images_that_leave_get_no_masks(folders: Folders) -> None:
    settings = folders.settings()
    watch = settings.watch.model_copy(update={"after_commit": "delete"})
    with pytest.raises(ConfigError, match=r"watch\.after_commit is delete"):
        check_masks(settings.model_copy(update={"watch": watch}))


def test_a_file_that_is_not_ours_has_no_note(tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    assert read_note(path) is None
    for content in (b"", b"rubbish", image_bytes(), b"\x89PNG\r\n\x1a\n\x00\x00"):
        path.write_bytes(content)
        assert read_note(path) is None
