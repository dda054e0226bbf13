"""Walk the settings: every field with its default, its type and the docstring that explains it.

`mfmd init` and docs/reference/configuration.md are both written from this walk, so neither can drift from the code.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from configs.live import is_live
from configs.settings import Settings


class _Required:
    """The default of a field that has none."""

    def __repr__(self) -> str:
        return "required"


REQUIRED = _Required()


@dataclass(frozen=True, slots=True)
class SettingDoc:
    """One setting."""

    path: tuple[str, ...]
    """Keys from the top of the file."""
    default: Any
    """Default as JSON-like value, or REQUIRED."""
    kind: str
    """What may stand there, with its limits, for people."""
    description: str
    """The field's docstring on one line."""

    @property
    def live(self) -> bool:
        """Whether a reload changes it in a running daemon."""
        return is_live(".".join(self.path))

    @property
    def variable(self) -> str:
        """The environment variable that sets it."""
        return "MFMD_" + "__".join(self.path).upper()


@dataclass(frozen=True, slots=True)
class SectionDoc:
    """A group of settings; the top level has the empty path."""

    path: tuple[str, ...]
    """Keys from the top of the file."""
    description: str
    """The docstring of the section's class."""
    optional: bool
    """Whether the whole section may be left out although it has required fields."""
    settings: tuple[SettingDoc, ...]
    """Its own settings, without those of inner sections."""


def sections() -> Iterator[SectionDoc]:
    """Every section in the order of the code, the top level first."""
    yield from _walk(Settings, (), None, optional=False)


def _walk(
    model: type[BaseModel], path: tuple[str, ...], given: BaseModel | None, *, optional: bool
) -> Iterator[SectionDoc]:
    schema = model.model_json_schema()
    own, inner = [], []
    for name, field in model.model_fields.items():
        default = _default(field) if given is None else getattr(given, name)
        section = _section_of(field)
        if section is None:
            kind = _kind(schema["properties"][name])
            own.append(SettingDoc((*path, name), _plain(default), kind, _line(field.description)))
        else:
            instance = default if isinstance(default, BaseModel) else None
            inner.append(_walk(section, (*path, name), instance, optional=default is None))
    yield SectionDoc(path, _line(model.__doc__), optional, tuple(own))
    for walk in inner:
        yield from walk


def _section_of(field: FieldInfo) -> type[BaseModel] | None:
    """The section class behind `field`, whether optional or not; None for a plain setting."""
    options = [field.annotation, *getattr(field.annotation, "__args__", ())]
    if getattr(field.annotation, "__origin__", None) is tuple:
        return None
    return next((item for item in options if isinstance(item, type) and issubclass(item, BaseModel)), None)


def _default(field: FieldInfo) -> Any:
    return REQUIRED if field.is_required() else field.get_default(call_default_factory=True, validated_data={})


def _plain(value: Any) -> Any:
    """`value` as YAML and JSON know it."""
    if isinstance(value, Path):
        return value.as_posix()
    if isinstance(value, SecretStr):
        return "**********"
    return list(value) if isinstance(value, tuple) else value


def _line(text: str | None) -> str:
    return " ".join((text or "").split())


_WORDS = {"number": "number", "integer": "integer", "string": "text", "boolean": "true or false", "object": "mapping"}
_LIMITS = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}


def _kind(schema: dict[str, Any]) -> str:
    """Words for a JSON schema: `integer, at least 1`, `daformer | deeplabv2`, `path or null`."""
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
