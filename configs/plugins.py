"""Plug-ins of other packages, by entry point: recipes, translations, scores, policies (docs/how-to/plug-ins.md).

Only names are read here. A plug-in is imported when the configuration names it, so a broken one that nobody names
costs nothing. A built-in name always means the built-in one.
"""

from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final

from configs.errors import ConfigError, nearest

RECIPES: Final = "mfmd.recipes"
TRANSLATIONS: Final = "mfmd.translations"
SCORES: Final = "mfmd.scores"
ADMISSION: Final = "mfmd.admission"
EVICTION: Final = "mfmd.eviction"
GROUPS: Final = (RECIPES, TRANSLATIONS, SCORES, ADMISSION, EVICTION)
"""Groups of entry points."""


def installed(group: str) -> dict[str, list[EntryPoint]]:
    """Return the entry points of `group` by name; none is imported."""
    found: dict[str, list[EntryPoint]] = {}
    for entry in entry_points(group=group):
        found.setdefault(entry.name, []).append(entry)
    return found


def checked_name(name: str, group: str, built_in: Iterable[str] = ()) -> str:
    """Return `name` if it is built in, or if exactly one package brings it. Raises ValueError."""
    if name in (words := tuple(built_in)):
        return name
    known = installed(group)
    if name not in known:
        raise ValueError(
            f"no {name!r} is built in, and no installed package brings it as entry point of {group}"
            f"{nearest(name, (*words, *known)) if words or known else ''}"
        )
    if len(known[name]) > 1:
        raise ValueError(f"{name!r}: {_owners(known[name])} bring it in {group}; uninstall all but one")
    return name


def load_plugin(name: str, group: str, setting: str) -> Callable[..., Any]:
    """Import the plug-in that `setting` names. Raises ConfigError, naming setting, plug-in and package."""
    try:
        checked_name(name, group)
    except ValueError as error:
        raise ConfigError(f"{setting}: {error}") from error
    [entry] = installed(group)[name]
    where = f"{setting}: plug-in {name!r} ({entry.value}, package {_owners([entry])})"
    try:
        found = entry.load()
    except Exception as error:  # whatever that package raises
        raise ConfigError(
            f"{where} cannot be imported: {type(error).__name__}: {error}; correct or update that package, or take its "
            "name out of the configuration"
        ) from error
    if not callable(found):
        raise ConfigError(f"{where} is a {type(found).__name__}, not a function or class")
    return found  # type: ignore[no-any-return]


def refused(built_in: Mapping[str, Iterable[str]]) -> list[str]:
    """Return a sentence for each plug-in whose name is taken; `built_in` are the words of each group."""
    told = []
    for group in GROUPS:
        words = tuple(built_in.get(group, ()))
        for name, entries in sorted(installed(group).items()):
            if name in words:
                told.append(
                    f"{_owners(entries)} brings {name!r} in {group}, which is built in; the built-in one is used"
                )
            elif len(entries) > 1:
                told.append(f"{_owners(entries)} bring {name!r} in {group}; none is used")
    return told


def _owners(entries: Iterable[EntryPoint]) -> str:
    return " and ".join(sorted({entry.dist.name if entry.dist else "an unknown package" for entry in entries}))
