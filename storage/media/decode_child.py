"""`python -m storage.media.decode_child FD`: decode files for `bounded.py` until its end of the connection closes.

Before each image the process limits its own processor time and memory; beyond them the kernel ends it.
"""

import fcntl
import json
import math
import os
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from storage.errors import RefusedImage
from storage.media.images import Decode


def main() -> None:
    """Serve until the connection closes; signals to the parent's group do not end a decode."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    connection = Connection(int(sys.argv[1]))
    while True:
        try:
            (decode, seconds, memory), data = connection.recv(), connection.recv_bytes()
        except EOFError:
            return
        used = resource.getrusage(resource.RUSAGE_SELF)
        _limit(resource.RLIMIT_CPU, math.ceil(used.ru_utime + used.ru_stime + seconds))
        _limit(resource.RLIMIT_AS, psutil.Process().memory_info().vms + memory)
        with _ended_with_the_parent(connection):
            said, pixels = _decode(decode, data)
        _limit(resource.RLIMIT_AS, resource.RLIM_INFINITY)
        connection.send_bytes(json.dumps(said).encode())
        if pixels is not None:
            connection.send_bytes(pixels.data.cast("B"))


@contextmanager
def _ended_with_the_parent(connection: Connection) -> Iterator[None]:
    """Let the kernel end this process (SIGIO) when the parent's end closes, whatever a decoder does meanwhile."""
    file = connection.fileno()
    flags = fcntl.fcntl(file, fcntl.F_GETFL)
    fcntl.fcntl(file, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(file, fcntl.F_SETFL, flags | os.O_ASYNC)
    try:
        if connection.poll():
            raise SystemExit  # it had closed before
        yield
    finally:
        fcntl.fcntl(file, fcntl.F_SETFL, flags)


def _limit(kind: int, soft: int) -> None:
    hard = resource.getrlimit(kind)[1]
    if hard != resource.RLIM_INFINITY:
        soft = hard if soft == resource.RLIM_INFINITY else min(soft, hard)
    resource.setrlimit(kind, (soft, hard))


def _decode(decode: Decode, data: bytes) -> tuple[dict[str, Any], NDArray[np.uint8] | None]:
    """Return what to say, and the pixels of a file that can be decoded."""
    try:
        pixels, facts = decode(data)
    except RefusedImage as error:
        if not isinstance(error.__cause__, MemoryError):  # else it is about the limit, not about damage
            return {"reason": error.reason, "message": str(error)}, None
        return {"reason": "too_costly", "message": ""}, None
    except MemoryError:
        return {"reason": "too_costly", "message": ""}, None
    except Exception as error:  # noqa: BLE001 - a bug of a decoder costs one file
        what = f"image: the decoder failed: {type(error).__name__}: {error}"
        return {"reason": "not_an_image", "message": what}, None
    return facts | {"shape": pixels.shape}, np.ascontiguousarray(pixels)


if __name__ == "__main__":
    main()
