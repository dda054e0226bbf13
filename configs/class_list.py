"""Class lists with palettes: by name from `configs/class_lists/*.yaml`, or given in full in the configuration."""

from collections.abc import Mapping
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

Channel = Annotated[int, Field(ge=0, le=255)]


class ClassInfo(BaseModel):
    """One class: its index is its place in the list."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    name: Annotated[str, Field(min_length=1)]
    """Name, unique in the list."""
    color: tuple[Channel, Channel, Channel]
    """Colour in masks and overlays (RGB, 0-255)."""


def shipped(kind: Literal["class_lists", "presets"]) -> Mapping[str, Traversable]:
    """Return the YAML files of one kind that ship with mfmd, by name."""
    files = sorted((resources.files("configs") / kind).iterdir(), key=lambda file: file.name)
    return {file.name.removesuffix(".yaml"): file for file in files if file.name.endswith(".yaml")}


def load_class_list(name: str) -> list[dict[str, object]]:
    """Return the entries of a shipped class list; raise ValueError, naming the lists that exist, for another name."""
    lists = shipped("class_lists")
    if name not in lists:
        raise ValueError(f"no class list {name!r}; there are {', '.join(lists)}, or give a list in full")
    return list(yaml.safe_load(lists[name].read_text(encoding="utf-8")))


def _expand(value: object) -> object:
    return load_class_list(value) if isinstance(value, str) else value


def _unique(classes: tuple[ClassInfo, ...]) -> tuple[ClassInfo, ...]:
    names = [item.name for item in classes]
    doubles = {name for name in names if names.count(name) > 1}
    if doubles:
        raise ValueError(f"class names must be unique; twice: {', '.join(sorted(doubles))}")
    return classes


def _or_a_name(schema: dict[str, Any]) -> None:
    """Let the JSON Schema admit what validation admits: the name of a shipped list."""
    in_full = {key: schema.pop(key) for key in ("type", "items", "minItems", "maxItems")}
    schema["anyOf"] = [{"type": "string", "enum": list(shipped("class_lists"))}, in_full]


Classes = Annotated[
    tuple[ClassInfo, ...],
    Field(min_length=2, max_length=255, json_schema_extra=_or_a_name),
    BeforeValidator(_expand),
    AfterValidator(_unique),
]
