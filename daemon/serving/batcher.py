"""Dynamic batching: images of one version and one valid size share a forward pass, in a thread of their own.

A group runs when it is full (`max_batch_images`) or when its first image has waited `max_delay_ms`. Among the due
groups the one that waited longest runs first. While the thread is busy groups fill by themselves, so under load batches
are full and no image waits for the timer. The work after the network, from logits to labels at an image's own size,
runs in a second thread, beside the next forward pass.
"""

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adapters.inference.segment import labels_at, logits_fitted
from adapters.inference.windows import Window
from configs.serving import ServingSettings
from daemon.runtime.logs import get_logger
from daemon.serving.errors import ApiError, QueueFull
from daemon.serving.metrics import ServingMetrics
from daemon.serving.threads import PlaneThread
from daemon.serving.versions.slots import Resident, Slots
from storage.media.images import FittedFrame, fit_frame

SIZES_REMEMBERED = 8
"""Valid sizes kept for the warm-up of the next version."""
LOGITS_HELD = 2
"""Images whose logits are being converted to labels; the next forward pass waits at this number."""

log = get_logger(__name__)

Labels: TypeAlias = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Fitted:
    """One image ready for the network."""

    frame: FittedFrame
    """The image fitted to the version's input size, or scaled to cover it where windows slide."""
    size: tuple[int, int]
    """Height and width of the answer (pixels): those of the original image."""


@dataclass(slots=True, eq=False)
class _Waiting:
    resident: Resident
    image: Fitted
    answer: "Future[Labels]" = field(default_factory=Future)
    arrived: float = field(default_factory=time.monotonic)

    @property
    def group(self) -> tuple[int, int, int]:
        """Key of a batch: the resident version and the valid size."""
        return id(self.resident), self.image.frame.valid_height, self.image.frame.valid_width


def window_of(settings: ServingSettings, input_size: tuple[int, int]) -> Window | None:
    """Return the window of `serving.advanced.window: slide` for an input size (h, w); None when images are resized."""
    return Window(*input_size, settings.advanced.window_overlap) if settings.advanced.window == "slide" else None


def fit(pixels: NDArray[np.uint8], resident: Resident, settings: ServingSettings) -> Fitted:
    """Prepare an RGB image `[h, w, 3]` for a version: as it was registered, or scaled to cover its window."""
    window = window_of(settings, resident.input_size)
    frame = window.fit(pixels) if window else fit_frame(pixels, *resident.input_size, resident.fit)
    return Fitted(frame, (pixels.shape[0], pixels.shape[1]))


