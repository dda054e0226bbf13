"""docs/reference/configuration.md, written from the JSON Schema of the settings: `mfmd config schema --markdown`."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from configs.live import is_live
from configs.recipe import RECIPES
from configs.settings import Settings

INTRODUCTION = """\
# Configuration

Written by `mfmd config schema --markdown` from the docstrings in `configs/`; a test compares the two. Do not edit.

One YAML file, by default `./mfmd.yaml`; another with `--config FILE` or `MFMD_CONFIG`. Relative paths are relative to
that file. Environment variables win over it: `MFMD_` and the keys joined by two underscores, so
`MFMD_WATCH__FOLDER=/drop` sets `watch.folder`; lists and mappings are given as JSON. An unknown key, an unknown or
empty variable or a wrong value is refused with one line that names file (or variable) and field, exit code 2. What
Kubernetes sets for a service named `mfmd` (`MFMD_SERVICE_HOST`, `MFMD_PORT=tcp://...`) is left alone.

Sections named `advanced` or `ablation` hold rarely changed settings; `mfmd init` does not write them.

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

A key that stands twice is refused with both lines. `~` at the start of a path is the home directory.

## Folders that may not overlap

They must not be equal or lie in each other; links and mounts are followed. Otherwise `mfmd config validate`, `mfmd
doctor` and every start name both settings. While a link is turned so that they do, nothing is taken, moved, deleted,
written to `masks` or published, and `mfmd status` names both.

| folders | because |
|---|---|
| `watch.folder` and any other | what lies in it is taken as new images, and `after_commit` moves or deletes it |
| what mfmd writes (`state`, `done_folder`, `quarantine`, `masks`, `publish`) and any other | it would be mixed up |
| `source.images` and `source.validation_images` | the gate would score on images that rounds train on |
| with a `quarantine`: `watch.folder` and a file of the configuration | a quarantine takes all that is no image |

Accepted: folders of images and labels in each other; anything below an ignored name of the drop folder (`drop/.masks`)
or, with `watch.advanced.recursive: false`, in its sub-folders; everything side by side in one folder.
"""
HIDDEN = ("advanced", "ablation")
"""Names of the sections with rarely changed settings."""

Schema = Mapping[str, Any]


class Setting(NamedTuple):
    """One setting; `default` is JSON or `**required**`, `kind` says in words what may stand there."""

    path: tuple[str, ...]
    default: str
    kind: str
    description: str

    @property
    def visible(self) -> bool:
        """Return whether it is outside the advanced sections."""
        return not set(self.path) & set(HIDDEN)


class SectionDoc(NamedTuple):
    """A group of settings, without those of inner sections; the top level has the empty path."""

    path: tuple[str, ...]
    description: str
    settings: list[Setting]


def render() -> str:
    """Return the whole page as markdown."""
    return INTRODUCTION + "".join(f"{line}\n" for section in sections() for line in _section(section))


def sections() -> Iterator[SectionDoc]:
    """Yield every section in the order of the code, the top level first; the recipes as one."""
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
    inner: list[SectionDoc] = []
    for name, field in node["properties"].items():
        place = (*path, name)
        references = [option["$ref"] for option in (field, *field.get("anyOf", ())) if "$ref" in option]
        if "discriminator" in field:
            mapping = field["discriminator"]["mapping"]
            inner += _recipes({recipe: _of(mapping[recipe], classes) for recipe in RECIPES}, classes, place)
        elif references:
            inner += _walk(_of(references[0], classes), classes, place, field.get("default") or {})
        else:
            required = name in node.get("required", ()) and name not in given
            default = "**required**" if required else f"`{json.dumps(given.get(name, field.get('default')))}`"
            own.append(Setting(place, default, _kind(field), _description(field)))
    yield SectionDoc(path, _description(node), own)
    yield from inner


def _of(reference: str, classes: Schema) -> Schema:
    found: Schema = classes[reference.rsplit("/", 1)[-1]]
    return found


def _description(schema: Schema) -> str:
    return " ".join(schema.get("description", "").split())


def _recipes(recipes: Mapping[str, Schema], classes: Schema, path: tuple[str, ...]) -> Iterator[SectionDoc]:
    """Yield the settings of all recipes section by section, the visible one first: each path once, with its recipes."""
    found: dict[tuple[str, ...], dict[tuple[str, ...], dict[str, Setting]]] = {}
    about = {path: " ".join(_description(schema) for schema in recipes.values())}
    for recipe, schema in recipes.items():
        for section in _walk(schema, classes, path, {}):
            about.setdefault(section.path, section.description)
            for setting in section.settings:
                found.setdefault(section.path, {}).setdefault(setting.path, {})[recipe] = setting
    for place, settings in found.items():
        merged = [_merged(by_recipe, len(recipes)) for by_recipe in settings.values()]
        yield SectionDoc(place, about[place], merged)


def _merged(by_recipe: Mapping[str, Setting], recipes: int) -> Setting:
    """Return one setting for several recipes; a recipe that only changes the default describes nothing itself."""
    named: dict[str, list[str]] = {}
    for recipe, setting in by_recipe.items():
        named.setdefault(setting.default, []).append(recipe)
    path, default, kind, _ = next(iter(by_recipe.values()))
    description = next(setting.description for setting in by_recipe.values() if setting.description)
    if path[-1] == "name":
        return Setting(path, default, " | ".join(by_recipe), description)
    if len(named) > 1 or len(by_recipe) < recipes:
        default = "; ".join(f"{value} {', '.join(who)}" for value, who in named.items())
    return Setting(path, default, kind, description)


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
