"""From drop folder to durable buffer: take stable files, decode them, commit them in batches.

Files stay in the folder until there is room for them. Memory is bounded by two batches: the one being committed and the
one being decoded meanwhile. A full disk, a buffer whose every slot a round leases, or a damaged catalog pauses ingest,
which resumes by itself. A failed fsync stops it permanently, because the last writes may be lost.
"""

import errno
import math
import shutil
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

from adapters.tracing import spans
from configs.folders import overlap
from configs.settings import Settings
from daemon.errors import FULL
from daemon.ingest.admission import Admission
from daemon.ingest.decode import (
    UNEXPECTED,
    Decoded,
    Decoder,
    Outcome,
    RetryLater,
    Settled,
    is_of_file,
    refuse_failed,
)
from daemon.ingest.originals import Originals
from daemon.ingest.refusals import RetryQueue, Selection, retry_refused
from daemon.metrics import IngestMetrics
from daemon.runtime.activity import IngestActivity, WatchActivity
from daemon.runtime.logs import get_logger
from daemon.watch.arrival import Arrival
from daemon.watch.events import Hints
from daemon.watch.scan import FolderScan
from daemon.watch.watcher import Watcher
from storage.buffer.frame_writer import NOT_KEPT
from storage.buffer.frames import FrameBuffer, FrameRecord, HoldoutRule
from storage.durable.digest import short
from storage.errors import BufferFull, DurabilityLost, StorageError
from storage.media.bounded import cancel_decodes

PAUSE_SECONDS = 1.0
"""Interval at which a paused ingest checks whether it may resume (seconds)."""
STEP_SECONDS = 2.0
"""How long a step waits for files that are being decoded (seconds); the next step goes on with them."""
FOLDERS_SECONDS = 1.0
"""Interval at which the links of all folders are followed (seconds)."""
PAUSE_SHARE = 0.5
"""Ingest pauses below this share of `buffer.reserve_bytes` free; up to the whole of it the buffer does not grow."""

log = get_logger(__name__)


@dataclass(slots=True)
class Batch:
    """Content of the next commit."""

    frames: list[Decoded] = field(default_factory=list)
    skipped: list[Settled] = field(default_factory=list)
    """Images skipped because of a frame of this batch; recorded once that frame is committed."""
    since: float = math.inf
    """Arrival of the first frame (monotonic, seconds)."""

    def __len__(self) -> int:
        return len(self.frames) + len(self.skipped)

    def due_in(self, most: int, seconds: float) -> float:
        """Return the seconds until its commit: 0 when it holds `most` files, or is `seconds` old."""
        if not self.frames:
            return math.inf
        return 0.0 if len(self) >= most else max(0.0, self.since + seconds - time.monotonic())


