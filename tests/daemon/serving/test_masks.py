"""Masks as files: one for every image, once, whole, again only when asked for, and never in the way of requests."""

import io
import os
import shutil
import threading
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from adapters.inference.segment import segment_image
from adapters.palette import colour_mask, overlay
from configs.class_list import ClassInfo
from configs.errors import ConfigError
from configs.settings import Settings
from daemon.masks.folder import check_masks
from daemon.serving.mask_file import mask_path, read_note
from daemon.serving.plane import InferencePlane
from daemon.serving.server import serve
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
        watch = {"folder": self.drop, "stability_seconds": stability, "rescan_seconds": 0.05}
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


def written(served: Served) -> float:
    return served.metric("mfmd_masks_total", result="written")


def test_every_image_gets_its_mask_in_the_same_sub_folder(folders: Folders) -> None:
    names = ["a.png", "cam/b.png", "cam/deep/c d é.png"]
    for seed, name in enumerate(names):
        folders.put(name, seed, 50 + 10 * seed, 70)
    with running(folders.settings()) as served:
        for seed, name in enumerate(names):
            np.testing.assert_array_equal(folders.wait_for(name), folders.expected(1, seed, 50 + 10 * seed, 70))
        folders.put("late.png", 9)
        np.testing.assert_array_equal(folders.wait_for("late.png"), folders.expected(1, 9))
        wait_until(lambda: served.metric("mfmd_masks_pending") == 0, "nothing waits")
        assert written(served) == 4
        assert served.metric("mfmd_masks_active") == served.metric("mfmd_masks_folder_present") == 1
        assert served.metric("mfmd_masks_last_written_timestamp_seconds") > 0
    files = sorted(path.relative_to(folders.masks).as_posix() for path in folders.masks.rglob("*") if path.is_file())
    assert files == [".mfmd-masks.lock", "a.png.png", "cam/b.png.png", "cam/deep/c d é.png.png", "late.png.png"]


def test_images_of_one_stem_get_a_mask_each(folders: Folders) -> None:
    folders.put("a.png", 1)
    folders.put("a.jpg", 2)  # a PNG by content; names decide nothing
    with running(folders.settings()):
        np.testing.assert_array_equal(folders.wait_for("a.png"), folders.expected(1, 1))
        np.testing.assert_array_equal(folders.wait_for("a.jpg"), folders.expected(1, 2))


@pytest.mark.parametrize("kind", ["color", "overlay"])
def test_masks_in_colour_and_over_the_image(folders: Folders, kind: str) -> None:
    folders.put("a.png", 3)
    labels, classes = folders.expected(1, 3), [ClassInfo.model_validate(entry) for entry in CLASSES]
    wanted = colour_mask(labels, classes) if kind == "color" else overlay(picture(seed=3), labels, classes)
    with running(folders.settings(kind=kind)):
        np.testing.assert_array_equal(folders.wait_for("a.png"), wanted)


def test_a_restart_does_nothing_again_but_what_changed(folders: Folders) -> None:
    for seed in range(3):
        folders.put(f"{seed}.png", seed)
    with running(folders.settings()):
        for seed in range(3):
            folders.wait_for(f"{seed}.png")
    before = {name: folders.mask(name).stat().st_ino for name in ("0.png", "1.png", "2.png")}
    folders.put("1.png", 11)
    folders.mask("2.png").unlink()
    folders.world.add(2)  # another version: no reason, as `masks.again` is off
    with running(folders.settings()) as served:
        wait_until(lambda: written(served) == 2, "the changed image and the missing mask")
        folders.put("new.png", 5)
        folders.wait_for("new.png", version=2)
        assert written(served) == 3, "nothing else was done"
    assert folders.mask("0.png").stat().st_ino == before["0.png"]
    np.testing.assert_array_equal(folders.wait_for("1.png"), folders.expected(2, 11))
    with running(folders.settings(kind="color")) as served:
        wait_until(lambda: written(served) == 4, "another kind is another mask")


def test_another_version_makes_them_anew_when_asked_to(folders: Folders) -> None:
    for seed in range(3):
        folders.put(f"{seed}.png", seed)
    with running(folders.settings(again=True)) as served:
        for seed in range(3):
            folders.wait_for(f"{seed}.png", version=1)
        version = folders.world.add(2)
        for seed in range(3):
            mask = folders.wait_for(f"{seed}.png", version=version)
            np.testing.assert_array_equal(mask, folders.expected(version, seed))
        wait_until(lambda: served.metric("mfmd_masks_pending") == 0, "nothing waits")
        assert written(served) == 6


