"""Check whether the imported labelled source and canary images can be read, and nothing else lies beside it."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from storage import durable
from storage.checking.problem import REPAIR, Problem, Scope, newer
from storage.errors import NewerRecord, StorageError
from storage.source.labelled import AGAIN, CURRENT, LabelledSet, current_fingerprint, old_sets


def check_source(scope: Scope) -> Iterator[Problem]:
    """Return problems of labelled sets; nothing when none was imported."""
    for folder in (scope.layout.source, *scope.layout.canary_sets):
        yield from _check_set(scope, folder)


def _check_set(scope: Scope, folder: Path) -> Iterator[Problem]:
    try:
        current = current_fingerprint(folder)
    except NewerRecord as error:
        yield newer(folder / CURRENT, error)
        return
    except StorageError as error:
        yield Problem("source_damaged", folder / CURRENT, str(error), AGAIN.format(folder))
        return
    for path in old_sets(folder, current):
        repair = partial(durable.retire_directory, path)
        yield Problem("source_old", path, "an imported set that is not in use", f"{REPAIR} removes it", repair)
    if current is None:
        return
    try:
        source = LabelledSet(folder / current)
        for index in range(len(source)):
            if scope.read_data:
                source.images.read(index)
                source.labels.read(index)
            else:
                source.images.check_file(index)
                source.labels.check_file(index)
    except NewerRecord as error:
        yield newer(folder / current, error)
    except (StorageError, OSError) as error:
        yield Problem("source_damaged", folder / current, str(error), AGAIN.format(folder))
