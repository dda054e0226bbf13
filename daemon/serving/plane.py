"""Everything behind the HTTP routes of one inference plane: registry, slots, follower, batcher, decoding threads."""

import asyncio
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from adapters.inference.segment import choose_device
from configs.settings import Settings
from daemon.serving.api.body import Bodies
from daemon.serving.batcher import Batcher, Labels, fit
from daemon.serving.errors import ApiError
from daemon.serving.metrics import ServingMetrics
from daemon.serving.shadow import Shadow, plane_name
from daemon.serving.versions.follower import Follower
from daemon.serving.versions.slots import Resident, Slots
from daemon.serving.versions.swap import Swapper
from storage.layout import StateLayout
from storage.media.bounded import cancel_decodes
from storage.registry.registry import CheckpointRegistry
from storage.registry.shadow_record import ShadowRecords

SLOW_DECODES = 4
"""Images that child processes decode at once: others wait, while threads go on with PNG and JPEG."""
LABELS_AT_ONCE = 16
"""Label maps of the largest size (`watch.max_pixels`) that are in memory together; of usual images hundreds are."""
STOP_SECONDS = 30.0
"""Longest wait for each thread at the end (seconds)."""
MAX_SIDE = 65_535
"""Longest image side that is answered (pixels), the most that JPEG can hold: labels of a strip 1 x 64,000,000 would
pass the pixel limit and yet cost gigabytes."""

T = TypeVar("T")


class InferencePlane:
    """The parts of the inference plane, and the interface for the routes."""

    def __init__(self, settings: Settings, name: str | None = None, *, own_process: bool = False) -> None:
        """Build the parts; `name` names this plane in the records of shadows, by default its configured address.

        `own_process`: the process runs only this plane, so its garbage collection may be tuned for it.
        """
        serving = settings.serving
        self.settings = settings
        self.device = choose_device(serving.device)
        self.metrics = ServingMetrics(settings)
        self.slots = Slots()
        self.layout = StateLayout(settings.state)
        name = name or plane_name(serving.host, serving.port)
        self.shadow = Shadow(self.slots, ShadowRecords(self.layout.shadow), name, serving, self.metrics)
        self.batcher = Batcher(self.slots, serving, self.metrics, self.shadow.offer)
        self.registry = CheckpointRegistry(self.layout.checkpoints)
        self.swapper = Swapper(self.registry, self.slots, serving, self.device, self.metrics, self.batcher, own_process)
        self.follower = Follower(self.swapper)
        self.bodies = Bodies(serving.advanced.max_body_bytes)
        self.started = time.time()
        self.draining = False
        """Set when the process was asked to stop: not ready any more, but requests are still answered."""
        self._pool = ThreadPoolExecutor(min(4, os.cpu_count() or 1), thread_name_prefix="mfmd-decode")
        self._slow_pool = ThreadPoolExecutor(SLOW_DECODES, thread_name_prefix="mfmd-slow")
        # An answer never waits for images that came later: many large ones would be decoded, and none answered in time.
        self._last_pool = ThreadPoolExecutor(min(4, os.cpu_count() or 1), thread_name_prefix="mfmd-answer")
        self._labels_held = 0  # pixels; used on the event loop only

    def start(self) -> None:
        """Start following and batching."""
        self.batcher.start()
        if self.settings.serving.shadow_fraction:
            self.shadow.start()
        self.follower.start()

    def stop(self) -> None:
        """Answer what waits, then end all threads. May be called twice."""
        self.draining = True
        self.follower.stop(STOP_SECONDS)
        self.batcher.stop(STOP_SECONDS)
        self.shadow.stop(STOP_SECONDS)
        cancel_decodes()
        for pool in (self._slow_pool, self._pool, self._last_pool):
            pool.shutdown()

    @property
    def ready(self) -> bool:
        """Whether requests are answered: a version is loaded, its thread lives and the process is not stopping."""
        return self.slots.live is not None and not self.draining and not self.batcher.dead

    @property
    def dead(self) -> list[str]:
        """Threads that ended by a bug, and the effect; empty when all live. Only a restart repairs it."""
        meanings = {
            self.batcher: "the batcher's thread ended: no request is answered; restart the server",
            self.follower: "the follower's thread ended: no other version will be loaded; restart the server",
        }
        return [meaning for thread, meaning in meanings.items() if thread.dead]

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Run `work` on a body in a thread pool, off the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    async def segment(
        self,
        resident: Resident,
        images: Callable[[], Sequence[NDArray[np.uint8]]],
        answer: Callable[[list[Labels]], T],
        *,
        slow: bool = False,
        slow_answer: bool = False,
    ) -> T:
        """Return what `answer` makes of the labels `[h, w]` of each RGB image `[h, w, 3]` of `images`.

        Both run in thread pools; a slow one waits for a child process. The caller holds a lease on `resident`, so all
        labels are of one version. Raises ApiError, and what `images` and `answer` raise.
        """

        def queue() -> "tuple[int, list[Future[Labels]]]":
            found = images()
            return sum(pixels.shape[0] * pixels.shape[1] for pixels in found), self.submit(resident, found)

        queued = (self._slow_pool if slow else self._pool).submit(queue)
        try:
            pixels, waiting = await asyncio.wrap_future(queued)
        except asyncio.CancelledError:  # the thread goes on: what it queues, nobody waits for
            queued.add_done_callback(_abandon)
            raise
        with self._room_for_labels(pixels, waiting):
            labels = list(await asyncio.gather(*map(asyncio.wrap_future, waiting)))
            pool = self._slow_pool if slow_answer else self._last_pool
            return await asyncio.get_running_loop().run_in_executor(pool, answer, labels)

    @contextmanager
    def _room_for_labels(self, pixels: int, waiting: "list[Future[Labels]]") -> Iterator[None]:
        """Hold room for labels until they are encoded; without room leave the queue and raise ApiError 503 queue_full.

        The queue holds images at the network's size, labels have the image's own: 64 million bytes of a PNG of 187 kB.
        """
        if self._labels_held + pixels > LABELS_AT_ONCE * self.settings.watch.max_pixels:
            for one in waiting:
                one.cancel()
            message = f"answers of {self._labels_held} pixels are in progress; try again in 1 s"
            raise ApiError(503, "queue_full", message, retry_after=1)
        self._labels_held += pixels
        try:
            yield
        finally:
            self._labels_held -= pixels

    def submit(self, resident: Resident, images: Sequence[NDArray[np.uint8]]) -> "list[Future[Labels]]":
        """Fit RGB images `[h, w, 3]` and queue them for `resident`, which the caller holds: all of them or none.

        Raises ApiError: batch_too_large, side_too_long, queue_full, shutting_down.
        """
        limit = self.settings.serving.advanced.queue_images
        if len(images) > limit:
            message = f"{len(images)} images at once; at most {limit} (serving.advanced.queue_images)"
            raise ApiError(413, "batch_too_large", message)
        longest = max(max(pixels.shape[:2]) for pixels in images)
        if longest > MAX_SIDE:
            raise ApiError(413, "side_too_long", f"an image side has {longest} pixels; the limit is {MAX_SIDE}")
        fitted = [fit(pixels, resident, self.settings.serving) for pixels in images]
        return self.batcher.submit(resident, fitted)


def _abandon(queued: "Future[tuple[int, list[Future[Labels]]]]") -> None:
    """Remove from the queue what was queued for a request that ended meanwhile."""
    if not queued.cancelled() and queued.exception() is None:
        for answer in queued.result()[1]:
            answer.cancel()