def test_what_is_no_image_is_skipped_and_counted_once(folders: Folders) -> None:
    (folders.drop / "bad.png").write_text("rubbish")
    (folders.drop / "empty.png").write_bytes(b"")
    (folders.drop / "cut.png").write_bytes(image_bytes()[:300])
    (folders.drop / "outside.png").symlink_to("/etc/passwd")
    (folders.drop / "half.part").write_bytes(b"")
    folders.put("good.png", 1)
    with running(folders.settings()) as served:
        folders.wait_for("good.png")
        wait_until(lambda: served.metric("mfmd_masks_total", result="refused") == 4, "all four are refused")
        folders.put("later.png", 2)  # several walks later they are still counted once
        folders.wait_for("later.png")
        assert served.metric("mfmd_masks_total", result="refused") == 4
        folders.put("bad.png", 4)
        np.testing.assert_array_equal(folders.wait_for("bad.png"), folders.expected(1, 4))
        assert not folders.mask("cut.png").exists() and not folders.mask("half.part").exists()


def test_a_file_that_still_grows_is_left_alone(folders: Folders) -> None:
    future = 4e9  # its clock is no help: stands still is what we see
    content = image_bytes(seed=6)
    (folders.drop / "slow.png").write_bytes(content[:200])
    os.utime(folders.drop / "slow.png", (future, future))
    with running(folders.settings(stability=0.6)) as served:
        wait_until(lambda: served.metric("mfmd_masks_pending") == 1, "it is seen")
        (folders.drop / "slow.png").write_bytes(content)
        os.utime(folders.drop / "slow.png", (future, future))
        np.testing.assert_array_equal(folders.wait_for("slow.png"), folders.expected(1, 6))
        assert served.metric("mfmd_masks_total", result="refused") == 0


def test_the_drop_folder_may_come_and_go(folders: Folders) -> None:
    folders.drop.rmdir()
    with running(folders.settings()) as served:
        wait_until(lambda: served.metric("mfmd_masks_active") == 1, "the writer is ready")
        assert served.metric("mfmd_masks_folder_present") == 0
        folders.drop.mkdir()
        folders.put("a.png", 1)
        folders.wait_for("a.png")
        shutil.rmtree(folders.drop)
        wait_until(lambda: served.metric("mfmd_masks_folder_present") == 0, "it is missed")
        assert folders.mask("a.png").exists(), "masks stay"
        assert served.segment(image_bytes()).status_code == 200
        folders.drop.mkdir()
        folders.put("b.png", 2)
        folders.wait_for("b.png")


def test_masks_wait_for_the_first_version(world: World) -> None:
    folders = Folders(world)
    folders.put("a.png", 1)
    with running(folders.settings()) as served:
        wait_until(lambda: served.metric("mfmd_masks_active") == 1, "the writer is ready")
        version = world.add(1)
        folders.wait_for("a.png", version=version)


def test_of_two_servers_one_writes_and_the_other_takes_over(folders: Folders) -> None:
    with running(folders.settings()) as first:
        folders.put("a.png", 1)
        folders.wait_for("a.png")
        with running(folders.settings()) as second:
            second.wait_for(1)
            folders.put("b.png", 2)
            folders.wait_for("b.png")
            assert second.metric("mfmd_masks_active") == 0
            first.plane.masks.stop(20)
            wait_until(lambda: second.metric("mfmd_masks_active") == 1, "the second takes over")
            folders.put("c.png", 3)
            folders.wait_for("c.png")
            assert (written(first), written(second)) == (2, 1)


def test_what_a_kill_left_is_removed(folders: Folders) -> None:
    (folders.masks / "cam").mkdir(parents=True)
    left = folders.masks / "cam" / ".a.png.png.12345678.partial"
    left.write_bytes(b"half")
    theirs = folders.masks / "cam" / "notes.partial"
    theirs.write_text("somebody's own")
    folders.put("cam/a.png", 1)
    with running(folders.settings()):
        folders.wait_for("cam/a.png")
        assert not left.exists()
        assert theirs.read_text() == "somebody's own"


