"""Decode images and labels in bounded processor time and memory: no file costs more than its budget.

PNG of few chunks, and JPEG of few scans, cost what their bytes and pixels say, so threads decode them. Everything else
goes to a child process, which the kernel ends beyond the budget: a progressive JPEG of 332 kB can ask for minutes.
"""

import atexit
import errno
import functools
import json
import math
import os
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from configs.watch import WatchSettings
from storage.durable.digest import digest_of
from storage.errors import RefusedImage
from storage.media.decode_cost import is_cheap
from storage.media.images import Decode, Photo, photo_parts, read_file

STOPS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Signals from outside that end a child, the last three only until it ignores them: no decoder causes them."""
IDLE_SECONDS, WAIT_A_SECOND = 30.0, 10.0
"""Longest wait for a child: always (seconds), and for each second of processor time that it may use. Beyond it the
child is stopped or hangs, as after SIGSTOP."""
ATTEMPTS = 5
"""An image is refused when so many processes in a row were killed or hung while they decoded it: one blames nothing."""
REMEMBERED = 1000
"""Images whose killed processes are counted."""
MEMORY, BYTES_A_PIXEL, BYTES_A_BYTE = 256 * 2**20, 32, 8
"""Memory of one decode (bytes): always, for each pixel allowed, and for each byte of the file allowed."""


@dataclass(frozen=True, slots=True)
class DecodeLimits:
    """What an image file may ask for."""

    max_bytes: int
    """Size of the file."""
    max_pixels: int
    """Width x height."""
    seconds: float
    """Processor time of its decoding."""
    max_aspect: float = math.inf
    """Longest over shortest side."""

    @classmethod
    def of(cls, watch: WatchSettings) -> "DecodeLimits":
        """Return the limits of the settings; the aspect is ingest's own."""
        return cls(watch.max_file_bytes, watch.max_pixels, watch.advanced.decode_seconds)


def decode_bounded(source: Path | bytes, limits: DecodeLimits) -> Photo:
    """Decode as `decode_photo`, within `limits`; of the EXIF tags only those that are text. Raises as `run_bounded`."""
    decode = functools.partial(
        photo_parts, max_bytes=limits.max_bytes, max_pixels=limits.max_pixels, max_aspect=limits.max_aspect
    )
    pixels, facts = run_bounded(decode, source, limits)
    return Photo(pixels, {int(tag): text for tag, text in facts["exif"].items()}, facts["orientation"])


def run_bounded(decode: Decode, source: Path | bytes, limits: DecodeLimits) -> tuple[NDArray[np.uint8], dict[str, Any]]:
    """Return what `decode` makes of a file, within `limits`; may be called from any thread.

    `decode` can be pickled; a child turns the keys of the facts into text. Raises RefusedImage, also with too_costly
    and decoder_crashed; FileNotFoundError and other I/O errors pass through, and OSError says that the same file may be
    decoded later.
    """
    data = read_file(source, limits.max_bytes) if isinstance(source, Path) else source
    try:
        return decode(data) if is_cheap(data) else _CHILDREN.decode(decode, data, limits)
    except RefusedImage as error:
        if not isinstance(source, Path):
            raise
        raise RefusedImage(error.reason, f"{source}: {str(error).removeprefix('image: ')}") from error


def cancel_decodes() -> None:
    """End the children of this process; a decode in progress raises OSError, and the next one starts a child."""
    _CHILDREN.cancel()


