import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from storage.buffer.pixel_array import PixelArray
from storage.errors import SourceRefused, StorageError
from storage.layout import StateLayout
from storage.source import label_file, labelled_import
from storage.source.labelled import LabelledSet
from storage.source.labelled_import import held_out, import_labelled


def sets(layout: StateLayout) -> list[str]:
    return [path.name for path in layout.source.iterdir() if path.is_dir()]


def test_progress_is_reported_to_the_end(layout: StateLayout, source):
    seen: list[tuple[int, int]] = []
    import_labelled(source(4), layout, lambda done, total: seen.append((done, total)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_the_same_files_are_not_imported_again(layout: StateLayout, source):
    settings, seen = source(4), list[int]()
    import_labelled(settings, layout)
    import_labelled(settings, layout, lambda done, _: seen.append(done))
    assert seen == []


@pytest.mark.parametrize("change", ["touched", "added", "geometry", "classes", "meaning"])
def test_any_change_is_imported_and_the_old_set_removed(layout: StateLayout, source, tmp_path: Path, change: str):
    settings = source(4)
    import_labelled(settings, layout)
    (before,) = sets(layout)
    if change == "touched":
        os.utime(tmp_path / "labels" / "001.png", ns=(1, 1))
    elif change == "added":
        settings = source(5)
    elif change == "geometry":
        settings = settings.model_copy(update={"buffer": settings.buffer.model_copy(update={"width": 64})})
    elif change == "meaning":
        settings = source(4, label_map={1: "tree", 2: "sky"})
    else:
        settings = settings.model_copy(update={"classes": (*settings.classes, settings.classes[0])})
    found = import_labelled(settings, layout)
    (after,) = sets(layout)
    assert after != before
    assert len(found) == (5 if change == "added" else 4)
    assert found.width == (64 if change == "geometry" else 96)
    assert found.class_pixels.shape[1] == (4 if change == "classes" else 3)


def test_all_problems_are_named_with_their_values_and_nothing_is_imported(layout: StateLayout, source, tmp_path: Path):
    settings = source(6)
    labels, images = tmp_path / "labels", tmp_path / "images"
    bad = np.zeros((60, 80), np.uint8)
    bad[7, 9] = 33
    Image.fromarray(bad).save(labels / "001.png")
    Image.fromarray(np.zeros((30, 40), np.uint8)).save(labels / "002.png")
    (images / "003.png").write_bytes(b"no image")
    Image.new("RGB", (80, 60)).save(labels / "004.png")
    with pytest.raises(SourceRefused, match="4 problems") as caught:
        import_labelled(settings, layout)
    first, second, third, fourth, meant = caught.value.problems
    assert f"{labels / '001.png'}: label value 33 at row 7, column 9" in first
    assert f"{labels / '002.png'}: 40x30 pixels" in second and "80x60" in second
    assert str(images / "003.png") in third
    assert f"{labels / '004.png'}: is a RGB image" in fourth
    assert "the labels hold the values 0, 1, 2, 33, 255; source.label_map" in meant
    assert not LabelledSet.exists(layout)
    assert sets(layout) == []


def test_a_refused_import_leaves_the_old_set_in_use(layout: StateLayout, source, tmp_path: Path):
    settings = source(4)
    import_labelled(settings, layout)
    before = sets(layout)
    (tmp_path / "images" / "001.png").write_bytes(b"")
    with pytest.raises(SourceRefused, match=r"1 problem: .*empty"):
        import_labelled(settings, layout)
    assert sets(layout) == before
    assert LabelledSet.open(layout).images.read(1).any()


def test_missing_labels_are_named(layout: StateLayout, source, tmp_path: Path):
    settings = source(4)
    (tmp_path / "labels" / "002.png").unlink()
    with pytest.raises(SourceRefused, match=r"002\.png: no label"):
        import_labelled(settings, layout)


def test_without_a_source_it_says_what_to_set(layout: StateLayout, source):
    with pytest.raises(StorageError, match=r"set source\.images and source\.labels"):
        import_labelled(source(2).model_copy(update={"source": None}), layout)


def test_a_full_disk_is_not_a_problem_of_the_labels(layout: StateLayout, source, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(PixelArray, "write", full)
        with pytest.raises(OSError, match="No space"):
            import_labelled(source(3), layout)
    assert sets(layout) == []
    assert len(import_labelled(source(3), layout)) == 3


def test_what_a_killed_import_left_is_removed(layout: StateLayout, source):
    for name in (".abc.partial", "ab01" * 8, "images"):
        (layout.source / name / "images").mkdir(parents=True)
    import_labelled(source(3), layout)
    assert len(sets(layout)) == 2 and (layout.source / "images" / "images").is_dir(), "what may be the user's stays"


def test_killed_between_publishing_and_pointing_it_starts_again(
    layout: StateLayout, source, monkeypatch: pytest.MonkeyPatch
):
    class Killed(BaseException):
        pass

    def die(path: Path, _: object) -> None:
        if path.name == "current.json":
            raise Killed
        real(path, _)

    settings, real = source(3), labelled_import.durable.write_record
    with monkeypatch.context() as patch:
        patch.setattr(labelled_import.durable, "write_record", die)
        with pytest.raises(Killed):
            import_labelled(settings, layout)
    assert not LabelledSet.exists(layout)
    assert len(import_labelled(settings, layout)) == 3


def test_validation_folders_are_held_out(layout: StateLayout, source, tmp_path: Path):
    source(3)
    shutil.copytree(tmp_path / "images", tmp_path / "val_images")
    shutil.copytree(tmp_path / "labels", tmp_path / "val_labels")
    found = import_labelled(
        source(5, validation_images=tmp_path / "val_images", validation_labels=tmp_path / "val_labels"), layout
    )
    assert found.train == (0, 1, 2, 3, 4) and found.validation == (5, 6, 7)
    assert np.array_equal(found.images.read(5), found.images.read(0))


def test_without_them_one_in_ten_is(layout: StateLayout, source):
    found = import_labelled(source(12), layout)
    assert sorted(found.train + found.validation) == list(range(12))
    assert found.validation == tuple(held_out(list(found.names))) and len(found.validation) >= 1


def test_the_choice_is_by_name_alone():
    names = [f"frame_{number:05d}.png" for number in range(3000)]
    chosen = {names[index] for index in held_out(names)}
    assert 0.07 < len(chosen) / 3000 < 0.13
    assert {name for name in names[1000:] if name in chosen} == {names[1000:][i] for i in held_out(names[1000:])}


def test_any_set_of_two_or_more_has_both_parts():
    assert held_out(["0.png"]) == []
    for count in range(2, 60):
        assert 0 < len(held_out([f"{number}.png" for number in range(count)])) < count
    names = [f"{number}.png" for number in range(1000)]
    chosen = [names[index] for index in held_out(names)]
    assert len(held_out(chosen)) == len(chosen) - 1, "each is chosen by itself, but one must stay to train on"


def _pair(tmp_path: Path, size: tuple[int, int], orientation: int, label: int | None, stored: tuple[int, int]) -> None:
    """Draw image and label of one pair with EXIF orientations; `stored` is the size of the label in its file."""
    tags = Image.Exif()
    tags[0x0112] = orientation
    Image.new("RGB", size).save(tmp_path / "images" / "000.png", exif=tags)
    tags[0x0112] = label or 1
    Image.new("L", stored, 1).save(tmp_path / "labels" / "000.png", **({"exif": tags} if label else {}))


@pytest.mark.parametrize(
    ("size", "orientation", "label", "stored", "words"),
    [
        ((80, 60), 3, None, (80, 60), "EXIF orientation 3 turns its image"),
        ((80, 60), 2, None, (80, 60), "EXIF orientation 2 turns its image"),
        ((60, 60), 6, None, (60, 60), "EXIF orientation 6 turns its image"),
        ((80, 60), 6, None, (80, 60), "80x60 pixels, its image"),
        ((80, 60), 6, None, (60, 80), ""),
        ((80, 60), 3, 3, (80, 60), ""),
        ((80, 60), 6, 6, (80, 60), ""),
        ((80, 60), 3, 1, (80, 60), ""),
        ((80, 60), 1, None, (80, 60), ""),
    ],
)
def test_a_label_that_may_be_turned_against_its_image_is_refused(
    layout: StateLayout, source, tmp_path: Path, size, orientation: int, label: int | None, stored, words: str
):
    settings = source(1)
    _pair(tmp_path, size, orientation, label, stored)
    if not words:
        assert len(import_labelled(settings, layout)) == 1
        return
    with pytest.raises(SourceRefused, match=words):
        import_labelled(settings, layout)


@pytest.mark.parametrize("changed", ["images", "labels"])
def test_a_pair_that_changes_while_it_is_read_is_refused(
    layout: StateLayout, source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str
):
    settings, path = source(2), tmp_path / changed / "001.png"
    real, data = label_file.read_label, path.read_bytes()

    def replaced(label: Path, *others):
        found = real(label, *others)
        if label.name == path.name:
            status = path.stat()
            (tmp_path / "new").write_bytes(data)
            os.utime(tmp_path / "new", ns=(status.st_atime_ns, status.st_mtime_ns))
            (tmp_path / "new").rename(path)
        return found

    monkeypatch.setattr(label_file, "read_label", replaced)
    with pytest.raises(SourceRefused, match=rf"{path}: it changed while"):
        import_labelled(settings, layout)
    monkeypatch.undo()
    assert len(import_labelled(settings, layout)) == 2
