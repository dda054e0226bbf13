"""Read what a Hugging Face directory says of its model: config.json and the settings of its image processor."""

import json
from pathlib import Path
from typing import Any

from adapters.errors import UnsupportedModel
from adapters.networks.huggingface.models import FAMILIES

FORMATS = (
    f"a Hugging Face directory (config.json + safetensors; {', '.join(FAMILIES)}), a hub id (organisation/name), or a "
    ".safetensors file with the weights of the configuration's `network`"
)
"""What `mfmd import` takes, for messages."""
_SWITCHES = ("keep_aspect_ratio", "reduce_labels")
"""Fields of image processors that are true or false, beside those that begin with `do_`."""


def read_config(path: Path) -> dict[str, Any]:
    """Return the config.json of a Hugging Face directory. Raises UnsupportedModel when there is none, or no JSON."""
    if (path / "config.json").exists():
        return _read_json(path / "config.json")
    inside = sorted(str(file.parent) for file in (*path.glob("*/config.json"), *path.glob("snapshots/*/config.json")))
    hint = f"give the directory of one model: {', '.join(inside[:3])}" if inside else f"`mfmd import` takes {FORMATS}"
    raise UnsupportedModel(f"{path / 'config.json'}: no such file; {hint}")


def read_preprocessor(path: Path) -> dict[str, Any] | None:
    """Return the image processor's settings, from the file of either generation; None: the directory does not say.

    Raises UnsupportedModel, naming the field, for a switch that is neither true nor false.
    """
    if (file := path / "preprocessor_config.json").is_file():
        return _with_switches(_read_json(file), "preprocessor_config.json: ")
    if (file := path / "processor_config.json").is_file():  # transformers 5 may save one file for all processors
        inner = _read_json(file).get("image_processor")
        if isinstance(inner, dict):
            return _with_switches(inner, "processor_config.json: image_processor.")
    return None


def _with_switches(content: dict[str, Any], place: str) -> dict[str, Any]:
    """Return `content`; its switches are read by their truth, and the text "false" would be true."""
    for key, value in content.items():
        if (key.startswith("do_") or key in _SWITCHES) and value not in (None, False, True):
            raise UnsupportedModel(f"{place}{key} is {json.dumps(value)}; true or false is needed, without quotes")
    return content


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UnsupportedModel(f"{path}: not readable as JSON: {error}") from error
    if not isinstance(content, dict):
        raise UnsupportedModel(f"{path}: expected a JSON object, found a {type(content).__name__}")
    return content
