"""Everything behind the HTTP routes of one inference plane: registry, slots, follower, batcher, decoding threads."""

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
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
        self.metrics = ServingMetrics()
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
        self._slow_pool.shutdown()
        self._pool.shutdown()

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

    async def in_thread(self, work: Callable[[], T], *, slow: bool = False) -> T:
        """Run `work` (decoding, encoding) in a thread pool, off the event loop; `slow`: it waits for a child."""
        return await asyncio.get_running_loop().run_in_executor(self._slow_pool if slow else self._pool, work)

    async def segment(
        self, resident: Resident, images: Callable[[], Sequence[NDArray[np.uint8]]], *, slow: bool = False
    ) -> list[Labels]:
        """Return labels `[h, w]` for each RGB image `[h, w, 3]` of `images`, which runs in a thread pool.

        The caller holds a lease on `resident`, so all answers are of one version. Raises ApiError, and what `images`
        raises.
        """
        queued = (self._slow_pool if slow else self._pool).submit(lambda: self.submit(resident, images()))
        try:
            answers = await asyncio.wrap_future(queued)
        except asyncio.CancelledError:  # the thread goes on: what it queues, nobody waits for
            queued.add_done_callback(_abandon)
            raise
        return list(await asyncio.gather(*map(asyncio.wrap_future, answers)))

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
        fitted = [fit(pixels, resident.input_size, self.settings.serving) for pixels in images]
        return self.batcher.submit(resident, fitted)


def _abandon(queued: "Future[list[Future[Labels]]]") -> None:
    """Remove from the queue what was queued for a request that ended meanwhile."""
    if not queued.cancelled() and queued.exception() is None:
        for answer in queued.result():
            answer.cancel()
