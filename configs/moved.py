"""Settings that stand elsewhere now: they are read where they stood, and a note says where they belong."""

from typing import Any

from pydantic import BaseModel

from configs.errors import ConfigError
from configs.recipe import RECIPES, DacsSettings
from configs.section import sections_of
from configs.settings import Settings

RENAMED = {"host": "recipe"}
"""Sections of the top level that have another name now."""


def move_keys(data: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return `data` with every key where `Settings` has it now, and one sentence for each that was moved.

    A key moves as `RENAMED` says, or from a section into one directly below it (`round.seed` -> `round.advanced.seed`).
    Raises ConfigError for a key that stands in both places.
    """
    moved, notes = dict(data), list[str]()
    for old, new in RENAMED.items():
        if old in moved:
            _put(moved, new, moved.pop(old), old, new, notes)
    sections = dict(sections_of(Settings))
    _drop_needless_limit(moved, notes)
    if isinstance(recipe := moved.get("recipe"), dict):
        sections["recipe"] = RECIPES.get(str(recipe.get("name", "dacs")), DacsSettings)
    for name, section in sections.items():
        if isinstance(moved.get(name), dict):
            moved[name] = _moved(moved[name], section, name, notes)
    return moved, notes


def _drop_needless_limit(values: dict[str, Any], notes: list[str]) -> None:
    """Drop `serving.max_pixels` where `watch.max_pixels`, which holds for both now, is no larger."""
    serving, watch = values.get("serving"), values.get("watch")
    if isinstance(serving, dict) and isinstance(watch, dict):
        old, new = serving.get("max_pixels"), watch.get("max_pixels")
        if isinstance(old, int) and isinstance(new, int) and old >= new:
            values["serving"] = {key: value for key, value in serving.items() if key != "max_pixels"}
            notes.append("serving.max_pixels is gone: watch.max_pixels holds for the inference plane too; delete it")


def _moved(values: dict[str, Any], section: type[BaseModel], place: str, notes: list[str]) -> dict[str, Any]:
    values, below = dict(values), dict(sections_of(section))
    for key in [key for key in values if key not in section.model_fields]:
        target = next((name for name, inner in below.items() if key in inner.model_fields), None)
        if target is not None and isinstance(values.get(target, {}), dict):
            values[target] = dict(values.get(target, {}))
            _put(values[target], key, values.pop(key), f"{place}.{key}", f"{place}.{target}.{key}", notes)
    for name, inner in below.items():
        if isinstance(values.get(name), dict):
            values[name] = _moved(values[name], inner, f"{place}.{name}", notes)
    return values


def _put(values: dict[str, Any], key: str, value: Any, old: str, new: str, notes: list[str]) -> None:
    if key in values:
        raise ConfigError(f"{old} is now {new}, and both are set; delete {old}")
    values[key] = value
    notes.append(f"{old} is now {new}; the value is used, move it there")
