"""From drop folder to durable buffer: take files that stand still, decode them, commit them in groups, say why not.

The folder is the queue: nothing is taken out of it that there is no room for, so memory is bounded by two commit
groups: the full one, and the one being decoded meanwhile; and a few frames of one video. A full disk or a buffer whose
every slot a round holds pauses ingest; it goes on by itself. A lost fsync ends it (the component stops): what was
written last may be gone.
"""

import errno
import shutil
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from configs.settings import Settings
from daemon.errors import FULL
from daemon.ingest.admission import Admission
from daemon.ingest.decode import Duplicate, Finished, Later, Preparation, Prepared, Ready, Refusal, Skipped
from daemon.ingest.originals import Originals
from daemon.ingest.refusals import RetryQueue, Selection, retry_refused
from daemon.ingest.video_queue import VideoQueue
from daemon.ingest.video_reel import Part, Reel
from daemon.metrics import IngestMetrics
from daemon.runtime.activity import IngestActivity, WatchActivity
from daemon.runtime.logs import get_logger
from daemon.watch.arrival import Arrival
from daemon.watch.events import Hints
from daemon.watch.watcher import Watcher
from storage.buffer.frame_writer import NOT_KEPT
from storage.buffer.frames import FrameBuffer, FrameRecord
from storage.errors import BufferFull, StorageError
from storage.media.images import FittedFrame

PAUSE_SECONDS = 1.0
"""How often a paused ingest looks whether it may go on (seconds)."""
VIDEO_SHARE = 0.25
"""Share of a commit group that is decoded of a video in one go; never less than one frame."""
PAUSE_SHARE = 0.5
"""Ingest pauses below this share of `buffer.reserve_bytes` free; up to the whole of it the buffer does not grow."""

log = get_logger(__name__)


