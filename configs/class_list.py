"""Class lists with palettes: by name from `configs/class_lists/*.yaml`, or as names, with or without colours."""

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

Channel = Annotated[int, Field(ge=0, le=255)]


def _color_may_be_missing(schema: dict[str, Any]) -> None:
    schema["required"] = ["name"]


class ClassInfo(BaseModel):
    """One class: its index is its place in the list."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, json_schema_extra=_color_may_be_missing
    )

    name: Annotated[str, Field(min_length=1)]
    """Name, unique in the list."""
    color: tuple[Channel, Channel, Channel]
    """Colour in masks and overlays (RGB, 0-255); a list that gives none gets one of `class_colors.txt`."""


def shipped(kind: Literal["class_lists", "presets"]) -> Mapping[str, Traversable]:
    """Return the YAML files of one kind that ship with mfmd, by name."""
    files = sorted((resources.files("configs") / kind).iterdir(), key=lambda file: file.name)
    return {file.name.removesuffix(".yaml"): file for file in files if file.name.endswith(".yaml")}


@cache
def load_class_list(name: str) -> list[dict[str, object]]:
    """Return the entries of a shipped class list; raise ValueError, naming the lists that exist, for another name."""
    lists = shipped("class_lists")
    if name not in lists:
        raise ValueError(f"no class list {name!r}; there are {', '.join(lists)}, or give names: background,vessel")
    return list(yaml.safe_load(lists[name].read_text(encoding="utf-8")))


_PALETTES = ("cityscapes", "ade20k", "voc", "pascal_context", "mapillary", "camvid")
"""Lists whose colours a model with their names gets, the most usual first."""


def classes_named(names: Sequence[str]) -> str | list[dict[str, object]] | list[str]:
    """Return `classes` for the class names of a model, in its order.

    A shipped list of these names in this order gives its own name. A list that has each of them gives its colours.
    Otherwise they stay names, whose colours come from the table for the colour-blind.
    """
    plain = [plain_name(name) for name in names]
    for list_name in _PALETTES:
        colors = {plain_name(str(entry["name"])): entry["color"] for entry in load_class_list(list_name)}
        if plain == [*colors]:
            return list_name
        if colors.keys() >= {*plain}:
            return [{"name": name, "color": colors[key]} for name, key in zip(names, plain, strict=True)]
    return [*names]


def plain_name(name: str) -> str:
    """Return what counts of a class name: its letters and figures, in one case and one form of Unicode."""
    return re.sub(r"[\s_-]+", "", unicodedata.normalize("NFKC", name).casefold())


def _expand(value: object) -> object:
    """Return entries with names and colours: of a shipped list, of `a,b,c`, or of a list that may lack colours."""
    if isinstance(value, str):
        value = [name.strip() for name in value.split(",")] if "," in value else load_class_list(value)
    if not isinstance(value, Sequence):
        return value
    entries = [{"name": item} if isinstance(item, str) else item for item in value]
    for number, item in enumerate(entries):
        name = item.get("name", "") if isinstance(item, Mapping) else item
        if not isinstance(name, str | ClassInfo):
            raise ValueError(f"class {number}: YAML reads this name as {name!r}, not as text; put it in quotes")
    return [*_coloured(entries)]


def _coloured(entries: Sequence[Any]) -> Iterator[Any]:
    """Give a colour to each entry without one: that of its index, or the next in the table that no entry has."""
    table = distinct_colors()
    colors = [item.get("color") if isinstance(item, Mapping) else None for item in entries]
    taken = [[*color] if isinstance(color, list | tuple) else color for color in colors]
    for index, item in enumerate(entries):
        if isinstance(item, Mapping) and colors[index] is None:
            free = (color for color in [*table[index:], *table[:index]] if color not in taken)
            taken.append(next(free, table[0]))
            yield {**item, "color": taken[-1]}
        else:
            yield item


@cache
def distinct_colors() -> list[list[int]]:
    """Return the table of colours (RGB), the most distinct first.

    Okabe and Ito's seven for the colour-blind, then always the colour of a 16x16x16 grid that is furthest (CIELAB) from
    black and all before it for the eye that confuses the two most: any trichromat, protanope, deuteranope, tritanope.
    """
    text = (resources.files("configs") / "class_colors.txt").read_text(encoding="ascii")
    return [[*bytes.fromhex(color)] for color in text.split()]


def _unique(classes: tuple[ClassInfo, ...]) -> tuple[ClassInfo, ...]:
    names = [item.name for item in classes]
    doubles = {name for name in names if names.count(name) > 1}
    if doubles:
        raise ValueError(f"class names must be unique; twice: {', '.join(sorted(doubles))}")
    return classes


def _or_a_name(schema: dict[str, Any]) -> None:
    """Let the JSON Schema admit what validation admits: the name of a shipped list, and names alone."""
    in_full = {key: schema.pop(key) for key in ("type", "items", "minItems", "maxItems")}
    in_full["items"] = {"anyOf": [{"type": "string"}, in_full["items"]]}
    named = {"type": "string", "enum": list(shipped("class_lists"))}
    schema["anyOf"] = [named, {"type": "string", "pattern": ","}, in_full]


Classes = Annotated[
    tuple[ClassInfo, ...],
    Field(min_length=2, max_length=255, json_schema_extra=_or_a_name),
    BeforeValidator(_expand),
    AfterValidator(_unique),
]
