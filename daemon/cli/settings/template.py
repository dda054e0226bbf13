"""The commented configuration that `mfmd init` writes: what must be set, then every default, commented out."""

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from daemon.cli.settings.reference import REQUIRED, SectionDoc, SettingDoc, sections

HEADER = """\
# Configuration of mfmd, written by `mfmd init`.
# Next: `mfmd doctor`, then `mfmd pretrain` (or `mfmd import PATH`), then `mfmd run`.
#
# Lines like `#height: 512` show defaults. To change one, remove its `#`, and the `#` before the name of its section.
# Paths are relative to this file. Environment variables win over it: MFMD_WATCH__FOLDER sets watch.folder.
"""
WIDTH = 110
PLACEHOLDERS: dict[tuple[str, ...], str] = {
    ("source", "images"): "source/images",
    ("source", "labels"): "source/labels",
}
"""What stands in the commented-out `source` section, whose paths have no default."""


def render(values: Mapping[tuple[str, ...], Any]) -> str:
    """The file's text. `values` maps setting paths, such as `("watch", "folder")`, to what the user chose.

    A section is live when one of its settings was chosen; other settings show their default, commented out.
    """
    return HEADER + "".join(f"{line}\n" for section in sections() for line in _section(section, values))


def _section(section: SectionDoc, values: Mapping[tuple[str, ...], Any]) -> Iterator[str]:
    depth = len(section.path)
    live = depth == 0 or any(path[:depth] == section.path for path in values)
    mark = "" if live else "#"
    if depth:
        if depth == 1:
            yield ""
        yield from (mark + line for line in _comment(section.description, depth - 1))
        yield f"{mark}{'  ' * (depth - 1)}{section.path[-1]}:"
    for setting in section.settings:
        if depth == 0:
            yield ""
        yield from (mark + line for line in _comment(setting.description, depth))
        yield _setting(setting, values, live=live)


def _setting(setting: SettingDoc, values: Mapping[tuple[str, ...], Any], *, live: bool) -> str:
    indent, name = "  " * (len(setting.path) - 1), setting.path[-1]
    if setting.path in values:
        return f"{indent}{name}: {_scalar(values[setting.path])}"
    default = PLACEHOLDERS.get(setting.path) if setting.default is REQUIRED else setting.default
    line = f"{name}: {_scalar(default)}"
    return f"{indent}#{line}" if live else f"#{indent}{line}"


def _comment(text: str, depth: int) -> Iterator[str]:
    prefix = "  " * depth + "# "
    yield from textwrap.wrap(text, WIDTH, initial_indent=prefix, subsequent_indent=prefix)


def _scalar(value: Any) -> str:
    """`value` as one line of YAML, quoted where YAML would read it differently (`no` is a boolean)."""
    return yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True).splitlines()[0]