class Ingest:
    """Owns the write side of the drop folder. All methods but `activity` belong to one thread."""

    def __init__(self, settings: Settings, buffer: FrameBuffer, metrics: IngestMetrics, hints: Hints) -> None:
        self._settings, self._buffer, self._metrics = settings, buffer, metrics
        self._watcher = Watcher(settings.watch, buffer.catalog, metrics, hints)
        pack = _leave_unpacked if settings.watch.decode_threads == 1 else buffer.pack
        self._preparation = Preparation(settings, buffer.catalog.has_digest, pack)
        self._admission = Admission(settings.admission, buffer.catalog)
        self._pool = ThreadPoolExecutor(settings.watch.decode_threads, thread_name_prefix="decode")
        self._originals = Originals(settings.watch, buffer.catalog)
        self.retries = RetryQueue(hints.wake)
        """Requests to take refused files again; may be asked from any thread."""
        self._videos = VideoQueue(self._pool, max(1, round(VIDEO_SHARE * settings.watch.group_frames)))
        self._decoding: deque[tuple[Arrival, Future[Prepared] | Future[Part]]] = deque()
        self._group: list[Ready] = []
        self._group_since = 0.0
        self._committed: deque[Arrival] = deque()
        self._finished: list[Finished] = []  # videos whose last frames are in the group or were committed
        self._unrecorded: list[Duplicate | Refusal | Skipped] = []
        self._skipped: list[Skipped] = []  # near to a frame of the group: true once that is committed
        self._grow = True
        self._paused = ""

    def step(self) -> float:
        """Take what there is room for; returns the seconds until it wants to be called again."""
        self._watcher.look()
        try:
            self._check_reserve()
            self._record_rest()
            self.retries.serve(self._retry)
            moved = self._originals.sweep()
            moved |= self._take_and_prepare()
            self._commit_when_due()
        except (OSError, BufferFull) as error:
            if isinstance(error, OSError) and error.errno not in FULL:
                raise
            self._pause(self._reason(error))
            return PAUSE_SECONDS
        self._resume()
        return 0.0 if moved else self._pause_until_due()

    def use(self, settings: Settings) -> None:
        """Use the live settings of these from the next step on. May be called from any thread."""
        self._settings = settings
        self._watcher.use(settings.watch)

    def close(self) -> None:
        """Commit what is decoded, if there is room, and let go of the folder."""
        try:
            self._record_rest()
            self._commit()
        except (OSError, StorageError) as error:  # also a lost fsync: whatever it is, this is the end
            log.warning("group_left_in_folder", files=len(self._group), reason=self._reason(error))
        finally:
            self._watcher.close()
            self._pool.shutdown()
            self._videos.close()

    @property
    def activity(self) -> tuple[WatchActivity, IngestActivity]:
        """What the folder and ingest do; may be read from any thread."""
        reason = self._paused
        return self._watcher.activity, IngestActivity(state="paused" if reason else "running", reason=reason)

    def _retry(self, selection: Selection) -> list[str]:
        paths = retry_refused(self._settings.watch, self._buffer.catalog, selection)
        self._watcher.look_at_all()
        log.info("refused_tried_again", files=len(paths))
        return paths

    def _take_and_prepare(self) -> bool:
        """Give files to the decoders and take what they have done, in order of arrival; whether there was any.

        They get more than one group's worth, and so decode the next group while this thread commits the full one.
        """
        most = self._settings.watch.group_frames
        self._decode(self._watcher.take(2 * most - self._waiting - len(self._decoding) - len(self._videos)))
        moved = bool(self._decoding)
        for _ in range(len(self._decoding)):  # a video comes back to its end for its next part
            if self._waiting >= most:
                break
            self._sort_next()
        self._record_rest()
        return moved

    def _decode(self, arrivals: Sequence[Arrival]) -> None:
        for place, arrival in enumerate(arrivals):
            try:
                self._decoding.append((arrival, self._pool.submit(self._preparation.prepare, arrival)))
            except BaseException:  # no thread is to be had just now
                for left in arrivals[place:]:
                    self._watcher.put_back(left)
                raise

    @property
    def _waiting(self) -> int:
        """Files that wait for the next commit."""
        return len(self._group) + len(self._skipped)

    def _sort_next(self) -> None:
        """Sort the oldest of the files that are being decoded, once it is done."""
        arrival, future = self._decoding.popleft()
        try:
            item = future.result()
            self._sort_part(item) if isinstance(item, Part) else self._sort(item)
        except BaseException:  # not the file's fault: the catalog could not be asked
            self._videos.failed(arrival)
            self._watcher.put_back(arrival)
            raise
        if (decoding := self._videos.decode_on()) is not None:
            self._decoding.append(decoding)

    def _sort_part(self, part: Part) -> None:
        """The next frames of a video, and what became of it when these were the last."""
        for frame in part.frames:
            self._admit(Ready(part.reel.arrival, frame, part.reel))
        end = self._videos.returned(part)
        if end is not None:
            self._sort(end)

    def _sort(self, item: Prepared | Finished | Skipped) -> None:
        match item:
            case Ready():
                self._admit(item)
            case Reel():
                self._videos.add(item)
            case Finished():
                self._finished.append(item)
            case Skipped(pending=True):
                self._skipped.append(item)
            case Refusal(arrival, reason) if arrival.whole:
                log.info("file_not_whole", file=arrival.file.path, reason=reason)
                self._metrics.retries.inc()
                self._watcher.wait_for(arrival)
            case Later(arrival, error):
                log.info("file_later", file=arrival.file.path, error=error)
                self._metrics.retries.inc()
                self._watcher.put_back(arrival)
            case _:
                self._unrecorded.append(item)

    def _admit(self, item: Ready) -> None:
        """Into the commit group, or among the skipped."""
        skip = self._admission.judge(item.frame, [other.frame for other in self._group])
        if skip is None:
            self._group_since = self._group_since if self._group else time.monotonic()
            self._group.append(item)
            if item.reel is not None:
                item.reel.admitted(item.frame)
        elif item.reel is not None:
            item.reel.left_out(skip)
            log.debug("frame_skipped", frame=item.frame.name, reason=skip.reason, detail=skip.detail)
        else:
            self._sort(Skipped(item.arrival, skip.reason, skip.detail, item.frame.digest, skip.pending))

    def _record_rest(self) -> None:
        """Record duplicates, refusals and skipped files; each stays in hand until the catalog has it.

        First those are let go whose commit is done: when that fails half-way, the next step goes on with it.
        """
        while self._committed:
            self._originals.settle(self._committed[0])
            self._watcher.settle(self._committed.popleft())
        while self._unrecorded:
            item = self._unrecorded[0]
            if isinstance(item, Duplicate):
                self._buffer.catalog.duplicate(item.arrival.file, item.digest)
                self._metrics.files.labels(outcome="duplicate").inc()
                self._originals.settle(item.arrival)
                self._watcher.settle(item.arrival)
            elif isinstance(item, Skipped):
                self._skip(item)
            else:
                self._refuse(item)
            self._unrecorded.pop(0)

    def _skip(self, item: Skipped) -> None:
        self._buffer.catalog.skip(item.arrival.file, item.reason, item.detail, item.digest)
        log.debug("file_skipped", file=item.arrival.file.path, reason=item.reason, detail=item.detail)
        self._metrics.files.labels(outcome="skipped").inc()
        self._metrics.skipped.labels(reason=item.reason).inc()
        self._watcher.settle(item.arrival)

    def _refuse(self, item: Refusal) -> None:
        self._buffer.catalog.refuse(item.arrival.file, item.reason, item.detail, item.digest)
        log.warning("file_refused", file=item.arrival.file.path, reason=item.reason, detail=item.detail)
        self._metrics.files.labels(outcome="rejected").inc()
        self._metrics.rejected.labels(reason=item.reason).inc()
        self._originals.settle(item.arrival)
        self._watcher.settle(item.arrival, unreadable=item.reason == "unreadable")

    def _commit_when_due(self) -> None:
        waited = time.monotonic() - self._group_since
        full = self._waiting >= self._settings.watch.group_frames
        due = full or waited >= self._settings.watch.group_seconds
        if due if self._group else self._finished:
            self._commit()

    def _commit(self) -> None:
        """Make the group durable. The group is kept when that fails, for another attempt."""
        if not (self._group or self._finished):
            return
        started = time.monotonic()
        frames, videos = [item.frame for item in self._group], [item.video for item in self._finished]
        records = self._buffer.append(frames, grow=self._grow, videos=videos)
        self._metrics.commit_seconds.observe(time.monotonic() - started)
        group, self._group = self._group, []
        finished, self._finished = self._finished, []
        self._count_videos(finished)
        self._committed += (item.arrival for item in group if item.reel is None)
        self._committed += (item.arrival for item in finished)
        self._unrecorded += self._skipped
        self._skipped = []
        self._count(group, records)
        log.info("frames_committed", frames=len(records), duplicates=len(group) - len(records))
        self._record_rest()

    def _count(self, group: Sequence[Ready], records: Sequence[FrameRecord]) -> None:
        now, slots = time.time(), {record.digest: record.slot for record in records}
        for item in group:
            slot = slots.pop(item.frame.digest, None)  # a second file of the same content is a duplicate
            if item.reel is not None:  # the file counts when it is finished
                self._metrics.last_stored.set(now)
            elif slot == NOT_KEPT:
                self._metrics.files.labels(outcome="not_kept").inc()
            elif slot is not None:
                self._metrics.files.labels(outcome="stored").inc()
                self._metrics.bytes.inc(item.arrival.file.size)
                self._metrics.latency.observe(max(0.0, now - item.arrival.file.mtime_ns / 1e9))
                self._metrics.last_stored.set(now)
            else:
                self._metrics.files.labels(outcome="duplicate").inc()

    def _count_videos(self, finished: Sequence[Finished]) -> None:
        for item in finished:
            self._metrics.files.labels(outcome="stored").inc()
            self._metrics.bytes.inc(item.video.file.size)
            self._metrics.latency.observe(max(0.0, time.time() - item.video.file.mtime_ns / 1e9))
            if item.video.reason:
                log.warning("video_damaged", file=item.video.file.path, detail=item.video.detail)

    def _check_reserve(self) -> None:
        """Below the reserve the buffer must not grow: nothing of ours may fill the disk.

        Raises OSError(ENOSPC) below half of it: others take the space, and frames that leave would not bring it back.
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
            log.warning("buffer_may_grow" if self._grow else "buffer_must_not_grow", free=free, reserve=reserve)

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

    def _reason(self, error: OSError | StorageError) -> str:
        if isinstance(error, OSError):
            return f"{error.strerror or error}; make room on the disk of {self._settings.state}"
        return str(error)


def _leave_unpacked(frame: FittedFrame) -> None:
    """For `Preparation`: a lone decoding thread is the slower one, so the committing thread packs (decision 0011)."""
