"""Read a request body within limits on size and time; nothing beyond the limit is ever held in memory.

A refusal is answered at once. What the client still sends is read and thrown away by uvicorn: closing the connection on
unread data would reset it, and the client would never see why.
"""

import asyncio

from starlette.requests import Request
from starlette.types import Message

from daemon.serving.errors import ApiError

BODY_SECONDS = 60.0
"""Longest time that a client may take to send its body (seconds)."""


async def read_body(request: Request, limit: int) -> bytes:
    """The body of `request`, at most `limit` bytes.

    Raises ApiError: 413 body_too_large (from the header, or while reading a chunked upload), 415 unsupported_encoding,
    408 body_timeout, 400 client_disconnected.
    """
    if request.headers.get("content-encoding", "identity").lower() not in ("identity", ""):
        raise ApiError(415, "unsupported_encoding", "send the body as it is, without Content-Encoding")
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise _too_large(limit)
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await _collect(request, limit)
    except TimeoutError:
        raise ApiError(408, "body_timeout", f"the body did not arrive within {BODY_SECONDS:.0f} s") from None


async def _collect(request: Request, limit: int) -> bytes:
    body = bytearray()
    more = True
    while more:
        message = await request.receive()
        more = _continues(message)
        body += message.get("body", b"")
        if len(body) > limit:
            raise _too_large(limit)
    return bytes(body)


def _continues(message: Message) -> bool:
    if message["type"] == "http.disconnect":
        raise ApiError(400, "client_disconnected", "the client left before its body arrived")
    return bool(message.get("more_body", False))


def _too_large(limit: int) -> ApiError:
    return ApiError(413, "body_too_large", f"the body is larger than {limit} bytes (serving.max_body_bytes)")
