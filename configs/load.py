"""Read a configuration: YAML file + environment -> `Settings`, or one clear line about what is wrong."""

import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict

from configs.errors import ConfigError, nearest
from configs.folders import check_folders
from configs.moved import RENAMED, move_keys
from configs.recipe import RECIPES
from configs.section import expanded, sections_of
from configs.settings import Settings
from configs.yaml_file import parse_mapping, read_mapping

STATE_VARIABLE, FAILPOINT = "MFMD_STATE", "MFMD_FAILPOINT"
RESERVED_ENV = frozenset({"MFMD_CONFIG", FAILPOINT})
"""Environment variables with our prefix that are not settings: `MFMD_CONFIG` names the file, `MFMD_FAILPOINT` a place
where a test ends the process (`storage/failpoints.py`)."""

SERVICE_LINK = re.compile(
    r"MFMD\w*?_(SERVICE_(HOST=.*|PORT(_\w+)?=\d+)|PORT(_\d+_[A-Z]+)?=[a-z]+://.*"
    r"|PORT_\d+_[A-Z]+_(PROTO=[a-z]+|PORT=\d+|ADDR=.*)|NAME=/.*|ENV_\w+=.*)",
    re.DOTALL,
)
"""`NAME=VALUE` of what Kubernetes and Docker put into a container for a service whose name begins with `mfmd`. Names
alone do not tell: `MFMD_SERVING_PORT=9000` is a setting with an underscore too few."""

RETIRED = {
    "network.hf_config": "removed: `mfmd import` records it in the version's manifest; delete the line",
    "network.hf_preprocessor": "removed: `mfmd import` records it in the version's manifest; delete the line",
    "recipe.detail_loss_weight": "removed: always 0.1, as published; delete the line",
    "serving.max_pixels": "removed: watch.max_pixels holds for the inference plane too; delete the line, or set that",
    "serving.quantize": (
        "removed: int8 is no longer a number format of the server; delete the line, set serving.precision: bf16 where "
        "the processor computes in it, or export a version (`mfmd export --format onnx`) to a runtime with int8"
    ),
    "watch.video_seconds": "moved: set videos.seconds, or videos.enabled: false to leave videos alone",
    "watch.max_video_bytes": "moved: the largest video is called videos.max_bytes now",
    "serving.repository_token": (
        "removed: a client of the inference plane can no longer load or unload a version; delete the line, and use "
        "`mfmd promote` and `mfmd rollback`"
    ),
}
"""Dotted name of a setting that is gone -> what to use instead. Keys that only moved are read (`moved.py`)."""

log = logging.getLogger(__name__)


class _Environment(Settings, BaseSettings):
    """The same fields, for `EnvSettingsSource` to look up; never instantiated."""

    model_config = SettingsConfigDict(env_prefix="MFMD_", env_nested_delimiter="__")


class _EnvironmentSource(EnvSettingsSource):
    """Text that is not JSON stays text: `MFMD_CLASSES=camvid` names a list, and validation judges the rest."""

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:
        try:
            return super().decode_complex_value(field_name, field, value)
        except ValueError:
            return value


def load_settings(path: Path, text: str | None = None) -> Settings:
    """Load settings from the YAML file at `path`, or from its `text`; environment variables win over the file.

    Raises ConfigError (one line: file, field, remedy) when the file is missing, is not YAML or holds a wrong value.
    """
    data = read_mapping(path) if text is None else parse_mapping(text, path)
    _refuse_unknown_environment()
    environment = _EnvironmentSource(_Environment)()
    try:
        return _validated(path, data, environment)
    except ConfigError as error:
        raise ConfigError(_with_variables(str(error), path, data, environment)) from error


def _with_variables(message: str, path: Path, data: Mapping[str, Any], environment: Mapping[str, Any]) -> str:
    """Return `message` with the variables that set what it names; they stand first if no setting of the file does."""
    found = [(key, name) for key, name in _variables(environment) if _names(message, key) and name not in message]
    if not found:
        return message
    by_variable, start = ", ".join(name for _, name in found), f"{path}: "
    in_file = {key for key, _ in _variables(data) if _names(message, key)}
    if in_file.difference(key for key, _ in found) or not message.startswith(start):
        return f"{message} (set by {by_variable})"
    return f"environment: {by_variable}: {message.removeprefix(start)}"


def _names(message: str, key: str) -> bool:
    """Return whether `message` names a setting; the one word of a setting outside sections may be a common one."""
    form = rf"{re.escape(key)}(?!\w)" if "." in key else f"({key}:? /|`{key}`)"
    return re.search(rf"(?<![\w./]){form}", message) is not None


def _validated(path: Path, data: Mapping[str, Any], environment: Mapping[str, Any]) -> Settings:
    try:
        values, notes = move_keys(merge(data, environment))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    for note in notes:
        log.warning("%s: %s", path, note)
    try:
        settings = Settings.model_validate(values, context={"base": path.resolve().parent})
    except ValidationError as error:
        first = error.errors()[0]
        place = _variable(first, environment) or str(path)
        raise ConfigError(f"{place}: {_explain(first)}") from error
    check_folders(settings, path)
    return settings


def state_directory(path: Path) -> Path:
    """Return the state directory that `path` or the environment names, even if the rest of the file is invalid.

    Raises ConfigError when the file cannot be read or names the directory in no way that can be understood.
    """
    named = os.environ.get(STATE_VARIABLE) or _named_state(path)
    try:
        return (path.resolve().parent / expanded(Path(named))).resolve()
    except ValueError as error:
        raise ConfigError(f"{path}: state: {error}") from error


