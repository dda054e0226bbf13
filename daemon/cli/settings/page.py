"""docs/reference/configuration.md, written from the JSON Schema of the settings: `mfmd config schema --markdown`."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

from configs.live import is_live
from configs.recipe import RECIPES
from configs.settings import Settings

INTRODUCTION = """\
# Configuration

Written by `mfmd config schema --markdown` from the docstrings in `configs/`; a test compares the two. Do not edit.

One YAML file, by default `./mfmd.yaml`; another with `--config FILE` or `MFMD_CONFIG`. Relative paths are relative to
that file. Environment variables win over it: `MFMD_` and the keys joined by two underscores, so
`MFMD_WATCH__FOLDER=/drop` sets `watch.folder`; lists and mappings are given as JSON. An unknown key or a wrong value is
refused with one line that names file (or variable) and field, exit code 2.

Sections named `advanced` or `ablation` hold what hardly anybody changes; `mfmd init` does not write them.

A running daemon uses the settings of its start, those from the environment included, and so do its children. An edit of
the file changes nothing before `mfmd reload` (or SIGHUP). A reload applies the settings marked (live) and names the
others, which need a restart. A running round keeps the settings of its start, and children read `log` when they start.
`mfmd status` reports how the file differs from the settings in force, and whether it is valid.

The least that works:

```yaml
classes: cityscapes
watch: {folder: drop}
source: {images: source/images, labels: source/labels}
```
"""
HIDDEN = ("advanced", "ablation")
"""Names of the sections that hardly anybody changes."""
REQUIRED = "**required**"

Schema = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting."""

    path: tuple[str, ...]
    """Keys from the top of the file."""
    default: str
    """Default as JSON, or `REQUIRED`."""
    kind: str
    """What may stand there, with its limits."""
    description: str
    """Its docstring on one line."""

    @property
    def visible(self) -> bool:
        """Return whether it is outside the advanced sections."""
        return not set(self.path) & set(HIDDEN)


@dataclass(frozen=True, slots=True)
class SectionDoc:
    """A group of settings; the top level has the empty path."""

    path: tuple[str, ...]
    """Keys from the top of the file."""
    description: str
    """The docstring of its class."""
    settings: tuple[Setting, ...]
    """Its own settings, without those of inner sections."""


def render() -> str:
    """Return the whole page as markdown."""
    return INTRODUCTION + "".join(f"{line}\n" for section in sections() for line in _section(section))


def sections() -> Iterator[SectionDoc]:
    """Every section in the order of the code, the top level first; the recipes as one."""
    schema = Settings.model_json_schema()
    return _walk(schema, schema["$defs"], (), {})


def _section(section: SectionDoc) -> Iterator[str]:
    title = f"`{'.'.join(section.path)}`" if section.path else "Top level"
    yield from ("", f"## {title}", "", section.description, "")
    yield from ("| key | default | value | meaning |", "|---|---|---|---|")
    for setting in section.settings:
        live = " (live)" if is_live(".".join(setting.path)) else ""
        cells = (f"`{setting.path[-1]}`{live}", setting.default, setting.kind, setting.description)
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _walk(node: Schema, classes: Schema, path: tuple[str, ...], given: Schema) -> Iterator[SectionDoc]:
    """Yield the section `node` and those inside it; `given` are defaults that win over those of its class."""
    own: list[Setting] = []
    inner: list[Iterator[SectionDoc]] = []
    for name, field in node["properties"].items():
        options = [option for option in (field, *field.get("anyOf", ())) if "$ref" in option]
        if "discriminator" in field:
            mapping = {recipe: field["discriminator"]["mapping"][recipe] for recipe in RECIPES}
            inner.append(_recipes(mapping, classes, (*path, name)))
        elif options:
            inner.append(_walk(_of(options[0]["$ref"], classes), classes, (*path, name), field.get("default") or {}))
        else:
            required = name in node.get("required", ()) and name not in given
            default = REQUIRED if required else f"`{json.dumps(given.get(name, field.get('default')))}`"
            own.append(Setting((*path, name), default, _kind(field), _line(field.get("description"))))
    yield SectionDoc(path, _line(node.get("description")), tuple(own))
    yield from chain.from_iterable(inner)


def _of(reference: str, classes: Schema) -> Schema:
    found: Schema = classes[reference.rsplit("/", 1)[-1]]
    return found


def _recipes(mapping: Mapping[str, str], classes: Schema, path: tuple[str, ...]) -> Iterator[SectionDoc]:
    """Return the settings of all recipes as two sections, the second one advanced: each path once, with its recipes."""
    found: dict[tuple[str, ...], dict[str, Setting]] = {}
    for recipe, reference in mapping.items():
        for section in _walk(_of(reference, classes), classes, path, {}):
            for setting in section.settings:
                found.setdefault(setting.path, {})[recipe] = setting
    merged = [_merged(by_recipe, len(mapping)) for by_recipe in found.values()]
    about = {recipe: _line(_of(reference, classes).get("description")) for recipe, reference in mapping.items()}
    yield SectionDoc(path, " ".join(about.values()), tuple(setting for setting in merged if setting.visible))
    hidden = tuple(setting for setting in merged if not setting.visible)
    yield SectionDoc(hidden[0].path[:-1], "Settings of the recipes that hardly anybody changes.", hidden)


def _merged(by_recipe: Mapping[str, Setting], recipes: int) -> Setting:
    """Return one setting for several recipes, whose defaults may differ."""
    named: dict[str, list[str]] = {}
    for recipe, setting in by_recipe.items():
        named.setdefault(setting.default, []).append(recipe)
    any_of = next(iter(by_recipe.values()))
    if any_of.path[-1] == "name":
        return Setting(any_of.path, any_of.default, " | ".join(by_recipe), _described(by_recipe))
    everywhere = len(named) == 1 and len(by_recipe) == recipes
    default = any_of.default if everywhere else "; ".join(f"{value} {', '.join(who)}" for value, who in named.items())
    return Setting(any_of.path, default, any_of.kind, _described(by_recipe))


def _described(by_recipe: Mapping[str, Setting]) -> str:
    """Return the docstring; a recipe that only changes a default has none of its own."""
    return next(setting.description for setting in by_recipe.values() if setting.description)


def _line(text: str | None) -> str:
    return " ".join((text or "").split())


_WORDS = {"number": "number", "integer": "integer", "string": "text", "boolean": "true or false", "object": "mapping"}
_LIMITS = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}


def _kind(schema: Schema) -> str:
    """Return words for a JSON schema: `integer, at least 1`, `daformer | deeplabv2`, `path or null`."""
    if "anyOf" in schema:
        return " or ".join(_kind(option) for option in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return " | ".join(str(item) for item in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "null":
        return "null"
    if schema.get("type") == "array":
        return f"list of {_kind(schema['items'])}" if "type" in schema.get("items", {}) else "list"
    word = "path" if schema.get("format") == "path" else _WORDS.get(str(schema.get("type")), "value")
    return ", ".join([word, *(f"{text} {schema[key]:g}" for key, text in _LIMITS.items() if key in schema)])
