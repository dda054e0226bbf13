"""Class lists with palettes: by name from `configs/class_lists/*.yaml`, or given in full in the configuration."""

from importlib import resources
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Channel = Annotated[int, Field(ge=0, le=255)]


class ClassInfo(BaseModel):
    """One class: its index is its place in the list."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    name: Annotated[str, Field(min_length=1)]
    """Name, unique in the list."""
    color: tuple[Channel, Channel, Channel]
    """Colour in masks and overlays (RGB, 0-255)."""


def class_list_names() -> list[str]:
    """Names of the class lists that ship with mfmd."""
    folder = resources.files("configs") / "class_lists"
    return sorted(item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml"))


def load_class_list(name: str) -> list[dict[str, object]]:
    """Return the entries of a shipped class list.

    Raises ValueError, naming the lists that exist, for an unknown name.
    """
    if name not in class_list_names():
        raise ValueError(f"no class list {name!r}; there are {', '.join(class_list_names())}, or give a list in full")
    text = (resources.files("configs") / "class_lists" / f"{name}.yaml").read_text(encoding="utf-8")
    return list(yaml.safe_load(text))


def _expand(value: object) -> object:
    return load_class_list(value) if isinstance(value, str) else value


def _unique(classes: object) -> object:
    names = [item.get("name") if isinstance(item, dict) else getattr(item, "name", None) for item in classes]  # type: ignore[attr-defined]
    doubles = {name for name in names if names.count(name) > 1}
    if doubles:
        raise ValueError(f"class names must be unique; twice: {', '.join(sorted(map(str, doubles)))}")
    return classes


def _or_a_name(schema: dict[str, Any]) -> None:
    """Let the JSON Schema admit what validation admits: the name of a shipped list."""
    in_full = {key: schema.pop(key) for key in ("type", "items", "minItems", "maxItems")}
    schema["anyOf"] = [{"type": "string", "enum": class_list_names()}, in_full]


Classes = Annotated[
    tuple[ClassInfo, ...],
    Field(min_length=2, max_length=255, json_schema_extra=_or_a_name),
    BeforeValidator(lambda value: _unique(_expand(value)) if isinstance(value, (str, list, tuple)) else value),
]