class Batcher(PlaneThread):
    """The bounded queue and the thread that empties it."""

    def __init__(
        self,
        slots: Slots,
        settings: ServingSettings,
        metrics: ServingMetrics,
        on_answer: Callable[[int, Fitted, Labels], None],
    ) -> None:
        """`on_answer` is told version, image and labels of every answer, after it was given; it must return at once."""
        super().__init__("mfmd-batcher")
        self._slots, self._settings, self._metrics, self._on_answer = slots, settings, metrics, on_answer
        self._changed = threading.Condition()
        self._waiting: list[_Waiting] = []
        self.served_sizes: list[tuple[int, int]] = []
        """Valid sizes (height, width) that ran lately, the last one first; at most eight."""
        self._seconds_per_image = 0.1
        self._labelling = ThreadPoolExecutor(1, thread_name_prefix="mfmd-labels")
        self._room = threading.BoundedSemaphore(LOGITS_HELD)
        metrics.queue_depth.set_function(lambda: self.depth)

    def stop(self, timeout: float) -> None:
        """Answer everything that waits, then end; gives up after `timeout` seconds."""
        with self._changed:
            self.stopping.set()
            self._changed.notify_all()
        super().stop(timeout)
        self._labelling.shutdown(wait=not self.is_alive())

    @property
    def depth(self) -> int:
        """Images that wait for a forward pass."""
        return len(self._waiting)

    def check_room(self, images: int = 1) -> None:
        """Raise QueueFull if `images` more do not fit now; a cheap check before a body is read and decoded."""
        with self._changed:
            if self.stopping.is_set():
                raise ApiError(503, "shutting_down", "the server is stopping; use another one", retry_after=1)
            if self.depth + images > self._settings.advanced.queue_images:
                raise QueueFull(self.depth, max(1, math.ceil(self.depth * self._seconds_per_image)))

    def submit(self, resident: Resident, images: Sequence[Fitted]) -> "list[Future[Labels]]":
        """Queue images for `resident`, all of them or none; the caller holds a lease on it.

        The futures give labels `[h, w]` at each image's own size. Raises QueueFull.
        """
        with self._changed:
            self.check_room(len(images))
            items = [_Waiting(resident, image) for image in images]
            for item in items:
                self._slots.hold(resident)
                item.answer.add_done_callback(partial(self._forget, item))
            self._waiting += items
            self._changed.notify_all()
        return [item.answer for item in items]

    def _forget(self, item: _Waiting, answer: "Future[Labels]") -> None:
        """Free the place of an image whose answer nobody waits for any more, unless it is running or done."""
        if not answer.cancelled():
            return
        with self._changed:
            if item not in self._waiting:
                return
            self._waiting.remove(item)
        self._slots.release(item.resident)

    def run(self) -> None:
        """Answer batches until stopped."""
        while (batch := self._next_batch()) is not None:
            live = [item for item in batch if item.answer.set_running_or_notify_cancel()]
            try:
                if live:
                    self._answer(live)
            except Exception as error:  # without this thread nobody would be answered any more
                log.exception("batch_crashed", images=len(live))
                for item in live:
                    if not item.answer.done():
                        item.answer.set_exception(error)
            finally:
                for item in batch:
                    self._slots.release(item.resident)

    def _next_batch(self) -> list[_Waiting] | None:
        """Wait for a group that is due; None when the batcher stops and nothing waits any more."""
        with self._changed:
            while self._waiting or not self.stopping.is_set():
                groups: dict[tuple[int, int, int], list[_Waiting]] = {}
                for item in self._waiting:
                    groups.setdefault(item.group, []).append(item)
                first = min(groups.values(), key=self._due_at, default=[])
                pause = self._due_at(first) - time.monotonic() if first else None
                if pause is not None and pause <= 0:
                    return self._take(first[: self._settings.max_batch_images])
                self._changed.wait(pause)
        return None

    def _due_at(self, items: list[_Waiting]) -> float:
        """Return when a group runs (monotonic seconds): at once if full or stopping, else after a delay."""
        if self.stopping.is_set() or len(items) >= self._settings.max_batch_images:
            return items[0].arrived
        return items[0].arrived + self._settings.advanced.max_delay_ms / 1000

    def _take(self, batch: list[_Waiting]) -> list[_Waiting]:
        self._waiting = [item for item in self._waiting if item not in batch]
        frame, full = batch[0].image.frame, batch[0].resident.input_size
        # Where windows slide over a larger frame, the size of a window.
        size = min(frame.valid_height, full[0]), min(frame.valid_width, full[1])
        self.served_sizes = [size, *(other for other in self.served_sizes if other != size)][:SIZES_REMEMBERED]
        return batch

    def _answer(self, batch: list[_Waiting]) -> None:
        """Run one forward pass and distribute its result; on failure each image is tried by itself."""
        handed = 0
        try:
            for logits in self._logits(batch):
                self._room.acquire()
                self._labelling.submit(self._label, batch[handed], logits)
                handed += 1
        except Exception as error:
            if len(batch) > 1:  # out of memory, or one image that breaks the rest: do not punish the others
                log.warning("batch_failed", images=len(batch), error=str(error))
                for item in batch[handed:]:
                    self._answer([item])
            else:
                log.exception("forward_failed", version=batch[0].resident.version, size=batch[0].image.size)
                batch[0].answer.set_exception(error)

    def _logits(self, batch: list[_Waiting]) -> Iterator[Tensor]:
        started, resident = time.perf_counter(), batch[0].resident
        window = window_of(self._settings, resident.input_size)
        frames = [item.image.frame for item in batch]
        for number, logits in enumerate(logits_fitted(resident.forward, frames, window.logits if window else None)):
            if number + 1 == len(batch):  # before the last is handed out: who has an answer finds its batch counted
                seconds = time.perf_counter() - started
                self._metrics.batch_size.observe(len(batch))
                self._metrics.batch_seconds.observe(seconds)
                self._seconds_per_image += 0.2 * (seconds / len(batch) - self._seconds_per_image)
            yield logits

    def _label(self, item: _Waiting, logits: Tensor) -> None:
        """Convert logits to an answer, in a thread of its own, while the next image passes the network."""
        try:
            with torch.inference_mode():
                labels = labels_at(logits, item.image.size).cpu().numpy()
            item.answer.set_result(labels)
            self._on_answer(item.resident.version, item.image, labels)
        except Exception as error:
            log.exception("labels_failed", version=item.resident.version, size=item.image.size)
            if not item.answer.done():
                item.answer.set_exception(error)
        finally:
            self._room.release()
