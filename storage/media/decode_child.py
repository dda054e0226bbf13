"""`python -m storage.media.decode_child FD`: decode images for `bounded.py` until its end of the connection closes.

Before each image the process limits its own processor time and memory; beyond them the kernel ends it.
"""

import json
import math
import resource
import signal
import sys
from multiprocessing.connection import Connection
from typing import Any

import psutil

from storage.errors import RefusedImage
from storage.media.images import Photo, decode_photo


def main() -> None:
    """Serve until the connection closes; signals to the parent's group do not end a decode."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    connection = Connection(int(sys.argv[1]))
    while True:
        try:
            wanted, data = json.loads(connection.recv_bytes()), connection.recv_bytes()
        except EOFError:
            return
        _limit(wanted.pop("seconds"), wanted.pop("memory"))
        _answer(connection, data, wanted)


def _limit(seconds: float, memory: int) -> None:
    """Allow `seconds` and `memory` (bytes) more than is used now."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    for kind, soft in (
        (resource.RLIMIT_CPU, math.ceil(used.ru_utime + used.ru_stime + seconds)),
        (resource.RLIMIT_AS, psutil.Process().memory_info().vms + memory),
    ):
        hard = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def _answer(connection: Connection, data: bytes, limits: dict[str, Any]) -> None:
    try:
        photo = decode_photo(data, **limits)
    except RefusedImage as error:
        said = {"reason": error.reason, "message": str(error)}
        if isinstance(error.__cause__, MemoryError):  # of the limit, not of damage
            said = {"reason": "too_costly", "message": ""}
    except MemoryError:
        said = {"reason": "too_costly", "message": ""}
    except Exception as error:  # noqa: BLE001 - a bug of a decoder costs one file
        said = {"reason": "not_an_image", "message": f"image: the decoder failed: {type(error).__name__}: {error}"}
    else:
        connection.send_bytes(json.dumps({"shape": photo.pixels.shape, "exif": _texts(photo)}).encode())
        connection.send_bytes(photo.pixels.data.cast("B"))
        return
    connection.send_bytes(json.dumps(said).encode())


def _texts(photo: Photo) -> dict[int, str]:
    """Return the EXIF tags that are text; those of times are."""
    return {tag: value for tag, value in photo.exif.items() if isinstance(value, str)}


if __name__ == "__main__":
    main()
