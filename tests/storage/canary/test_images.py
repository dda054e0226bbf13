"""Canary images: read like source images, never trained on, refused as a whole with every reason."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from configs.settings import Settings
from storage.canary.images import import_canary, known_checksums, survey_canary
from storage.canary.records import CanaryState
from storage.checking.state import check_state
from storage.durable.record import read_record
from storage.errors import CanaryRefused
from storage.layout import StateLayout
from storage.media.images import crc32_of, fit_frame


@pytest.fixture
def canary(source: Callable[..., Settings], tmp_path: Path) -> Callable[..., Settings]:
    """Settings whose canary folders are those of `source`, with or without a source beside."""

    def make(count: int = 3, *, keep_source: bool = False, **advanced: Any) -> Settings:
        settings = source(count)
        values = settings.model_dump() | {"canary": {"images": tmp_path / "images", "labels": tmp_path / "labels"}}
        values["canary"]["advanced"] = advanced
        if not keep_source:
            values["source"] = None
        return Settings.model_validate(values)

    return make


def test_images_have_the_size_and_the_checksum_of_frames(
    canary: Callable[..., Settings], layout: StateLayout, tmp_path: Path
) -> None:
    found = import_canary(canary(), layout)
    assert [image.name for image in found] == [f"configured/{number:03d}.png" for number in range(3)]
    pixels = np.asarray(Image.open(tmp_path / "images" / "001.png"))
    fitted = fit_frame(pixels, 64, 96)
    assert found[1].crc32 == crc32_of(fitted.pixels) and found[1].pixels.shape == (64, 85, 3)
    assert found[1].label.shape == (64, 85) and set(np.unique(found[1].label)) == {0, 1, 2, 255}
    assert known_checksums(layout) == {image.crc32 for image in found}
    assert not check_state(layout, read_data=True)


def test_twins_count_once_and_images_without_a_label_not_at_all(
    canary: Callable[..., Settings], layout: StateLayout, tmp_path: Path
) -> None:
    settings = canary(3)
    for kind in ("images", "labels"):
        (tmp_path / kind / "twin.png").write_bytes((tmp_path / kind / "000.png").read_bytes())
    Image.fromarray(np.full((60, 80), 255, np.uint8)).save(tmp_path / "labels" / "002.png")
    assert [image.name for image in import_canary(settings, layout)] == ["configured/000.png", "configured/001.png"]
    (tmp_path / "labels" / "twin.png").write_bytes((tmp_path / "labels" / "001.png").read_bytes())
    with pytest.raises(CanaryRefused, match=r"configured/twin\.png and configured/000\.png are one image with two"):
        import_canary(settings, layout)


def test_without_folders_there_are_none(source: Callable[..., Settings], layout: StateLayout) -> None:
    assert import_canary(source(2), layout) == [] and known_checksums(layout) == set()


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        ("size", r"002\.png: 8x8 pixels, its image .* has 80x60"),
        ("class", r"label value 77 at row 5, column 6 is no class; .*source\.label_map"),
        ("own format", r"label value 77 .*canary\.advanced\.label_map"),
        ("file", r"002\.png: .*cut off"),
        ("no label", r"no label 002\.png"),
        ("no folder", "no such folder"),
    ],
)
def test_what_is_wrong_is_named_and_what_was_read_before_stays_known(
    canary: Callable[..., Settings], layout: StateLayout, tmp_path: Path, harm: str, reason: str
) -> None:
    settings = canary(3, **({"label_format": "index"} if harm == "own format" else {}))
    known = {image.crc32 for image in import_canary(settings, layout)}
    label = tmp_path / "labels" / "002.png"
    if harm == "size":
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(label)
    elif harm in ("class", "own format"):
        values = np.zeros((60, 80), np.uint8)
        values[5, 6] = 77
        Image.fromarray(values).save(label)
    elif harm == "file":
        image = tmp_path / "images" / "002.png"
        image.write_bytes(image.read_bytes()[:-90])
    elif harm == "no label":
        label.unlink()
    else:
        (tmp_path / "labels").rename(tmp_path / "elsewhere")
    with pytest.raises(CanaryRefused, match=reason):
        import_canary(settings, layout)
    assert known_checksums(layout) == known
    with pytest.raises(CanaryRefused, match=reason):
        survey_canary(settings, layout)
    state = read_record(layout.canary / "state.json", CanaryState)
    assert state is not None and state.images == 0 and re.search(reason, state.problem)


def test_labels_are_read_as_source_labels_unless_told_otherwise(
    canary: Callable[..., Settings], layout: StateLayout
) -> None:
    values = canary(1, keep_source=True).model_dump()
    values["source"] |= {"label_map": {0: "tree", 1: "sky", 2: "road"}}
    (shared,) = import_canary(Settings.model_validate(values), layout)
    values["canary"]["advanced"] = {"label_format": "index"}
    (own,) = import_canary(Settings.model_validate(values), layout)
    flipped = np.array([2, 1, 0, *range(3, 256)], np.uint8)
    np.testing.assert_array_equal(flipped[own.label], shared.label)
    values["canary"]["advanced"] = {"label_map": {0: "tree"}}
    with pytest.raises(ValueError, match="label_map need label_format"):
        Settings.model_validate(values)
