"""The four packages of mfmd come from one place, and no other project installs into them."""

from importlib.metadata import packages_distributions
from importlib.util import find_spec
from pathlib import Path

from daemon.doctor.finding import Finding

PACKAGES = ("configs", "storage", "adapters", "daemon")
OURS = "mfmd"
REMEDY = "install mfmd in an environment of its own"


def examine_packages() -> list[Finding]:
    """Report packages that another project shadows or overwrites.

    PyPI's python-daemon installs `daemon` and PyPI's adapters installs `adapters`.
    """
    places = {name: _folder(name) for name in PACKAGES}
    if len(set(places.values())) > 1:
        detail = ", ".join(f"{name} in {folder}" for name, folder in places.items())
        return [Finding.fail("packages", f"not from one place: {detail}", REMEDY)]
    owners = packages_distributions()
    others = sorted({owner for name in PACKAGES for owner in owners.get(name, [])} - {OURS})
    if others:
        return [Finding.fail("packages", f"{', '.join(others)} installs packages of the same names", REMEDY)]
    return [Finding.ok("packages", f"all from {places['daemon']}")]


def _folder(name: str) -> Path | None:
    """Return the folder that holds the package, None where it is missing."""
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations))).parent
