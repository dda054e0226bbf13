"""`mfmd buffer export` as a function, read back with plain Pillow, json and tarfile."""

import json
import tarfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from configs.buffer import BufferSettings
from storage.buffer import export as buffer_export
from storage.buffer.catalog_records import FrameRecord
from storage.buffer.export import export_frames
from storage.buffer.frames import FrameBuffer, NewFrame
from storage.errors import CorruptBuffer, FramesRefused
from storage.layout import StateLayout
from storage.media.images import fit_frame

Maker = Callable[..., NewFrame]


@pytest.fixture
def frames(buffer: FrameBuffer, new_frame: Maker) -> list[FrameRecord]:
    """Six frames, the even ones of a wide image: their lower part is padding."""
    rows, columns = np.mgrid[0:20, 0:60]
    wide = np.stack([rows * 12, columns * 4, rows + columns], axis=2).astype(np.uint8)
    made = []
    for number in range(6):
        new = replace(new_frame(number), source=f"cam{number % 2}")
        if number % 2 == 0:
            new = replace(new, source_height=20, source_width=60, frame=fit_frame(wide + np.uint8(number), 64, 96))
        made.append(new)
    return buffer.append(made)


def index_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "index.jsonl").read_text(encoding="utf-8").splitlines()]


def valid(buffer: FrameBuffer, record: FrameRecord) -> np.ndarray:
    return buffer.read(record)[: record.valid_height, : record.valid_width]


def test_png_is_every_frame_exactly_without_its_padding(buffer, frames, tmp_path):
    assert export_frames(buffer, tmp_path / "out", "png") == 6
    lines = index_of(tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"index.jsonl", *(line["file"] for line in lines)}
    for line, record in zip(lines, frames, strict=True):
        with Image.open(tmp_path / "out" / line["file"]) as image:
            assert (image.format, image.mode) == ("PNG", "RGB")
            assert np.array_equal(np.asarray(image), valid(buffer, record))
            assert image.size == (line["width"], line["height"])
    assert [line["height"] for line in lines] == [32, 64, 32, 64, 32, 64]


def test_the_index_says_what_the_catalog_knows(buffer, frames, tmp_path):
    export_frames(buffer, tmp_path / "out", "png")
    for line, record in zip(index_of(tmp_path / "out"), frames, strict=True):
        known = asdict(record)
        same = ("name", "digest", "source", "captured_at", "committed_at", "source_height", "source_width", "holdout")
        assert {key: line[key] for key in same} == {key: known[key] for key in same}
        assert line["frame"] == record.id and line["file"] == f"{record.id:08d}.png"
        assert (line["height"], line["width"]) == (record.valid_height, record.valid_width)
        assert len(line) == len(same) + 4


def test_jpeg_is_near_to_the_frame(buffer, frames, tmp_path):
    export_frames(buffer, tmp_path / "out", "jpeg")
    for line, record in list(zip(index_of(tmp_path / "out"), frames, strict=True))[::2]:
        with Image.open(tmp_path / "out" / line["file"]) as image:
            assert (image.format, image.size) == ("JPEG", (line["width"], line["height"]))
            assert np.abs(np.asarray(image).astype(int) - valid(buffer, record).astype(int)).mean() < 2
        assert line["file"].endswith(".jpg")


def test_webdataset_is_tars_of_an_image_and_its_json_under_one_key(buffer, frames, tmp_path, monkeypatch):
    monkeypatch.setattr(buffer_export, "SHARD_FRAMES", 4)
    export_frames(buffer, tmp_path / "out", "webdataset")
    lines = index_of(tmp_path / "out")
    tars = sorted(path.name for path in (tmp_path / "out").glob("*.tar"))
    assert tars == ["frames-000000.tar", "frames-000001.tar"]
    found = []
    for tar in tars:
        with tarfile.open(tmp_path / "out" / tar) as opened:
            names = opened.getnames()
            for image_name, json_name in zip(names[::2], names[1::2], strict=True):
                assert image_name.split(".") == [json_name.split(".")[0], "jpg"] and json_name.endswith(".json")
                about = json.load(opened.extractfile(json_name))
                with Image.open(opened.extractfile(image_name)) as image:
                    assert (image.format, image.size) == ("JPEG", (about["width"], about["height"]))
                found.append({**about, "file": f"{tar}/{image_name}"})
    assert found == lines and len(lines) == 6
    assert [line["file"].split("/")[0] for line in lines] == [tars[0]] * 4 + [tars[1]] * 2


