"""What a model's files say: class names, and the size that its image processor makes."""

import json
from pathlib import Path
from typing import Any

import pytest

from adapters.checkpoints.model_facts import facts_of
from adapters.errors import UnsupportedModel


def facts(folder: Path, config: dict[str, Any], processor: dict[str, Any] | None) -> Any:
    (folder / "config.json").write_text(json.dumps(config))
    if processor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return facts_of(folder)


@pytest.mark.parametrize(
    ("processor", "size"),
    [
        ({"size": {"height": 512, "width": 768}}, (512, 768)),
        ({"size": 640}, (640, 640)),
        ({"size": {"shortest_edge": 800, "longest_edge": 1333}, "size_divisor": 32}, (800, 1312)),
        ({"size": {"shortest_edge": 640, "longest_edge": 640}}, (640, 640)),
        ({"size": {"shortest_edge": 360}}, (360, 640)),
        ({"size": {"shortest_edge": 544}, "do_center_crop": True, "crop_size": 512}, (512, 512)),
        ({"size": {"height": 8, "width": 8}}, None),
        ({"size": {"height": "512", "width": True}}, None),
        ({}, None),
        (None, None),
    ],
)  # fmt: skip
def test_frames_have_the_size_of_the_processor(
    tmp_path: Path, processor: dict[str, Any] | None, size: tuple[int, int] | None
) -> None:
    found = facts(tmp_path, {}, processor).buffer
    assert found == ({} if size is None else {"height": size[0], "width": size[1]})


def test_names_are_read_by_index(tmp_path: Path) -> None:
    assert facts(tmp_path, {"id2label": {"1": "car", "0": "road"}}, None).names == ["road", "car"]
    assert facts(tmp_path, {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}, None).names is None
    assert facts(tmp_path, {}, None).names is None
    with pytest.raises(UnsupportedModel, match="none for class 1"):
        facts(tmp_path, {"id2label": {"0": "road", "2": "car"}}, None)


def test_what_is_no_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        UnsupportedModel, match=r"nothing: no such directory; give a Hugging Face directory or a hub id"
    ):
        facts_of(tmp_path / "nothing")
    with pytest.raises(UnsupportedModel, match=r"config\.json: no such file"):
        facts_of(tmp_path)