class _Child:
    """One process that decodes one image at a time."""

    def __init__(self) -> None:
        self._connection, theirs = Pipe()
        with theirs:
            command = [sys.executable, "-P", "-m", "storage.media.decode_child", str(theirs.fileno())]
            self._process = subprocess.Popen(
                command,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # libtiff's warnings
                env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            )
        self.cancelled = False
        """Whether this process ended it itself, so that the file is not to blame."""

    def decode(self, decode: Decode, data: bytes, limits: DecodeLimits) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Decode; after any error but RefusedImage the child has ended."""
        memory = MEMORY + BYTES_A_PIXEL * limits.max_pixels + BYTES_A_BYTE * limits.max_bytes
        self._connection.send((decode, limits.seconds, memory))
        self._connection.send_bytes(data)
        said = json.loads(self._connection.recv_bytes())
        if "reason" in said:
            raise RefusedImage(said["reason"], said["message"] or f"image: decoding it takes more than {memory} bytes")
        pixels = np.empty(said["shape"], np.uint8)
        self._connection.recv_bytes_into(pixels.data.cast("B"))
        return pixels, said

    def lives(self) -> bool:
        """Return whether the process lives; reap it if not."""
        return self._process.poll() is None

    def end(self, *, cancelled: bool = False) -> None:
        """Kill it."""
        self.cancelled |= cancelled
        self._process.kill()

    def explain(self, limits: DecodeLimits) -> Exception:
        """Return the error for an image whose decoding ended the process; reap it."""
        self._connection.close()
        status = self._process.wait()
        if self.cancelled or status >= 0 or -status in STOPS:
            return OSError(errno.ECANCELED, f"the decoder process ended before it answered (status {status})")
        if status == -signal.SIGXCPU:
            what = f"decoding it takes more than {limits.seconds:g} s of processor time (watch.advanced.decode_seconds)"
            return RefusedImage("too_costly", f"image: {what}")
        return RefusedImage("decoder_crashed", f"image: the decoder crashed ({signal.Signals(-status).name})")

    def close(self) -> None:
        """End it and reap it."""
        self._connection.close()
        self._process.kill()
        self._process.wait()


class _Children:
    """The children of this process: as many as decode at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[_Child] = []
        self._busy: set[_Child] = set()
        self._deaths: dict[str, int] = {}
        """By digest of the image, how many processes in a row were killed or hung while they decoded it."""

    def decode(self, decode: Decode, data: bytes, limits: DecodeLimits) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Decode in an idle child, or in a new one. Raises RefusedImage, or OSError when the file is not to blame."""
        child = self._take()
        longest = IDLE_SECONDS + WAIT_A_SECOND * limits.seconds
        alarm = threading.Timer(longest, child.end)
        alarm.daemon = True
        alarm.start()
        try:
            decoded = child.decode(decode, data, limits)
        except RefusedImage:
            self._put_back(child)
            raise
        except BaseException as error:
            with self._lock:
                self._busy.discard(child)
            if isinstance(error, EOFError | OSError):
                raise self._blamed(data, child, child.explain(limits)) from None
            child.close()
            raise
        finally:
            alarm.cancel()
        self._put_back(child)
        if self._deaths:
            with self._lock:
                self._deaths.pop(digest_of(data), None)
        return decoded

    def _blamed(self, data: bytes, child: _Child, error: Exception) -> Exception:
        """Return `error`, or the refusal of an image of which too many processes died, as when memory runs out."""
        if isinstance(error, RefusedImage) or child.cancelled:
            return error
        with self._lock:
            digest = digest_of(data)
            died = self._deaths.pop(digest, 0) + 1
            if died < ATTEMPTS:
                self._deaths[digest] = died
                for oldest in [*self._deaths][:-REMEMBERED]:
                    del self._deaths[oldest]
                return error
        what = f"{died} processes in a row were killed or hung while they decoded it; memory may have run out"
        return RefusedImage("decoder_crashed", f"image: {what}")

    def cancel(self) -> None:
        with self._lock:
            for child in self._busy:
                child.end(cancelled=True)
            while self._idle:
                self._idle.pop().close()

    def _take(self) -> _Child:
        with self._lock:
            while self._idle:  # of those some may have been killed
                child = self._idle.pop()
                if child.lives():
                    break
                child.close()
            else:
                child = _Child()
            self._busy.add(child)
            return child

    def _put_back(self, child: _Child) -> None:
        with self._lock:
            self._busy.discard(child)
            self._idle.append(child)


_CHILDREN = _Children()
atexit.register(cancel_decodes)