def test_requests_are_answered_while_masks_are_made(folders: Folders) -> None:
    """One image at a time and only while nobody waits: the batcher never holds more than one of ours."""
    for seed in range(40):
        folders.put(f"{seed}.png", seed)
    most = 0

    def watched(plane: InferencePlane) -> None:
        segment = plane.segment

        async def counting(resident, images):
            def ours():
                nonlocal most
                found = images()
                most = max(most, len(found))
                return found

            return await segment(resident, ours if threading.current_thread().name == "mfmd-masks" else images)

        plane.segment = counting

    with running(folders.settings(), watched) as served:
        served.wait_for(1)
        answers: list[httpx.Response] = []
        while served.metric("mfmd_masks_pending") or written(served) < 40:
            answers.append(served.segment(image_bytes(seed=len(answers))))
        assert answers and all(answer.status_code == 200 for answer in answers)
        assert most == 1
        for seed, answer in enumerate(answers):
            np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(answer.content))), folders.expected(1, seed))


@pytest.mark.parametrize(("patience", "joins_behind"), [(60.0, 0), (0.0, 2)])
def test_an_image_gives_way_while_requests_wait(
    folders: Folders, monkeypatch: pytest.MonkeyPatch, patience: float, joins_behind: int
) -> None:
    """Requests that wait go first, but not for ever: under full load masks still come, one image at a time."""
    monkeypatch.setattr("daemon.serving.mask_writer.GIVE_WAY_SECONDS", patience)
    before_ours: list[int] = []

    def busy(plane: InferencePlane) -> None:
        plane.batcher.start = lambda: None  # nothing is answered until the test says so
        segment = plane.segment

        async def noting(resident, images):
            if threading.current_thread().name == "mfmd-masks":
                before_ours.append(plane.batcher.depth)
            return await segment(resident, images)

        plane.segment = noting

    with running(folders.settings(), busy) as served:
        wait_until(lambda: served.plane.slots.live is not None, "a version serves")
        asked = [threading.Thread(target=served.segment, args=(image_bytes(),)) for _ in range(2)]
        for thread in asked:
            thread.start()
        wait_until(lambda: served.plane.batcher.depth == 2, "requests wait")
        folders.put("a.png", 1)
        wait_until(lambda: before_ours or (patience and served.metric("mfmd_masks_pending")), "the image is seen")
        type(served.plane.batcher).start(served.plane.batcher)
        for thread in asked:
            thread.join(30)
        folders.wait_for("a.png")
    assert before_ours == [joins_behind]


def test_a_disk_that_lies_stops_masks_and_nothing_else(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[Path] = []

    def lost(path: Path, data: bytes) -> None:
        tried.append(path)
        raise DurabilityLost(f"{path}: fsync failed")

    folders.put("a.png", 1)
    folders.put("b.png", 2)
    with running(folders.settings()) as served:
        folders.wait_for("a.png")
        folders.wait_for("b.png")
        monkeypatch.setattr(durable, "write_bytes", lost)
        folders.put("c.png", 3)
        wait_until(lambda: served.metric("mfmd_masks_active") == 0, "masks stop")
        assert len(tried) == 1, "an fsync is never tried again"
        assert served.segment(image_bytes()).status_code == 200


def test_a_mask_whose_name_is_taken_or_too_long_keeps_no_other_from_its_own(folders: Folders) -> None:
    folders.put("old.png", 1)
    os.utime(folders.drop / "old.png", (1.0, 1.0))  # the newest come first, and these two are newer
    folders.put("a.png", 2)
    (folders.masks / "a.png.png" / "in the way").mkdir(parents=True)
    folders.put("n" * 240 + ".png", 3)
    with running(folders.settings()) as served:
        folders.wait_for("old.png")
        assert served.metric("mfmd_masks_total", result="failed") == 2
        wait_until(lambda: served.metric("mfmd_masks_pending") == 0, "they are given up")


def test_a_folder_that_cannot_be_written_is_tried_again(folders: Folders) -> None:
    folders.masks.write_text("a file is in the way")
    folders.put("a.png", 1)
    with running(folders.settings()) as served:
        wait_until(lambda: served.metric("mfmd_masks_total", result="failed") >= 1, "it is counted")
        assert served.segment(image_bytes()).status_code in (200, 503)
        folders.masks.unlink()
        folders.wait_for("a.png")


@pytest.mark.parametrize("place", ["drop", "drop/masks", "state/masks", "."])
def test_masks_do_not_go_where_they_would_be_taken_for_images(folders: Folders, place: str) -> None:
    settings = folders.settings()
    wrong = settings.model_copy(
        update={"masks": settings.masks.model_copy(update={"folder": folders.world.root / place})}
    )
    with pytest.raises(ConfigError, match=r"masks\.folder: .* lie in each other"):
        serve(wrong)
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