class Ingest:
    """Owns the write side of the drop folder. All methods but `activity` belong to one thread."""

    def __init__(self, settings: Settings, buffer: FrameBuffer, metrics: IngestMetrics, hints: Hints) -> None:
        watch, catalog = settings.watch, buffer.catalog
        self._settings, self._watch, self._buffer, self._metrics = settings, watch, buffer, metrics
        self._watcher = Watcher(watch, catalog, metrics, hints, self._overlap)
        # A lone decoding thread is the slower one, so the committing thread packs (decision 0011).
        self._decoder = Decoder(
            settings, catalog.has_digest, None if watch.advanced.decode_threads == 1 else buffer.pack
        )
        self._pool = ThreadPoolExecutor(watch.advanced.decode_threads, thread_name_prefix="decode")
        self._admission = Admission(settings.admission, catalog)
        self._originals = Originals(watch, catalog.state_of, FolderScan(watch), self._overlap)
        self.retries = RetryQueue(hints.wake)
        """Requests to retry refused files; may be called from any thread."""
        self.batch = Batch()
        """The next commit."""
        self._decoding: deque[tuple[Arrival, Future[Outcome]]] = deque()
        self._to_record: deque[Decoded | Settled] = deque()
        self._grow = True
        self._paused = ""

    def step(self) -> float:
        """Take as many files as there is room for; return the seconds until the next call."""
        try:
            self._watcher.poll()
            self._check_reserve()
            self._record()
            self.retries.serve(self._retry)
            moved = self._originals.sweep()
            moved |= self._take()
            if self._commit_in() <= 0:
                self._commit()
        except (OSError, StorageError) as error:
            if isinstance(error, DurabilityLost) or (isinstance(error, OSError) and error.errno not in FULL):
                raise
            self._show_pause(self._reason(error))
            if not isinstance(error, OSError | BufferFull):
                raise
            return PAUSE_SECONDS
        self._show_pause("")
        return 0.0 if moved else min(self._watcher.next_due(), self._commit_in())

    def use(self, settings: Settings) -> None:
        """Use these live settings from the next step on. May be called from any thread."""
        self._settings, self._watch = settings, settings.watch
        self._watcher.use(settings.watch)

    def check_folders(self) -> float:
        """Take nothing while a link that was turned lets folders overlap; return the seconds until the next call.

        Belongs to a thread of its own: a folder may be on a mount that hangs.
        """
        if self._overlap():
            self._watcher.doubt_folders()
        return FOLDERS_SECONDS

    def close(self) -> None:
        """Commit what is decoded, if there is room, and release the folder."""
        try:
            self._record()
            self._commit()
        except (OSError, StorageError) as error:  # also a failed fsync: whatever it is, this is the end
            log.warning("batch_postponed", files=len(self.batch), reason=self._reason(error))
        finally:
            self._watcher.close()
            self._pool.shutdown(wait=False, cancel_futures=True)
            cancel_decodes()
            self._pool.shutdown()

    @property
    def activity(self) -> tuple[WatchActivity, IngestActivity]:
        """Activity of the folder and of ingest; may be read from any thread."""
        reason = self._paused
        return self._watcher.activity, IngestActivity(state="paused" if reason else "running", reason=reason)

    def _overlap(self) -> str:
        return overlap(self._settings)

    def _retry(self, selection: Selection) -> list[str]:
        paths = retry_refused(self._watch, self._buffer.catalog, selection)
        self._watcher.rescan_soon()
        log.info("refused_retried", files=len(paths))
        return paths

    def _take(self) -> bool:
        """Give files to the decoders and take decoded ones, in order of arrival; return whether there was any.

        The decoders get more than one batch, so that they decode the next one while this thread commits.
        """
        most = self._watch.advanced.group_frames
        self._submit(self._watcher.take(2 * most - len(self.batch) - len(self._decoding)))
        moved, deadline = bool(self._decoding), time.monotonic() + STEP_SECONDS
        while self._decoding and len(self.batch) < most:
            future = self._decoding[0][1]
            if not future.done() and not wait([future], max(0.0, deadline - time.monotonic())).done:
                break
            self._take_decoded()
        self._record()
        return moved

    def _submit(self, arrivals: Sequence[Arrival]) -> None:
        for place, arrival in enumerate(arrivals):
            try:
                self._decoding.append((arrival, self._pool.submit(self._decoder.decode, arrival)))
            except BaseException:  # no thread can be started just now
                for left in arrivals[place:]:
                    self._watcher.put_back(left)
                raise

    def _take_decoded(self) -> None:
        arrival, future = self._decoding.popleft()
        try:
            self._sort(future.result())
        except BaseException as error:
            if isinstance(error, Exception) and is_of_file(error):
                self._to_record.append(refuse_failed(arrival, error))
                return
            self._watcher.put_back(arrival)  # the catalog could not be asked
            raise

    def _sort(self, outcome: Outcome) -> None:
        match outcome:
            case Decoded():
                self._admit(outcome)
            case RetryLater(arrival, error):
                log.info("file_postponed", file=arrival.file.path, error=error)
                self._metrics.retries.inc()
                self._watcher.put_back(arrival)
            case Settled(arrival, "rejected") if arrival.renamed_into_place and outcome.reason != "too_costly":
                log.info("file_incomplete", **outcome.facts)
                self._metrics.retries.inc()
                self._watcher.await_stability(arrival)
            case Settled():
                self._to_record.append(outcome)

    def _admit(self, item: Decoded) -> None:
        skip = self._admission.judge(item.frame, [other.frame for other in self.batch.frames])
        if skip is None:
            self.batch.since = min(self.batch.since, time.monotonic())
            self.batch.frames.append(item)
        else:
            skipped = Settled(item.arrival, "skipped", item.frame.digest, skip.reason, skip.detail)
            (self.batch.skipped if skip.pending else self._to_record).append(skipped)

    def _commit_in(self) -> float:
        return self.batch.due_in(self._watch.advanced.group_frames, self._watch.advanced.group_seconds)

    def _commit(self) -> None:
        """Commit the batch and begin a new one. A batch that fails is kept for another attempt."""
        if not self.batch.frames:
            return
        started = time.monotonic()
        settings = self._settings
        least, within = settings.gate.advanced.min_holdout, settings.schedule.min_frames
        rule = HoldoutRule(settings.buffer.holdout_fraction, least, within)
        stored, records = self._append(self.batch.frames, rule)
        self._metrics.commit_seconds.observe(time.monotonic() - started)
        batch, self.batch = self.batch, Batch()
        self._count(stored, records)
        names = {"ids": [record.id for record in records], "digests": [short(record.digest) for record in records]}
        log.info("frames_committed", frames=len(records), duplicates=len(stored) - len(records), **names)
        self._to_record.extendleft(reversed(stored))
        if len(stored) == len(batch.frames):
            self._to_record += batch.skipped
        else:  # the frame that they are near to may be the refused one
            for item in batch.skipped:
                self._watcher.put_back(item.arrival)
        self._record()

    def _append(self, frames: list[Decoded], rule: HoldoutRule) -> tuple[list[Decoded], list[FrameRecord]]:
        """Commit frames; return those committed and their records. One that cannot be is found by halves, and refused.

        Raises OSError or StorageError when the disk or the catalog refuses.
        """
        try:
            return frames, self._buffer.append([item.frame for item in frames], grow=self._grow, holdout=rule)
        except Exception as error:
            if not is_of_file(error):
                raise
            if len(frames) == 1:
                self._to_record.append(refuse_failed(frames[0].arrival, error, frames[0].frame.digest))
                return [], []
        half = len(frames) // 2
        (stored, records), (others, more) = self._append(frames[:half], rule), self._append(frames[half:], rule)
        return stored + others, records + more

    def _record(self) -> None:
        """Record the state of files, and release them. Each is held until its record is written."""
        while self._to_record:
            item = self._to_record[0]
            if isinstance(item, Settled):  # a frame was recorded by its commit
                item = self._to_record[0] = self._settle(item)
            outcome, reason = (item.outcome, item.reason) if isinstance(item, Settled) else ("stored", "")
            if outcome != "skipped":  # nothing of a skipped image is stored anywhere else
                self._originals.dispose(item.arrival)
            self._watcher.mark_done(item.arrival, unreadable=reason == "unreadable")
            digest = short(item.digest if isinstance(item, Settled) else item.frame.digest)
            facts = {"file": item.arrival.file.path, "digest": digest, "outcome": outcome, "reason": reason}
            spans.record("mfmd.ingest", item.arrival.found_at, **facts)
            self._to_record.popleft()

    def _settle(self, item: Settled) -> Settled:
        """Record what became of a file, or the refusal of one of which that cannot be recorded; return it."""
        try:
            self._record_one(item)
        except Exception as error:
            if not is_of_file(error):
                raise
            if item.reason != UNEXPECTED:
                return self._settle(refuse_failed(item.arrival, error, item.digest))
            self._watcher.set_aside(item.arrival)  # not even that: it counts as refused until it changes or we restart
            self._show_refused(item)
        return item

    def _record_one(self, item: Settled) -> None:
        file, catalog = item.arrival.file, self._buffer.catalog
        match item.outcome:
            case "duplicate":
                catalog.note(file, "duplicate", digest=item.digest)
            case "skipped":
                catalog.note(file, "skipped", item.reason, item.detail, item.digest)
                log.debug("file_skipped", **item.facts)
                self._metrics.skipped.labels(reason=item.reason).inc()
            case "rejected":
                before = catalog.state_of(file)  # the same file, if only its change time is another
                catalog.note(file, "refused", item.reason, item.detail, item.digest or None)
                if before is None or (before.reason, before.digest) != (item.reason, item.digest or None):
                    self._show_refused(item)
                return
        self._metrics.files.labels(outcome=item.outcome).inc()

    def _show_refused(self, item: Settled) -> None:
        log.warning("file_refused", **item.facts)
        self._metrics.rejected.labels(reason=item.reason).inc()
        self._metrics.files.labels(outcome="rejected").inc()

    def _count(self, frames: Sequence[Decoded], records: Sequence[FrameRecord]) -> None:
        now, slots = time.time(), {record.digest: record.slot for record in records}
        for item in frames:
            slot = slots.pop(item.frame.digest, None)  # a second file of the same content is a duplicate
            outcome = "duplicate" if slot is None else "not_kept" if slot == NOT_KEPT else "stored"
            self._metrics.files.labels(outcome=outcome).inc()
            if outcome == "stored":
                self._metrics.bytes.inc(item.arrival.file.size)
                self._metrics.latency.observe(max(0.0, now - item.arrival.file.mtime_ns / 1e9))
                self._metrics.last_stored.set(now)

    def _check_reserve(self) -> None:
        """Stop the growth of the buffer below the reserve: mfmd never fills the disk by itself.

        Raises OSError(ENOSPC) below half of it: others use the space, and evicting frames would not free it for long.
        """
        reserve = self._settings.buffer.reserve_bytes
        free = shutil.disk_usage(self._settings.state).free
        if free < PAUSE_SHARE * reserve:
            raise OSError(
                errno.ENOSPC,
                f"{free / 1e6:.0f} MB free, less than half of buffer.reserve_bytes, {reserve / 1e6:.0f} MB",
            )
        if self._grow != (free >= reserve):
            self._grow = free >= reserve
            log.warning("buffer_can_grow" if self._grow else "buffer_cannot_grow", free=free, reserve=reserve)

    def _show_pause(self, reason: str) -> None:
        if reason and not self._paused:
            log.warning("ingest_paused", reason=reason)
        elif self._paused and not reason:
            log.info("ingest_resumed")
        self._paused = reason
        self._metrics.paused.set(bool(reason))

    def _reason(self, error: OSError | StorageError) -> str:
        if isinstance(error, OSError):
            return f"{error.strerror or error}; free space on the disk of {self._settings.state}"
        return str(error)
