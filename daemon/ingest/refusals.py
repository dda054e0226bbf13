"""Retry refused files: in the thread of ingest while the daemon runs, otherwise in the command itself.

First the file is moved back from the quarantine, then its refusal is removed. After a kill in between it is still
refused, and is moved to the quarantine again.
"""

import errno
import os
import queue
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

from configs.watch import WatchSettings
from daemon.errors import Stopping
from daemon.watch.missing import quarantined
from storage import durable
from storage.buffer.catalog import Catalog
from storage.buffer.catalog_records import FileFact, FileRecord
from storage.buffer.video_records import refused_videos

ANSWER_SECONDS = 30.0
"""How long a request waits for the thread of ingest (seconds); a step of it takes less."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Selected refused files: those of these paths and of this reason; all when neither is given."""

    paths: frozenset[str] = frozenset()
    """Relative to the drop folder, as `mfmd refused list` shows them."""
    reason: str | None = None

    def of(self, files: Iterable[FileRecord]) -> list[FileRecord]:
        """Return those of the files, already of this reason, whose path is selected."""
        return [item for item in files if not self.paths or item.file.path in self.paths]


@dataclass(slots=True)
class RetryQueue:
    """Requests from the control API to the thread of ingest."""

    wake: Callable[[], object]
    """Wakes the thread."""
    _waiting: "queue.SimpleQueue[tuple[Selection, Future[list[str]]]]" = field(default_factory=queue.SimpleQueue)

    def ask(self, selection: Selection, seconds: float = ANSWER_SECONDS) -> list[str]:
        """Make ingest retry a selection; return the paths. Raises Stopping, or what ingest raised."""
        answer: Future[list[str]] = Future()
        self._waiting.put((selection, answer))
        self.wake()
        try:
            return answer.result(seconds)
        except TimeoutError as error:
            answer.cancel()
            raise Stopping("ingest does not answer: it has stopped or is stopping; see `mfmd status`") from error

    def serve(self, retry: Callable[[Selection], list[str]]) -> None:
        """Answer waiting requests in the thread of ingest. An error of `retry` is raised in the caller too."""
        while not self._waiting.empty():
            selection, answer = self._waiting.get()
            if not answer.set_running_or_notify_cancel():
                continue
            try:
                answer.set_result(retry(selection))
            except BaseException as error:
                answer.set_exception(error)
                raise


def retry_refused(watch: WatchSettings, catalog: Catalog, selection: Selection) -> list[str]:
    """Move the selected files back into the drop folder and remove their refusals; return their paths.

    Raises OSError when a file cannot be moved back; it and those after it in the list stay refused.
    """
    found = selection.of(catalog.refused(-1, reason=selection.reason))
    back: list[FileFact] = []
    try:
        for item in found:
            _bring_back(watch, item)
            back.append(item.file)
    finally:
        catalog.forget_refusals(back)
    return [item.file.path for item in found]


def retry_videos(watch: WatchSettings, records: Path, selection: Selection) -> list[str]:
    """Move the selected videos back and touch them, so that they count as new; return their paths. Raises OSError."""
    found = selection.of(refused_videos(records, selection.reason))
    for item in found:
        _bring_back(watch, item)
    there = [item.file.path for item in found if (watch.folder / item.file.path).is_file()]
    for path in there:
        os.utime(watch.folder / path)
    return there


def _bring_back(watch: WatchSettings, item: FileRecord) -> None:
    """Move a file out of the quarantine. Raises OSError, also (ELOOP) when a link of its path now leads elsewhere."""
    kept = quarantined(watch.quarantine, item.file) if watch.quarantine else None
    if kept is None:
        return
    place = watch.folder / item.file.path
    if not place.parent.resolve().is_relative_to(watch.folder.resolve()):
        what = "not moved back: a link in its path points out of the drop folder; remove it"
        raise OSError(errno.ELOOP, what, str(place))
    durable.move_file(kept, place)
