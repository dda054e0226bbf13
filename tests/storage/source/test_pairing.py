from pathlib import Path

import pytest

from storage.errors import SourceRefused
from storage.source.pairing import pair_labels


@pytest.fixture
def touch(tmp_path: Path):
    def make(*names: str) -> None:
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()

    return make


def pairs(root: Path, images: str, labels: str, suffix: str = "") -> list[tuple[str, str]]:
    found = pair_labels(root / images, root / labels, suffix)
    return [(pair.name, pair.label.relative_to(root / labels).as_posix()) for pair in found]


def test_flat_folders_in_order_of_name(tmp_path: Path, touch):
    touch("i/b.jpg", "i/a.PNG", "i/notes.txt", "i/.hidden.png", "l/a.png", "l/b.png", "l/unused.png")
    assert pairs(tmp_path, "i", "l") == [("a.PNG", "a.png"), ("b.jpg", "b.png")]


def test_labels_mirror_the_folders_of_images_or_lie_flat(tmp_path: Path, touch):
    touch("i/x/a.jpg", "i/y/a.jpg", "i/y/b.jpg", "l/x/a.png", "l/y/a.png", "l/b.png")
    assert pairs(tmp_path, "i", "l") == [("x/a.jpg", "x/a.png"), ("y/a.jpg", "y/a.png"), ("y/b.jpg", "b.png")]


def test_suffixes_of_gta_cityscapes_and_acdc(tmp_path: Path, touch):
    touch("gta/00001.png", "gtal/00001_labelTrainIds.png")
    assert pairs(tmp_path, "gta", "gtal", "_labelTrainIds") == [("00001.png", "00001_labelTrainIds.png")]
    touch("cs/aachen/a_000_leftImg8bit.png", "csl/aachen/a_000_gtFine_labelTrainIds.png")
    assert pairs(tmp_path, "cs", "csl", "_gtFine_labelTrainIds")[0][1] == "aachen/a_000_gtFine_labelTrainIds.png"
    touch("acdc/n_rgb_anon.png", "acdcl/n_gt_labelTrainIds.png")
    assert pairs(tmp_path, "acdc", "acdcl", "_gt_labelTrainIds")[0][1] == "n_gt_labelTrainIds.png"


def test_labels_below_or_beside_the_images_are_not_images(tmp_path: Path, touch):
    touch("i/a.png", "i/labels/a.png")
    assert pairs(tmp_path, "i", "i/labels") == [("a.png", "a.png")]
    touch("both/a.png", "both/a_label.png")
    assert pairs(tmp_path, "both", "both", "_label") == [("a.png", "a_label.png")]


def test_every_problem_is_named(tmp_path: Path, touch):
    touch("i/a.png", "i/b.png", "i/c.png", "l/b.png")
    with pytest.raises(SourceRefused, match="2 problems") as caught:
        pair_labels(tmp_path / "i", tmp_path / "l")
    assert len(caught.value.problems) == 2
    assert "i/a.png: no label a.png" in caught.value.problems[0] and "i/c.png" in caught.value.problems[1]


def test_one_label_for_two_images_is_a_problem(tmp_path: Path, touch):
    touch("i/x/a.png", "i/y/a.png", "l/a.png")
    with pytest.raises(SourceRefused, match=r"l/a\.png: label of both .*x/a\.png and .*y/a\.png"):
        pair_labels(tmp_path / "i", tmp_path / "l")


def test_missing_and_empty_folders_are_named(tmp_path: Path, touch):
    touch("i/readme.txt", "l/a.png")
    with pytest.raises(SourceRefused, match="i: holds no image"):
        pair_labels(tmp_path / "i", tmp_path / "l")
    with pytest.raises(SourceRefused, match="none: no such folder"):
        pair_labels(tmp_path / "none", tmp_path / "l")


def test_a_long_list_is_cut_in_the_message_only(tmp_path: Path, touch):
    touch("l/a.png", *(f"i/{number:03d}.png" for number in range(50)))
    with pytest.raises(SourceRefused, match="and 30 more") as caught:
        pair_labels(tmp_path / "i", tmp_path / "l")
    assert len(caught.value.problems) == 50


def test_several_labels_are_a_problem_unless_one_is_the_png(tmp_path: Path, touch):
    touch("i/a.jpg", "i/b.jpg", "l/a.png", "l/a.tif", "l/b.gif", "l/b.tif")
    with pytest.raises(SourceRefused, match=r"1 problem: .*i/b\.jpg: several labels: .*b\.gif, .*b\.tif; keep one"):
        pair_labels(tmp_path / "i", tmp_path / "l")


def test_an_image_is_not_its_own_label(tmp_path: Path, touch):
    touch("both/a.png", "both/b.jpg")
    with pytest.raises(SourceRefused, match=r"a\.png: image and label in one; set source\.label_suffix"):
        pair_labels(tmp_path / "both", tmp_path / "both")


def test_a_suffix_that_would_fit_is_named(tmp_path: Path, touch):
    touch("i/x/a_leftImg8bit.png", "l/x/a_gtFine_labelIds.png", "l/x/a_gtFine_color.png")
    with pytest.raises(SourceRefused, match="label_suffix may be '_gtFine_color' or '_gtFine_labelIds'"):
        pair_labels(tmp_path / "i", tmp_path / "l")


def test_a_name_that_is_no_text_is_named(tmp_path: Path, touch):
    touch("i/a\udcff.png", "l/a\udcff.png")
    with pytest.raises(SourceRefused, match="not UTF-8"):
        pair_labels(tmp_path / "i", tmp_path / "l")
