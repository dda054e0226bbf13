"""Read request bodies within limits: of one body, and of all bodies together; nothing beyond them is ever held.

A refusal is answered at once. uvicorn reads and discards what the client still sends: closing the connection on unread
data would reset it, and the client would never see why. The time of a body: `middleware.py`.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.requests import Request

from daemon.serving.errors import ApiError

LARGEST_AT_ONCE = 16
"""Bodies of the largest size that fit into memory together; of usual images thousands fit."""


class Bodies:
    """The bodies of all requests in progress. Used on the event loop only."""

    def __init__(self, largest: int) -> None:
        """`largest`: most bytes of one body."""
        self._largest = largest
        self.held = 0
        """Bytes in memory now."""

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[bytes]:
        """Return the body of `request`, counted as held until the block ends.

        Raises ApiError: 413 body_too_large (from the header, or while reading a chunked upload), 415
        unsupported_encoding, 400 client_disconnected, 503 too_many_bodies.
        """
        self._check_headers(request)
        parts, size, more = bytearray(), 0, True  # a list of tiny parts would take 20 times their bytes
        try:
            while more:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ApiError(400, "client_disconnected", "the client disconnected before its body arrived")
                more = message.get("more_body", False)
                part: bytes = message.get("body", b"")
                self._check_room(size, len(part))
                parts += part
                size += len(part)
                self.held += len(part)
            body = bytes(parts)
            parts.clear()  # or it would be there twice until the answer
            yield body
        finally:
            self.held -= size

    def _check_headers(self, request: Request) -> None:
        if request.headers.get("content-encoding", "identity").lower() not in ("identity", ""):
            raise ApiError(415, "unsupported_encoding", "send the body as it is, without Content-Encoding")
        declared = request.headers.get("content-length", "")
        if declared.isdecimal():
            self._check_room(0, int(declared))

    def _check_room(self, so_far: int, more: int) -> None:
        if so_far + more > self._largest:
            message = f"the body is larger than {self._largest} bytes (serving.advanced.max_body_bytes)"
            raise ApiError(413, "body_too_large", message)
        if self.held + more > LARGEST_AT_ONCE * self._largest:
            message = f"{self.held} bytes of other requests are held; retry in 1 s"
            raise ApiError(503, "too_many_bodies", message, retry_after=1)