def test_holdout_train_and_limit(buffer, frames, tmp_path):
    held = [record.id for record in frames if record.holdout]
    others = [record.id for record in frames if not record.holdout]
    assert held and len(others) > 2
    chosen = {
        "held": ({"holdout": True}, held),
        "others": ({"holdout": False}, others),
        "newest": ({"limit": 2}, [5, 6]),
        "newest_others": ({"holdout": False, "limit": 2}, others[-2:]),
        "more_than_there_are": ({"limit": 100}, [1, 2, 3, 4, 5, 6]),
    }
    for name, (options, expected) in chosen.items():
        assert export_frames(buffer, tmp_path / name, "png", **options) == len(expected)
        assert [line["frame"] for line in index_of(tmp_path / name)] == expected


def test_a_buffer_without_frames_gives_an_empty_index(buffer, tmp_path):
    for format in ("png", "webdataset"):
        assert export_frames(buffer, tmp_path / format, format) == 0
        assert [path.name for path in (tmp_path / format).iterdir()] == ["index.jsonl"]


def test_a_folder_that_holds_something_is_refused_and_left_alone(buffer, frames, tmp_path):
    full, file = tmp_path / "full", tmp_path / "file"
    full.mkdir()
    (full / "mine.txt").write_text("mine")
    file.write_text("mine")
    for target, why in ((full, "holds files already"), (file, "is a file")):
        with pytest.raises(FramesRefused, match=f"{target}: {why}; name a new or an empty folder"):
            export_frames(buffer, target, "png")
    assert [path.name for path in full.iterdir()] == ["mine.txt"] and file.read_text() == "mine"
    assert not list(tmp_path.glob(".*.partial"))


def test_an_empty_folder_and_one_that_a_link_leads_to_are_filled(buffer, frames, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    assert export_frames(buffer, tmp_path / "link", "png") == 6
    assert len(index_of(tmp_path / "empty")) == 6 and (tmp_path / "link").is_symlink()
    assert export_frames(buffer, tmp_path / "deep" / "er", "png") == 6


def test_a_damaged_frame_ends_it_and_no_folder_appears(buffer, frames, layout: StateLayout, tmp_path):
    shard = layout.frames_zarr / "frames" / f"c.{frames[3].slot}.0.0.0"
    data = bytearray(shard.read_bytes())
    data[50] ^= 0xFF
    shard.write_bytes(data)
    with pytest.raises(CorruptBuffer, match=r"frame 4 \(cam/0003.png\)"):
        export_frames(buffer, tmp_path / "out", "png")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".*.partial"))


@pytest.mark.parametrize("format", ["png", "webdataset"])
def test_a_frame_that_leaves_meanwhile_is_left_out(
    buffer: FrameBuffer, frames, layout: StateLayout, small: BufferSettings, new_frame: Maker, tmp_path, format
):
    """The reader has its list; then the writer lets three frames leave and uses a slot again, as ingest may."""
    with _ListThenEvict.open(layout, small, writable=False) as reader:
        reader.then = lambda: [buffer.append([new_frame(number)]) for number in range(10, 13)]
        assert export_frames(reader, tmp_path / "out", format) == 3
    assert [line["frame"] for line in index_of(tmp_path / "out")] == [4, 5, 6]
    assert {record.slot for record in buffer.records()} & {record.slot for record in frames[:3]}


class _ListThenEvict(FrameBuffer):
    """The real buffer; right after the list of frames was made, something happens."""

    then: Callable[[], object]

    def records(self, **options: Any) -> list[FrameRecord]:
        found = super().records(**options)
        self.then()
        return found
