"""Named places between two durable steps, where a test may kill or observe the process. Otherwise they do nothing.

`MFMD_FAILPOINT=name:n` kills the process (SIGKILL) when it passes that place for the n-th time (the first, without
`:n`). `watch` lets a test in the same process see every pass instead. Which tests use them: docs/explanation/faults.md.
"""

import os
import signal
from collections.abc import Callable

VARIABLE = "MFMD_FAILPOINT"
PLACES = {
    "file.written": "a file lies complete under its temporary name, not fsynced",
    "file.synced": "its content is on the disk, its name is still the temporary one",
    "file.renamed": "it has its name, the directory is not fsynced",
    "file.done": "file and name are on the disk",
    "directory.made": "a directory was made, its parent is not fsynced",
    "directory.done": "a directory's name is on the disk",
    "line.written": "a line was added to a file, not fsynced",
    "line.synced": "the line is on the disk, the name of a new file not yet",
    "line.done": "the line and the name of its file are on the disk",
    "link.made": "a symbolic link lies under its temporary name",
    "link.moved": "it has its name, the directory is not fsynced",
    "link.done": "it has its name on the disk",
    "publish.files_synced": "every file of a directory to be published is on the disk",
    "publish.folders_synced": "and every name in it",
    "publish.renamed": "the directory has its final name, the one above is not fsynced",
    "publish.done": "a published directory is on the disk",
    "retire.hidden": "a published directory lost its name, the one above is not fsynced",
    "retire.synced": "its name is gone from the disk, its files are not",
    "retire.done": "all of it is removed",
    "remove.unlinked": "a file was removed, its directory is not fsynced",
    "remove.done": "its name is gone from the disk",
    "move.placed": "a file has a second name where it moves to, its new directory is not fsynced",
    "move.synced": "and that is on the disk, the first name is still there",
    "folder.renamed": "a directory was renamed, neither parent is fsynced",
    "folder.synced": "its new name is on the disk",
    "folder.done": "its old name is gone from the disk too",
    "partial.removed": "something that a killed process left unfinished was removed",
    "array.made": "the array of a new buffer lies complete under its temporary name",
    "catalog.made": "a new catalog lies complete in a temporary folder",
    "transaction.filled": "everything of a transaction is said, it is not committed",
    "transaction.committed": "the transaction is on the disk",
    "frames.written": "the shards of a group are written, not fsynced",
    "frames.synced": "their content is on the disk, their names are not",
    "frames.folder_synced": "the shards are on the disk, no row points at them",
    "frames.discarded": "the shard of a frame that left was removed",
}
"""Every place by name, and the state when a process dies there."""

_hook: Callable[[str], None] | None = None


def step(name: str) -> None:
    """Mark place `name`: a test that armed it acts, otherwise nothing happens."""
    if _hook is not None:
        _hook(name)


def arm(wanted: str) -> None:
    """Kill this process at a place: `name` or `name:n`. Raises ValueError for one that does not exist."""
    name, _, number = wanted.partition(":")
    if name not in PLACES or not (number or "1").isdigit():
        raise ValueError(
            f"{VARIABLE}: {wanted!r} is not a failpoint; use NAME or NAME:N, with a name of {', '.join(PLACES)}"
        )
    left = int(number or "1")

    def count(passed: str) -> None:
        nonlocal left
        left -= passed == name
        if left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)

    watch(count)


def watch(hook: Callable[[str], None] | None) -> None:
    """Call `hook` at every place from now on; None ends that. Its exceptions come out of the durable step."""
    global _hook
    _hook = hook


if os.environ.get(VARIABLE):
    arm(os.environ[VARIABLE])
