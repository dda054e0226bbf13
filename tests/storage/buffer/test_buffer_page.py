"""docs/reference/buffer.md: its examples run as written, against a real buffer; its table has every column."""

import re
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from configs.buffer import BufferSettings
from storage.buffer.catalog_records import FrameRecord
from storage.buffer.frames import FrameBuffer, NewFrame
from storage.layout import StateLayout
from storage.media.images import fit_frame

PAGE = (Path(__file__).parents[3] / "docs" / "reference" / "buffer.md").read_text(encoding="utf-8")
EXAMPLES = {"zarr": 0, "xarray": 1, "camera": 2}


@pytest.fixture
def run(layout: StateLayout, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Runs examples, one after the other, beside the state directory; their variables."""
    monkeypatch.chdir(layout.root.parent)

    def run_examples(*names: str) -> dict[str, Any]:
        variables: dict[str, Any] = {}
        for name in names:
            exec(compile(example(name), f"docs/reference/buffer.md, {name}", "exec"), variables)
        return variables

    return run_examples


@pytest.fixture
def filled(layout: StateLayout, small: BufferSettings, new_frame: Callable[..., NewFrame]) -> FrameBuffer:
    """An open writer with six of nine frames of two cameras; the newest is wide, and its slot is not the last."""
    wide = fit_frame(np.full((20, 60, 3), 77, np.uint8), 64, 96)
    with FrameBuffer.open(layout, small, writable=True) as buffer:
        for number in range(9):
            new = replace(new_frame(number), source=("north", "south")[number % 2])
            buffer.append([replace(new, frame=wide) if number == 8 else new])
        yield buffer


def example(name: str) -> str:
    return re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)[EXAMPLES[name]]


def test_the_zarr_example_names_dimensions_and_says_what_is_in_them(run, filled, capsys):
    frames = run("zarr")["frames"]
    assert frames.metadata.dimension_names == ("frame", "y", "x", "channel")
    assert frames.shape == (12, 64, 96, 3) and frames.dtype == "uint8"
    printed = capsys.readouterr().out
    assert "('frame', 'y', 'x', 'channel')" in printed and "valid_height" in printed and "catalog.sqlite" in printed
    for record in filled.records():
        assert np.array_equal(frames[record.slot], filled.read(record))


def test_the_xarray_example_gives_the_frames_in_five_lines(run, filled):
    assert sum(bool(line.strip()) for line in example("xarray").splitlines()) == 5
    found, records = run("xarray", "camera"), filled.records()
    assert [record.slot for record in records] != sorted(record.slot for record in records), "order is not by slot"
    assert found["frames"].dims == ("frame", "y", "x", "channel")
    assert found["frames"].attrs["mfmd"]["frame_height"] == 64
    for pixels, record in zip(found["frames"], records, strict=True):
        assert np.array_equal(pixels.values, filled.read(record))
    assert found["newest"].shape == (32, 96, 3) and (found["newest"] == 77).all()
    north = [filled.read(record) for record in records if record.source == "north"]
    assert len(north) == 3 and np.array_equal(found["north"].values, north)


def test_the_table_has_every_column_of_a_frame():
    table = PAGE[PAGE.index("Columns of table `frames`") : PAGE.index("## Reading it")]
    named = {
        name for row in re.findall(r"^\| (`[^|]+) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)
    }
    assert named == {field.name for field in fields(FrameRecord)}
