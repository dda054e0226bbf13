"""Bring a state directory of an older mfmd to the format of this one, step by step."""

from collections.abc import Callable
from contextlib import suppress

from storage import durable
from storage.buffer.catalog import Catalog
from storage.buffer.observations import Observations
from storage.directory.format import FORMAT, read_format, this_format
from storage.directory.restore import finish_restore
from storage.errors import StorageError
from storage.layout import StateLayout


def prepare(layout: StateLayout) -> list[str]:
    """Finish a restore, create the folders, upgrade what an older mfmd wrote; return the names of the steps that ran.

    Only under the state directory's lock. After a kill at any point it can be repeated: every step may run twice, and
    the number is written after it. Raises NewerFormat, StorageError, OSError.
    """
    finish_restore(layout)
    found, ran = read_format(layout), list[str]()
    layout.create()
    while found < FORMAT:
        name, upgrade = STEPS[found]
        upgrade(layout)
        found += 1
        durable.write_record(layout.format_file, this_format(found))
        ran.append(name)
    return ran


def _upgrade_databases(layout: StateLayout) -> None:
    """Bring catalog and observations to their newest schema: each upgrades itself when a writer opens it.

    Also where no observer runs: readers need it.
    """
    for path, kind in ((layout.catalog, Catalog), (layout.observations, Observations)):
        if path.exists():
            with suppress(StorageError):  # whoever needs it reports the damage; the rest of the directory works
                kind.open(path, writable=True).close()


STEPS: dict[int, tuple[str, Callable[[StateLayout], None]]] = {
    1: ("databases", _upgrade_databases),
    2: ("filters", _upgrade_databases),
}
"""What brings a directory of each older format to the next one."""
