"""Masks as files: one for each image, once, whole, again only when asked for, made by a client of a real plane."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from adapters.inference.palette import colour_mask, overlay
from configs.class_list import ClassInfo
from configs.errors import ConfigError
from daemon.masks.mask_file import Note, check_masks, read_note
from tests.daemon.masks.masks_world import Folders, masked
from tests.daemon.serving.serving_world import (
    CLASSES,
    World,
    image_bytes,
    picture,
    wait_until,
)


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
    folders.world.add(2)  # another version: no reason, as `masks.advanced.again` is off
    with masked(folders.settings()) as made:
        wait_until(lambda: made.report.written == 2, "the changed image and the missing mask")
        folders.put("new.png", 5)
        folders.wait_for("new.png", version=2)
        assert made.report.written == 3, "nothing else was done"
    assert folders.mask("0.png").stat().st_ino == before["0.png"]
    np.testing.assert_array_equal(folders.wait_for("1.png"), folders.expected(2, 11))
    with masked(folders.settings(kind="color")) as made:
        wait_until(lambda: made.report.written == 4, "another kind is another mask")


def test_an_image_replaced_by_one_of_the_same_size_and_time_gets_a_new_mask(folders: Folders) -> None:
    path = folders.drop / "a.bmp"
    for seed in (1, 2):
        path.write_bytes(image_bytes(seed=seed, kind="BMP"))
        os.utime(path, ns=(10**18, 10**18))
        with masked(folders.settings()) as made:
            wait_until(lambda made=made: made.report.written == 1, "the mask is written")
        np.testing.assert_array_equal(folders.wait_for("a.bmp"), folders.expected(1, seed))


def test_a_mask_without_the_change_time_stays(folders: Folders) -> None:
    old = Note(1, 2, "index", 3, "a" * 12)
    assert old.meets(old._replace(changed_ns=5), again=True)
    assert not old._replace(changed_ns=4).meets(old._replace(changed_ns=5), again=False)


def test_another_version_makes_them_anew_when_asked_to(folders: Folders) -> None:
    for seed in range(3):
        folders.put(f"{seed}.png", seed)
    with masked(folders.settings(advanced={"again": True})) as made:
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


def test_a_drop_folder_without_its_marker_is_not_there(folders: Folders) -> None:
    settings = folders.settings()
    watch = settings.watch.model_copy(update={"marker": ".mounted"})
    with masked(settings.model_copy(update={"watch": watch})) as made:
        folders.put("a.png", 1)
        wait_until(lambda: made.report.active, "the writer is ready")
        made.served.wait_for(1)
        assert not made.report.folder_present and not folders.mask("a.png").exists()
        (folders.drop / ".mounted").touch()
        folders.wait_for("a.png")
        assert made.report.folder_present
        (folders.drop / ".mounted").unlink()
        wait_until(lambda: not made.report.folder_present, "it is missed")


def test_masks_wait_for_the_first_version(world: World) -> None:
    folders = Folders(world)
    folders.put("a.png", 1)
    with masked(folders.settings()) as made:
        wait_until(lambda: made.report.active, "the writer is ready")
        assert not folders.mask("a.png").exists()
        version = world.add(1)
        np.testing.assert_array_equal(folders.wait_for("a.png", version=version), folders.expected(version, 1))


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


def test_a_file_that_mfmd_did_not_make_is_never_replaced(folders: Folders) -> None:
    mine = folders.world.root / "mine.png"
    mine.write_bytes(b"mine")
    for seed, name in enumerate(("file.png", "link.png", "free.png")):
        folders.put(name, seed)
    folders.masks.mkdir()
    folders.mask("file.png").hardlink_to(mine)
    folders.mask("link.png").symlink_to(mine)
    with masked(folders.settings()) as made:
        folders.wait_for("free.png")
        wait_until(lambda: made.report.failed == 2, "both are counted")
    assert (
        mine.read_bytes() == folders.mask("file.png").read_bytes() == b"mine" and folders.mask("link.png").is_symlink()
    )
