"""constraints.txt pins every package that the two make targets install, at the version that is installed."""

import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]


def pins() -> dict[str, str]:
    """Version by canonical name, as constraints.txt has it."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line.strip() and not line.startswith("#")]
    return {canonicalize_name(name): version.split()[0] for name, version in pairs}


def needed(requirements: list[str], seen: set[str]) -> Iterator[str]:
    """Names of the packages that the requirements install here, with what those require in turn."""
    for text in requirements:
        requirement = Requirement(text)
        extras = requirement.extras or {""}
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        name = canonicalize_name(requirement.name)
        key = f"{name}[{','.join(sorted(extras))}]"
        if name == "mfmd" or key in seen:
            continue
        seen.add(key)
        yield name
        try:
            inner = distribution(name).requires or []
        except PackageNotFoundError:
            continue
        kept = [i for i in map(Requirement, inner) if _wanted(i, extras)]
        yield from needed([f"{i.name}{'[' + ','.join(i.extras) + ']' if i.extras else ''}" for i in kept], seen)


def _wanted(requirement: Requirement, extras: set[str]) -> bool:
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in extras)


def test_every_installed_requirement_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [*project["dependencies"], *(r for extra in project["optional-dependencies"].values() for r in extra)]
    pinned = pins()
    names = set(needed(asked, set()))
    assert len(names) > 100, "the walk follows requirements"
    missing = sorted(names - set(pinned))
    assert not missing, f"not in constraints.txt: {missing}; `make lock` writes them"
    wrong = [
        f"{name} {distribution(name).version}"
        for name in sorted(names)
        if distribution(name).version.split("+")[0] != pinned[name]
    ]
    assert not wrong, f"installed at another version than pinned: {wrong}"


def test_every_file_of_the_rooms_is_installed() -> None:
    """An editable installation has them all, a wheel only those that pyproject.toml names."""
    data = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["package-data"]
    for room in ("configs", "storage", "adapters", "daemon"):
        patterns = [*data["*"], *data.get(room, [])]
        files = [path for path in (ROOT / room).rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")]
        missing = [
            path.relative_to(ROOT)
            for path in files
            if not any(path.relative_to(ROOT / room).match(pattern) for pattern in patterns)
        ]
        assert not missing, f"not in package-data: {missing}"
