"""Run a share of live requests also on the candidate in the idle slot, after they were answered.

It runs in a thread of its own, at low priority, with a short queue. A full queue drops an image.
"""

import queue
import socket
import time
from contextlib import suppress

import numpy as np

from adapters.inference.segment import segment_fitted
from configs.serving import ServingSettings
from daemon.runtime.logs import get_logger
from daemon.serving.batcher import Fitted, Labels
from daemon.serving.metrics import ServingMetrics
from daemon.serving.threads import PlaneThread, be_nice
from daemon.serving.versions.slots import Resident, Slots
from storage.errors import DurabilityLost, StorageError
from storage.registry.shadow_record import ShadowRecord, ShadowRecords

WAITING = 4
"""Images that may wait for the candidate."""
WRITE_SECONDS = 2.0
"""Interval at which the record is written while images arrive (seconds)."""

log = get_logger(__name__)


def plane_name(host: str, port: int) -> str:
    """Return the name of the plane at an address of this machine: stable over restarts, unique among planes."""
    return f"{socket.gethostname()}_{host}_{port}"


class Shadow(PlaneThread):
    """Compares the candidate's labels with the served ones, and keeps the record."""

    def __init__(
        self, slots: Slots, records: ShadowRecords, plane: str, settings: ServingSettings, metrics: ServingMetrics
    ) -> None:
        """Prepare it; this plane keeps its record under the name `plane` (`plane_name`)."""
        super().__init__("mfmd-shadow")
        self._slots, self._records, self._plane, self._metrics = slots, records, plane, metrics
        self._fraction = settings.shadow_fraction
        self._owed = 0.0
        self._waiting: queue.Queue[tuple[int, Fitted, Labels]] = queue.Queue(WAITING)
        self._record: ShadowRecord | None = None
        self._written = 0.0
        self._dirty = False
        self._complained: int | None = None
        """Candidate whose error is in the log with its traceback."""
        self._unwritten = ""
        """Why the record could not be written the last time, which is in the log; empty when it could."""

    def offer(self, version: int, image: Fitted, labels: Labels) -> None:
        """Take an image that `version` answered with `labels`, if its turn has come; returns at once."""
        if self._slots.shadow is None:
            return
        self._owed += self._fraction
        if self._owed < 1:
            return
        self._owed -= 1
        try:
            self._waiting.put_nowait((version, image, labels))
        except queue.Full:
            self._metrics.shadow_images.labels(result="dropped").inc()

    def run(self) -> None:
        """Compare until stopped, then write the record."""
        be_nice()
        try:
            while not self.stopping.is_set():
                with suppress(queue.Empty):
                    self._compare(*self._waiting.get(timeout=0.2))
                self._write(now=time.monotonic())
            self._write(now=float("inf"))
        except DurabilityLost:  # never retried: the record ends here, serving goes on
            log.exception("shadow_stopped")

    def _compare(self, serving: int, image: Fitted, labels: Labels) -> None:
        with self._slots.lease_shadow() as candidate:
            if candidate is None or candidate.version == serving:
                return
            own = self._run(candidate, image)
            self._count_comparison(self._record_of(candidate.version, serving), labels, own)

    def _run(self, candidate: Resident, image: Fitted) -> Labels | None:
        """Return the candidate's labels; None when it raised an error, which is evidence like any other.

        The log has the traceback of a candidate's first error: one that fails on every image must not fill the disk.
        """
        try:
            [own] = segment_fitted(candidate.forward, [image.frame], [image.size])
            return own.cpu().numpy()
        except Exception as error:
            traceback = candidate.version != self._complained
            self._complained = candidate.version
            log.error("shadow_run_failed", version=candidate.version, error=str(error), exc_info=traceback)
            return None

    def _count_comparison(self, record: ShadowRecord, served: Labels, own: Labels | None) -> None:
        if own is None:
            found = {"failed": record.failed + 1}
        else:
            same = int(np.count_nonzero(served == own))
            found = {"images": record.images + 1, "pixels": record.pixels + served.size, "same": record.same + same}
        self._record = record.model_copy(update={**found, "updated": time.time()})
        self._dirty = True
        self._metrics.shadow_images.labels(result="compared" if own is not None else "failed").inc()
        self._metrics.shadow_agreement.set(self._record.agreement)

    def _record_of(self, candidate: int, serving: int) -> ShadowRecord:
        """Return the counts so far of these two versions, from this run or an earlier one."""
        pair, kept = (candidate, serving), self._record
        if kept is None or (kept.candidate, kept.serving) != pair:
            self._write(now=float("inf"))
            try:
                kept = self._records.read(candidate, self._plane)
            except (StorageError, OSError) as error:
                log.warning("shadow_record_reset", error=str(error))
                kept = None
        if kept is not None and (kept.candidate, kept.serving) == pair:
            return kept
        return ShadowRecord(candidate=candidate, serving=serving, since=time.time(), updated=time.time())

    def _write(self, *, now: float) -> None:
        if self._record is None or not self._dirty or now < self._written + WRITE_SECONDS:
            return
        self._written, self._dirty = min(now, time.monotonic()), False
        trouble = ""
        try:
            self._records.write(self._plane, self._record)
        except OSError as error:
            self._dirty = True  # tried again, without a line every few seconds where this plane may never write
            trouble = str(error)
            if trouble != self._unwritten:
                log.warning("shadow_record_not_written", error=trouble)
        self._unwritten = trouble
