"""Whether what should serve is on disk: its folder and files, by name and size. No weights are read."""

from storage.errors import CorruptCheckpoint, StorageError, UnknownVersion
from storage.registry.files import listed
from storage.registry.registry import CheckpointRegistry


def check_serving_files(registry: CheckpointRegistry) -> None:
    """Raises StorageError, saying what to do, when files of the version that should serve are gone or cut short.

    Nothing happens when none should serve, or when its ref cannot be read: whoever reads the ref tells that.
    """
    serving = registry.readable_refs()[0].get("serving")
    if serving is None:
        return
    should = f"version {serving.version} should serve, but"
    try:
        registry.verify(serving.version, content=False)
    except UnknownVersion as error:
        gone = registry.folder(serving.version)
        raise StorageError(f"{should} its folder {gone} is gone; {_remedy(registry, serving.version)}") from error
    except CorruptCheckpoint as error:
        raise StorageError(f"{should} is damaged: {error}; {_remedy(registry, serving.version)}") from error


def _remedy(registry: CheckpointRegistry, version: int) -> str:
    others = [number for number in registry.versions() if number != version]
    if others:
        return f"restore it from a backup, or serve another with `mfmd promote N`; others: {listed(others)}"
    return (
        "no other version is there: bring it back from a backup, or take one in with `mfmd import PATH` "
        "and serve it with `mfmd promote N`"
    )
