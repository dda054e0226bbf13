"""Read a configuration file as text: YAML or JSON -> a mapping, or one clear line about what is wrong with it."""

import json
from pathlib import Path
from typing import Any

import yaml

from configs.errors import ConfigError


def read_mapping(path: Path) -> dict[str, Any]:
    """Return the keys and values of a YAML file, or of a JSON file by its name; an empty file holds none.

    Raises ConfigError when the file is missing or not UTF-8, is not YAML, or gives a key twice.
    """
    try:
        return parse_mapping(path.read_text(encoding="utf-8-sig"), path)
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file; `mfmd init` writes one") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: cannot be read: not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error


def parse_mapping(text: str, path: Path) -> dict[str, Any]:
    """Return the keys and values of a file's text. Raises ConfigError, like `read_mapping`."""
    try:
        json_text = path.suffix == ".json"
        data = json.loads(text, object_pairs_hook=_once) if json_text else yaml.load(text, _Loader)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}: not valid JSON: line {error.lineno}, column {error.colno}: {error.msg}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {_what_is_wrong(error)}") from None  # its text shows lines
    except RecursionError:
        raise ConfigError(f"{path}: not valid: nested too deeply") from None
    except ValueError as error:  # a date or a number that does not exist; a key that stands twice in JSON
        raise ConfigError(f"{path}: not valid: {error}") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected `key: value` lines, found a {type(data).__name__}")
    return data


class _Loader(yaml.SafeLoader):
    """YAML in which no key stands twice: yaml itself keeps the last one and drops the others without a word."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Compose a mapping; raise ComposerError, naming both lines, when it has a key twice."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen: dict[tuple[str, str], yaml.Node] = {}
        for key, _ in node.value:
            first = seen.setdefault((key.tag, str(key.value)), key)
            if first is not key:
                problem = f"`{key.value}` stands twice, first in line {first.start_mark.line + 1}; keep one"
                raise yaml.composer.ComposerError(None, None, problem, key.start_mark)
        return node

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Take over merged keys (`<<`), each once: a chain of merges would otherwise grow tenfold a link."""
        super().flatten_mapping(node)
        node.value = [*{(key.tag, str(key.value)): (key, value) for key, value in node.value}.values()]


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [key for key, _ in pairs]
    if doubles := {key for key in names if names.count(key) > 1}:
        raise ValueError(f"`{min(doubles)}` stands twice; keep one")
    return dict(pairs)


def _what_is_wrong(error: yaml.YAMLError) -> str:
    """Place and problem, without the lines around it that yaml shows: one of them may hold a token."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return " ".join(str(error).split())
    mark = error.problem_mark
    place = f"line {mark.line + 1}, column {mark.column + 1}"
    quoted = "'" in (error.problem or "") and "token" in (mark.buffer or "").lower()
    return place if quoted else f"{place}: {error.problem}"
