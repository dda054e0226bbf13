"""Check whether the refs name complete versions; they can be rewritten from the history."""

from collections.abc import Iterator
from functools import partial

from storage.checking.catalog import REPAIR
from storage.checking.problem import Problem, Scope
from storage.checking.registry import damage_of_version
from storage.errors import StorageError
from storage.registry.refs import Refs
from storage.registry.registry import CheckpointRegistry


def check_refs(scope: Scope) -> Iterator[Problem]:
    """Return refs that cannot be read, name no version, or are missing."""
    registry = CheckpointRegistry(scope.layout.checkpoints)
    restore = partial(_restore, registry)
    yield from _serving(registry, scope.read_data)
    path = registry.ref_path("previous")
    try:
        previous = registry.ref("previous")
    except StorageError as error:
        yield Problem("ref_damaged", path, str(error), REPAIR, restore)
    else:
        if previous is not None and previous.version not in registry.versions():
            detail = f"points at version {previous.version}, which does not exist"
            yield Problem("ref_dangling", path, detail, REPAIR, restore)
    yield from _shadow(registry)
    yield from _pins(registry)


def _restore(registry: CheckpointRegistry) -> None:
    registry.restore(by="repair", reason="mfmd check --repair")


def _serving(registry: CheckpointRegistry, read_data: bool) -> Iterator[Problem]:
    """Check that the serving version exists and is intact; the repair names the last intact version that served."""
    path, restore = registry.ref_path("serving"), partial(_restore, registry)
    try:
        serving = Refs(path.parent).read(path.name)
    except StorageError as error:
        yield Problem("ref_damaged", path, str(error), REPAIR, restore)
        return
    if serving is None:
        if (served := registry.state().serves_last) is not None:
            detail = f"missing, but version {served} was promoted"
            yield Problem("serving_missing", path, detail, REPAIR, restore)
    elif serving.version not in registry.versions():
        yield Problem(
            "ref_dangling", path, f"points at version {serving.version}, which does not exist", REPAIR, restore
        )
    elif damage := damage_of_version(registry, serving.version, read_data=read_data):
        remedy = f"{REPAIR} serves the last intact version; restore version {serving.version} from a backup"
        yield Problem("serving_damaged", path, damage, remedy, restore)


def _shadow(registry: CheckpointRegistry) -> Iterator[Problem]:
    """Check the shadow ref. Its loss is harmless: the operator can name it again."""
    path, mend = registry.ref_path("shadow"), partial(_end_shadow, registry)
    try:
        shadow = registry.ref("shadow")
    except StorageError as error:
        yield Problem("ref_damaged", path, str(error), f"{REPAIR} removes it", mend)
        return
    if shadow is not None and shadow.version not in registry.versions():
        detail = f"points at version {shadow.version}, which does not exist"
        yield Problem("ref_dangling", path, detail, f"{REPAIR} removes it", mend)


def _end_shadow(registry: CheckpointRegistry) -> None:
    registry.set_shadow(None, by="repair", reason="mfmd check --repair")


def _pins(registry: CheckpointRegistry) -> Iterator[Problem]:
    """Check pins. The name of a pin gives its version, whatever the file contains."""
    for version in registry.pins():
        path = registry.ref_path(f"pinned-{version:06d}")
        if version not in registry.versions():
            detail, mend = f"pins version {version}, which does not exist", partial(_unpin, registry, version)
            yield Problem("ref_dangling", path, detail, f"{REPAIR} removes the pin", mend)
        elif Refs(path.parent).read_or_none(path.name) is None:
            mend = partial(_pin, registry, version)
            yield Problem("ref_damaged", path, "cannot be read", f"{REPAIR} writes it again", mend)


def _unpin(registry: CheckpointRegistry, version: int) -> None:
    registry.unpin(version, by="repair", reason="the version does not exist")


def _pin(registry: CheckpointRegistry, version: int) -> None:
    registry.pin(version, by="repair", reason="the ref was damaged")
