"""What a model's files say: class names, and the size that its image processor makes."""

import json
import re
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


def test_frames_are_what_the_processor_makes(tmp_path: Path) -> None:
    found = facts(tmp_path, {}, {"size": {"height": 512, "width": 768}, "resample": 3}).buffer
    assert found == {"height": 512, "width": 768, "advanced": {"fit": "squash", "resample": "bicubic"}}
    assert facts(tmp_path, {}, {}).buffer == {}


def test_names_are_read_by_index(tmp_path: Path) -> None:
    assert facts(tmp_path, {"id2label": {"1": "car", "0": "road"}}, None).names == ["road", "car"]
    assert facts(tmp_path, {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}, None).names is None
    assert facts(tmp_path, {}, None).names is None
    with pytest.raises(UnsupportedModel, match="none for class 1"):
        facts(tmp_path, {"id2label": {"0": "road", "2": "car"}}, None)


@pytest.mark.parametrize("key", ["do_resize", "keep_aspect_ratio", "do_flip_channel_order"])
@pytest.mark.parametrize("value", ["false", "true", "0", [], 2])
def test_switches_in_quotes_are_refused_by_file_and_field(tmp_path: Path, key: str, value: object) -> None:
    says = re.escape(f"preprocessor_config.json: {key} is {json.dumps(value)}; true or false")
    with pytest.raises(UnsupportedModel, match=says):
        facts(tmp_path, {}, {key: value})
    (tmp_path / "preprocessor_config.json").rename(tmp_path / "processor_config.json")
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": {key: value}}))
    with pytest.raises(UnsupportedModel, match=rf"^processor_config\.json: image_processor\.{key} is"):
        facts_of(tmp_path)


def test_switches_may_be_null_or_numbers(tmp_path: Path) -> None:
    size = {"size": {"height": 64, "width": 64}}
    assert facts(tmp_path, {}, {"do_resize": 1, "do_pad": None, **size}).buffer["height"] == 64
    assert facts(tmp_path, {}, {"do_resize": 0, **size}).buffer == {}


def test_what_is_no_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        UnsupportedModel, match=r"nothing: no such directory; give a Hugging Face directory or a hub id"
    ):
        facts_of(tmp_path / "nothing")
    with pytest.raises(UnsupportedModel, match=r"config\.json: no such file"):
        facts_of(tmp_path)
