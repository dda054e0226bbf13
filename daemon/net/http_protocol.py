"""HTTP/1.1 of both planes: uvicorn's, with bounds that it has no setting for.

httptools parses a body of many tiny chunks some thirty times faster than h11, which holds the event loop for seconds.
"""

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

LARGEST_HEAD = 64 * 1024
"""Most bytes of a request line and its headers, of trailers, or between two parts of a body."""
ARRIVAL_MARGIN = 5.0
"""How much later than its answer a late request loses its connection (seconds)."""
HALF_CLOSED_SECONDS = 2.0
"""How long a client that closed its side waits for its answer. A client that left looks the same."""


class BoundedHttp(HttpToolsProtocol):
    """One connection: a request arrives whole within `arrival_seconds`, and its head is bounded."""

    arrival_seconds: float
    _arrival: asyncio.TimerHandle | None = None
    _unparsed = 0
    _in_head = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._expect_request()

    def data_received(self, data: bytes) -> None:
        """Parse what arrived; refuse a head, a trailer or a chunk's extension without an end."""
        self._expect_request()
        self._unparsed += len(data)
        super().data_received(data)
        if self._unparsed <= LARGEST_HEAD or self.transport.is_closing():
            return
        if self._in_head:
            self.send_400_response(f"The head of the request is larger than {LARGEST_HEAD} bytes.")
        self.transport.close()

    def eof_received(self) -> bool:  # type: ignore[override]
        """Return whether the connection stays open: a client that sent a whole request may still read its answer."""
        cycle = self.cycle
        if self.scheme == "https" or cycle is None or cycle.more_body or cycle.response_complete:
            return False
        cycle.keep_alive = False
        self.loop.call_later(HALF_CLOSED_SECONDS, self.transport.close)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """End the connection."""
        self._request_arrived()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """Begin a request."""
        self._in_head = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Start the application on a request."""
        self._in_head, self._unparsed = False, 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take a part of the body."""
        self._unparsed = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End a request."""
        self._unparsed = 0
        self._request_arrived()
        super().on_message_complete()

    def _expect_request(self) -> None:
        if self._arrival is None:
            self._arrival = self.loop.call_later(self.arrival_seconds, self.transport.close)

    def _request_arrived(self) -> None:
        if self._arrival is not None:
            self._arrival.cancel()
            self._arrival = None


def bounded_http(arrival_seconds: float) -> type[BoundedHttp]:
    """Return the protocol class for `uvicorn.Config(http=...)`; it closes what does not arrive within that time."""
    return type("BoundedHttp", (BoundedHttp,), {"arrival_seconds": arrival_seconds})