def without_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """`environment` without the variables that set settings: for a child that is given the resolved ones."""
    return {
        name: value for name, value in environment.items() if not name.upper().startswith("MFMD_") or name == FAILPOINT
    }


def _named_state(path: Path) -> str:
    """Return `state` of a file that may be no YAML: then its line at the left margin is read by itself."""
    try:
        values = read_mapping(path)
    except ConfigError:
        if not path.is_file():
            raise
        line = re.search(r"^state:.*$", path.read_text(encoding="utf-8", errors="replace"), flags=re.MULTILINE)
        try:
            values = yaml.safe_load(line.group()) if line else {}
        except yaml.YAMLError as error:
            raise ConfigError(f"{path}: state: not a readable value; set MFMD_STATE instead") from error
    named = values.get("state", Settings.model_fields["state"].default)
    if not isinstance(named, str | Path):
        raise ConfigError(f"{path}: state: expected a path, found a {type(named).__name__}")
    return str(named)


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Lay `over` on `base`, section by section."""
    merged = dict(base)
    for key, value in over.items():
        inner = merged.get(key)
        merged[key] = merge(inner, value) if isinstance(value, Mapping) and isinstance(inner, Mapping) else value
    return merged


def _variable(error: ErrorDetails, environment: Mapping[str, Any]) -> str | None:
    """Return `environment: MFMD_X__Y` if the wrong value came from there and not from the file.

    Of a section that is wrong as a whole, all the variables that set something in it.
    """
    value: Any = environment
    names = _keys(error)
    if not names:
        return None  # about several sections
    for name in names:
        if not isinstance(value, Mapping) or name not in value:
            return None
        value = value[name]
    if isinstance(value, Mapping):
        return f"environment: {', '.join(name for _, name in _variables(value, names))}"
    return f"environment: MFMD_{'__'.join(names).upper()}"


def _variables(
    values: Mapping[str, Any], place: Sequence[str] = (), above: Sequence[int] = ()
) -> list[tuple[str, str]]:
    """Return the dotted name and the environment variable of every setting in `values`.

    `above`: identities of the sections around it; an alias of one of them in YAML would have no end.
    """
    found = []
    for key, value in values.items():
        keys = [*place, str(key)]
        if isinstance(value, Mapping):
            found += [] if id(value) in above else _variables(value, keys, [*above, id(values)])
        else:
            found.append((".".join(keys), f"MFMD_{'__'.join(keys).upper()}"))
    return found


def _refuse_unknown_environment() -> None:
    known = {f"MFMD_{name}".upper() for name in Settings.model_fields}
    keys = {f"MFMD_{name}__{key}".upper() for name, model in sections_of(Settings) for key in model.model_fields}
    for name, value in os.environ.items():
        section = name.split("__")[0].upper()
        if section in known and not value:
            raise ConfigError(f"environment: {name}: is empty; give it a value, or unset it")
        if not name.upper().startswith("MFMD_") or section in known | RESERVED_ENV:
            continue
        if not SERVICE_LINK.fullmatch(f"{name}={value}"):
            old = section.removeprefix("MFMD_").lower()
            gone = f"renamed: this section is now `{RENAMED[old]}`" if old in RENAMED else RETIRED.get(old)
            raise ConfigError(f"environment: {name}: {gone or 'unknown setting' + nearest(name.upper(), known | keys)}")


def _explain(error: ErrorDetails) -> str:
    keys = _keys(error)
    field = ".".join(keys) or "(top level)"
    if error["type"] == "extra_forbidden":
        return f"{field}: {_unknown(error, field)}"
    if error["type"] == "missing":
        return f"{field}: required, but not set"
    if error["type"] == "union_tag_invalid":
        return f"{field}.name: no recipe {error['ctx']['tag']!r}{nearest(error['ctx']['tag'], RECIPES)}"
    message = error["msg"].removeprefix("Value error, ")
    if not keys:
        return message  # about several sections: it names the field itself
    value = error.get("input")
    secret = any("token" in key or key == "url" for key in keys)  # `token: 1234` is wrong, and a secret all the same
    shown = f" (got {value!r})" if isinstance(value, (str, int, float, bool)) and not secret else ""
    return f"{field}: {message}{shown}"


def _keys(error: ErrorDetails) -> list[str]:
    """Keys of the file that lead to the error: pydantic's place without the recipe that it tried."""
    keys = [str(part) for part in error["loc"]]
    return keys[:1] + keys[2:] if keys[:1] == ["recipe"] else keys


def _unknown(error: ErrorDetails, field: str) -> str:
    *place, key = (str(part) for part in error["loc"])
    section = _section_at(place)
    keys = _places(section)
    if field in RETIRED:
        return RETIRED[field]
    if others := [name for name, recipe in RECIPES.items() if place[:1] == ["recipe"] and key in _places(recipe)]:
        return f"a setting of {', '.join(others)}; recipe.name is {place[1]}"
    return f"unknown key{nearest(key, keys if place else section.model_fields)}"


def _places(section: type[BaseModel]) -> set[str]:
    """Return the keys of a section and of those directly below it."""
    below = (inner.model_fields for _, inner in sections_of(section))
    return set(section.model_fields).union(*below)


def _section_at(place: list[str]) -> type[BaseModel]:
    section: type[BaseModel] = Settings
    for part in place:
        section = RECIPES[part] if part in RECIPES else dict(sections_of(section)).get(part, section)
    return section
