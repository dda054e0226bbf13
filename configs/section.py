"""What every section of the settings is made of: the base class and the types of fields."""

import os
from pathlib import Path
from typing import Annotated, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, model_validator
from pydantic.fields import FieldInfo

LONGEST_STATE = 470
"""Bytes of the longest state directory: SQLite opens no path over 511, and names of its files follow."""


def expanded(path: Path) -> Path:
    """Return `path` with the home directory in the place of a leading `~` or `~user`. Raises ValueError."""
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise ValueError(f"{path}: no home directory of {path.parts[0]!r}; give the whole path") from error


def _not_empty(value: object) -> object:
    if isinstance(value, str) and not value.strip():
        raise ValueError("an empty path; name one, or leave the setting out")
    return value


def _relative_to_file(path: Path, info: ValidationInfo) -> Path:
    """Take `path` as relative to the folder of the YAML file, given by `configs.load` as validation context `base`.

    Links stay, so that one that is turned to another folder is followed; `..` means what it means to the system.
    """
    base = info.context.get("base") if info.context else None
    if not base:
        return path
    parts = (Path(base) / expanded(path)).parts
    ups = max((place for place, part in enumerate(parts, 1) if part == ".."), default=0)
    return Path(os.path.realpath(Path(*parts[:ups])), *parts[ups:]) if ups else Path(*parts)


def _without_links(path: Path, info: ValidationInfo) -> Path:
    real = Path(os.path.realpath(path)) if info.context and info.context.get("base") else path
    if (size := len(os.fsencode(real))) > LONGEST_STATE:
        raise ValueError(f"a path of {size} bytes, where databases may have {LONGEST_STATE}; name a shorter one")
    return real


def _text(path: Path) -> Path:
    """Children get the settings as a JSON file, which holds text only."""
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{str(path)!a}: bytes that are not text; rename the folder in UTF-8, or, if it is, set LANG=C.UTF-8"
        ) from error
    return path


def bare_no(value: object) -> object:
    """YAML 1.1 reads a bare `no` as false; in a field whose values include "no" it means what it says."""
    return "no" if value is False else value


ConfigPath = Annotated[Path, BeforeValidator(_not_empty), AfterValidator(_relative_to_file), AfterValidator(_text)]
"""A path relative to the configuration file, by its own name: a link may be turned while mfmd runs."""
StatePath = Annotated[ConfigPath, AfterValidator(_without_links), AfterValidator(_text)]
"""A path that the process holds open, so it stays with the folder that it had at the start."""
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
ProperFraction = Annotated[float, Field(gt=0.0, lt=1.0)]
Seconds = Annotated[float, Field(ge=0.0)]
PositiveInt = Annotated[int, Field(ge=1)]
NotNegative = Annotated[float, Field(ge=0.0)]
NotNegativeInt = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0.0)]
Port = Annotated[int, Field(ge=0, le=65535)]


def meet(one: str, other: str) -> bool:
    """Return whether one port of these two hosts is the same socket: equal hosts, or one that stands for every host."""
    hosts = {"127.0.0.1" if host.lower() in ("localhost", "::1") else host.lower() for host in (one, other)}
    return len(hosts) == 1 or not hosts.isdisjoint({"0.0.0.0", "::", ""})


class Section(BaseModel):
    """A group of settings: unknown keys are refused, values are frozen, field docstrings become descriptions."""

    model_config = ConfigDict(
        hide_input_in_errors=True, extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    @model_validator(mode="before")
    @classmethod
    def _as_written(cls, values: object) -> object:
        """Take a section with nothing below it for its defaults, and `yes` for no number: pydantic takes it for 1."""
        if not isinstance(values, dict):
            return values
        fields = {key: cls.model_fields[key] for key in values if key in cls.model_fields}
        empty = {key for key, field in fields.items() if values[key] is None and _is_section(field)}
        truths = {
            key for key, field in fields.items() if isinstance(values[key], bool) and _is_number(field.annotation)
        }
        return {
            key: str(value).lower() if key in truths else value for key, value in values.items() if key not in empty
        }


def _is_section(field: FieldInfo) -> bool:
    kind = field.annotation
    return isinstance(field.default, BaseModel) or (isinstance(kind, type) and issubclass(kind, BaseModel))


def _is_number(kind: object) -> bool:
    parts = get_args(kind)
    return kind in (int, float) or (bool not in parts and any(map(_is_number, parts)))


def sections_of(section: type[BaseModel]) -> list[tuple[str, type[BaseModel]]]:
    """Name and class of each section directly inside `section`; recipes are not among them."""
    found = []
    for name, field in section.model_fields.items():
        options = [field.annotation, *getattr(field.annotation, "__args__", ())]
        if models := [item for item in options if isinstance(item, type) and issubclass(item, BaseModel)]:
            found.append((name, models[0]))
    return found
