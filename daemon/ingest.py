"""From drop folder to durable buffer: take files that stand still, decode them, commit them in groups, say why not.

The folder is the queue: nothing is taken out of it that there is no room for, so memory is bounded by two commit
groups: the full one, and the one being decoded meanwhile. A full disk or a buffer whose every slot a round holds pauses ingest; it goes on
by itself. A lost fsync ends it (the component stops): what was written last may be gone.
"""

import errno
import shutil
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from configs.settings import Settings
from daemon.activity import IngestActivity, WatchActivity
from daemon.arrival import Arrival
from daemon.folder_events import Hints
from daemon.logs import get_logger
from daemon.metrics import IngestMetrics
from daemon.preparation import Duplicate, Later, Preparation, Prepared, Ready, Refusal
from daemon.watcher import Watcher
from storage.errors import BufferFull
from storage.frames import FrameBuffer

DECODE_THREADS = 2
"""Files decoded at once; Pillow releases the interpreter while it decodes."""
PAUSE_SECONDS = 1.0
"""How often a paused ingest looks whether it may go on (seconds)."""
FULL = (errno.ENOSPC, errno.EDQUOT)

log = get_logger(__name__)


class Ingest:
    """Owns the write side of the drop folder. All methods but `activity` belong to one thread."""

    def __init__(self, settings: Settings, buffer: FrameBuffer, metrics: IngestMetrics, hints: Hints) -> None:
        self._settings, self._buffer, self._metrics = settings, buffer, metrics
        self._watcher = Watcher(settings.watch, buffer.catalog, metrics, hints)
        self._preparation = Preparation(settings.watch, settings.buffer, buffer.catalog.has_digest)
        self._pool = ThreadPoolExecutor(DECODE_THREADS, thread_name_prefix="decode")
        self._decoding: deque[tuple[Arrival, Future[Prepared]]] = deque()
        self._group: list[Ready] = []
        self._group_since = 0.0
        self._unrecorded: list[Duplicate | Refusal] = []
        self._paused = ""

    def step(self) -> float:
        """Take what there is room for; returns the seconds until it wants to be called again."""
        self._watcher.look()
        try:
            self._check_reserve()
            self._record_rest()
            moved = self._take_and_prepare()
            self._commit_when_due()
        except (OSError, BufferFull) as error:
            if isinstance(error, OSError) and error.errno not in FULL:
                raise
            self._pause(self._reason(error))
            return PAUSE_SECONDS
        self._resume()
        return 0.0 if moved else self._pause_until_due()

    def close(self) -> None:
        """Commit what is decoded, if there is room, and let go of the folder."""
        try:
            self._record_rest()
            self._commit()
        except (OSError, BufferFull) as error:
            log.warning("group_left_in_folder", files=len(self._group), reason=self._reason(error))
        self._watcher.close()
        self._pool.shutdown()

    @property
    def activity(self) -> tuple[WatchActivity, IngestActivity]:
        """What the folder and ingest do; may be read from any thread."""
        reason = self._paused
        return self._watcher.activity, IngestActivity(state="paused" if reason else "running", reason=reason)

    def _take_and_prepare(self) -> bool:
        """Give files to the decoders and take what they have done, in order of arrival; whether there was any.

        They get more than one group's worth, and so decode the next group while this thread commits the full one.
        """
        most = self._settings.watch.group_frames
        for arrival in self._watcher.take(2 * most - len(self._group) - len(self._decoding)):
            self._decoding.append((arrival, self._pool.submit(self._preparation.prepare, arrival)))
        moved = bool(self._decoding)
        while self._decoding and len(self._group) < most:
            self._sort(self._next_prepared())
        self._record_rest()
        return moved

    def _next_prepared(self) -> Prepared:
        """The oldest of the files that are being decoded, once it is done."""
        arrival, future = self._decoding.popleft()
        try:
            return future.result()
        except BaseException:  # not the file's fault: the catalog could not be asked
            self._watcher.put_back(arrival)
            raise

    def _sort(self, item: Prepared) -> None:
        match item:
            case Ready():
                self._group_since = self._group_since if self._group else time.monotonic()
                self._group.append(item)
            case Later(arrival, error):
                log.info("file_later", file=arrival.file.path, error=error)
                self._metrics.retries.inc()
                self._watcher.put_back(arrival)
            case _:
                self._unrecorded.append(item)

    def _record_rest(self) -> None:
        """Record duplicates and refusals; each stays in hand until the catalog has it."""
        while self._unrecorded:
            item = self._unrecorded[0]
            if isinstance(item, Duplicate):
                self._buffer.catalog.duplicate(item.arrival.file, item.digest)
                self._metrics.files.labels(outcome="duplicate").inc()
                self._watcher.settle(item.arrival)
            else:
                self._refuse(item)
            self._unrecorded.pop(0)

    def _refuse(self, item: Refusal) -> None:
        self._buffer.catalog.refuse(item.arrival.file, item.reason, item.detail, item.digest)
        log.warning("file_refused", file=item.arrival.file.path, reason=item.reason, detail=item.detail)
        self._metrics.files.labels(outcome="rejected").inc()
        self._metrics.rejected.labels(reason=item.reason).inc()
        self._watcher.settle(item.arrival, unreadable=item.reason == "unreadable")

    def _commit_when_due(self) -> None:
        waited = time.monotonic() - self._group_since
        full = len(self._group) >= self._settings.watch.group_frames
        if self._group and (full or waited >= self._settings.watch.group_seconds):
            self._commit()

    def _commit(self) -> None:
        """Make the group durable. The group is kept when that fails, for another attempt."""
        if not self._group:
            return
        started = time.monotonic()
        records = self._buffer.append([item.frame for item in self._group])
        self._metrics.commit_seconds.observe(time.monotonic() - started)
        group, self._group = self._group, []
        stored = {record.digest for record in records}
        self._count(group, stored)
        for item in group:
            self._watcher.settle(item.arrival)
        log.info("frames_committed", frames=len(records), duplicates=len(group) - len(records))

    def _count(self, group: Sequence[Ready], stored: set[str]) -> None:
        now = time.time()
        for item in group:
            if item.frame.digest in stored:
                stored.discard(item.frame.digest)  # a second file of the same content is a duplicate
                self._metrics.files.labels(outcome="stored").inc()
                self._metrics.bytes.inc(item.arrival.file.size)
                self._metrics.latency.observe(max(0.0, now - item.arrival.file.mtime_ns / 1e9))
                self._metrics.last_stored.set(now)
            else:
                self._metrics.files.labels(outcome="duplicate").inc()

    def _check_reserve(self) -> None:
        """Raises OSError(ENOSPC) while the disk has less than the reserve: nothing of ours may fill it."""
        reserve = self._settings.buffer.reserve_bytes
        free = shutil.disk_usage(self._settings.state).free
        if free < reserve:
            raise OSError(errno.ENOSPC, f"{free / 1e6:.0f} MB free, buffer.reserve_bytes is {reserve / 1e6:.0f} MB")

    def _pause(self, reason: str) -> None:
        if not self._paused:
            log.warning("ingest_paused", reason=reason)
        self._paused = reason
        self._metrics.paused.set(1)

    def _resume(self) -> None:
        if self._paused:
            log.info("ingest_resumed")
        self._paused = ""
        self._metrics.paused.set(0)

    def _pause_until_due(self) -> float:
        due = self._watcher.next_due()
        if self._group:
            due = min(due, self._settings.watch.group_seconds - (time.monotonic() - self._group_since))
        return max(0.0, due)

    def _reason(self, error: OSError | BufferFull) -> str:
        if isinstance(error, BufferFull):
            return str(error)
        return f"{error.strerror or error}; make room on the disk of {self._settings.state}"
