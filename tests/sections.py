"""Sections of settings for tests: a name that stands in `advanced` or `ablation` is put there."""

from typing import Any, TypeVar

from configs.load import merge
from configs.recipe import RECIPES, RecipeBase
from configs.section import Section, sections_of

S = TypeVar("S", bound=Section)


def section(model: type[S], **values: Any) -> S:
    """A section of settings with `values`, wherever in it they stand."""
    return model.model_validate(placed(model, values))


def changed(settings: S, **values: Any) -> S:
    """`settings` with other `values`, wherever in it they stand."""
    return type(settings).model_validate(merge(settings.model_dump(), placed(type(settings), values)))


def recipe_settings(name: str = "dacs", **values: Any) -> Any:
    """Settings of a recipe."""
    return section(RECIPES[name], name=name, **values)


def placed(model: type[Section | RecipeBase], values: dict[str, Any]) -> dict[str, Any]:
    """`values` as they stand in a file."""
    place = {
        key: name
        for name, inner in sections_of(model)
        if name in ("advanced", "ablation")
        for key in inner.model_fields
    }
    found: dict[str, Any] = {}
    for key, value in values.items():
        if key in place.values():
            value = {**found.get(key, {}), **value}
        (found.setdefault(place[key], {}) if key in place else found)[key] = value
    return found
