"""HTTP/1.1 of both planes: uvicorn's, with bounds that it has no setting for.

httptools parses a body of many tiny chunks some thirty times faster than h11, which holds the event loop for seconds.
"""

import asyncio
import json

import httptools
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from daemon.errors import DaemonError, InvalidHttp, ShuttingDown, TooManyConnections
from daemon.net.listening import Crowd

LARGEST_HEAD = 64 * 1024
"""Most bytes of a request line and its headers, of trailers, or between two parts of a body."""
PARSED_AT_ONCE = 4096
"""Most bytes of one call of the parser: some 200 of the smallest requests, each of which takes kilobytes."""
MOST_UNREAD = 512 * 1024 * 1024
"""Most bytes of all answers that their clients have not taken: a slow reader of an overlay holds up to 200 MB."""
ARRIVAL_MARGIN = 5.0
"""How much later than its answer a late request loses its connection (seconds)."""
LAST_ARRIVAL_SECONDS = 5.0
"""How long the rest of a request may still take when the server stops; at most half of the time it takes to stop."""
HALF_CLOSED_SECONDS = 2.0
"""How long a client that closed its side waits for its answer. A client that left looks the same."""


class _Flow(FlowControl):
    """Reads nothing while it is full; otherwise each request that is answered lets uvicorn read many more."""

    full = False

    def resume_reading(self) -> None:
        """Read on, unless what was read still waits."""
        if not self.full:
            super().resume_reading()


class BoundedHttp(HttpToolsProtocol):
    """One connection: a request arrives whole within `arrival_seconds`, its head is bounded, few requests wait.

    A server has at most `crowd.most` connections. One more closes the one that is idle for longest; when none is, it is
    refused with 503.
    """

    arrival_seconds: float
    crowd: Crowd
    flow: _Flow
    _arrival: asyncio.TimerHandle | None = None
    _unparsed = 0
    _in_head = _in_request = False
    _invalid: InvalidHttp | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(transport)
        self.flow = _Flow(transport)
        self._waiting = bytearray()
        self._idle_since = self.loop.time()
        self._expect_request()
        if len(self.connections) > self.crowd.most:
            self._make_room()

    @property
    def idle(self) -> bool:
        """Return whether no request is here, not even a part of one, and every answer was sent."""
        answered = self.cycle is None or self.cycle.response_complete
        return answered and not self._in_request and not self.transport.get_write_buffer_size()

    def _make_room(self) -> None:
        others = (it for it in self.connections if isinstance(it, BoundedHttp) and it is not self and it.idle)
        oldest = min(others, key=lambda it: it._idle_since, default=None)
        if oldest is None:
            self._refuse(TooManyConnections("every connection that this server may have is busy; try again"))
        victim = oldest or self
        self.crowd.count("gave_way" if oldest else "refused")
        self.connections.discard(victim)  # now, not when its socket is closed: the next one counts
        victim.transport.abort()  # `close` waits for the client, over TLS for 30 s

    def _refuse(self, error: DaemonError) -> None:
        """Answer 503 and end the connection at once."""
        self._say("503 Service Unavailable\r\nretry-after: 1", error)
        self.transport.abort()

    def _say(self, status: str, error: DaemonError) -> None:
        body = json.dumps({"code": error.code, "message": str(error), "error": str(error)})
        head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\nconnection: close\r\n"
        self.transport.write(f"{head}content-length: {len(body)}\r\n\r\n{body}".encode("ascii"))

    def _bound_unread(self) -> None:
        """Cut off the largest other answers until the clients' unread ones are within `MOST_UNREAD`."""
        sizes = {it: it.transport.get_write_buffer_size() for it in self.connections if isinstance(it, BoundedHttp)}
        unread = sum(sizes.values())
        for other in sorted(sizes.keys() - {self}, key=sizes.__getitem__, reverse=True):
            if unread <= MOST_UNREAD:
                return
            unread -= sizes[other]
            self.crowd.count("cut_off")
            other.transport.abort()

    def shutdown(self) -> None:
        """Close without a request; otherwise finish it, if the rest of it comes soon."""
        super().shutdown()
        self._await_rest()

    def _await_rest(self) -> None:
        most = (self.config.timeout_graceful_shutdown or 2 * LAST_ARRIVAL_SECONDS) / 2
        self.loop.call_later(min(LAST_ARRIVAL_SECONDS, most), self._end_wait)

    def _end_wait(self) -> None:
        if self.transport.is_closing():
            return
        if self.pipeline or self._invalid:  # the requests before it are answered first
            self._await_rest()
        elif self.cycle.more_body and not self.cycle.response_started:
            self._refuse(ShuttingDown("the server is stopping and the rest of the request did not come; send it again"))

    def data_received(self, data: bytes) -> None:
        """Parse what arrived; refuse a head, a trailer or a chunk's extension without an end."""
        if self._invalid:
            return
        self._expect_request()
        self._waiting += data
        self._parse()

    def on_response_complete(self) -> None:
        """Go on with the requests that wait."""
        self._idle_since = self.loop.time()
        if self.transport.get_write_buffer_size():
            self._bound_unread()
        if self._invalid and not self.pipeline:
            self._say_invalid(self._invalid)
        super().on_response_complete()
        self._parse()

    def _parse(self) -> None:
        """Parse what waits, until a request is complete that must wait for the answer to another."""
        while self._waiting and not self.pipeline and not self.transport.is_closing():
            self._end_idleness()
            part = bytes(self._waiting[:PARSED_AT_ONCE])
            del self._waiting[:PARSED_AT_ONCE]
            self._feed(part)
        answered = self.cycle is None or self.cycle.response_complete
        self.flow.full = bool(self._waiting)
        if self.flow.full:
            self.flow.pause_reading()
        elif self._in_head or answered:
            self.flow.resume_reading()
        if self._in_request:
            self._expect_request()
        elif answered and self._arrival is None and not self.transport.is_closing():
            self._end_idleness()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def _feed(self, data: bytes) -> None:
        self._unparsed += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._stay_with_http(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            self._reject(f"not a request that the server takes: {error.__context__ or error}")
        if self._unparsed > LARGEST_HEAD and not self._invalid:
            self._reject(f"the head, the trailers or what stands beside a chunk is larger than {LARGEST_HEAD} bytes")

    def _reject(self, message: str) -> None:
        """Read no further, and answer 400 after the answers to the requests before."""
        self._waiting.clear()
        self._invalid = InvalidHttp(message)
        in_body, pending = self._in_request and not self._in_head, bool(self.pipeline)
        if in_body and pending:
            self.pipeline.popleft()  # what is invalid is the body of this request, which still waits
        elif not in_body:
            pending = self.cycle is not None and not self.cycle.response_complete
        if not pending:
            self._say_invalid(self._invalid)

    def _say_invalid(self, error: InvalidHttp) -> None:
        already_answered = self._in_request and not self._in_head and self.cycle.response_started
        if not already_answered and not self.transport.is_closing():
            self._say("400 Bad Request", error)
        self.transport.close()

    def _stay_with_http(self, rest: bytes) -> None:
        """Read the head again without its offer of another protocol: for an upgrade, llhttp leaves the body unread."""
        line = b"%s %s HTTP/%s\r\n" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())
        head = b"".join(b"%s: %s\r\n" % (name, value) for name, value in self.headers if name != b"upgrade")
        self.parser = httptools.HttpRequestParser(self)
        self._feed(line + head + b"\r\n" + rest)

    def _end_idleness(self) -> None:
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()
            self.timeout_keep_alive_task = None

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
        self._in_head = self._in_request = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Start the application on a request; one that offers an upgrade is read again, without the offer."""
        if self.parser.get_method() == b"CONNECT":
            raise InvalidHttp("CONNECT asks for a proxy")  # llhttp takes its body for the other protocol
        if self.parser.should_upgrade():
            return
        self.expect_100_continue &= self.parser.get_http_version() != "1.0"  # RFC 9110, section 10.1.1
        try:
            super().on_headers_complete()
        except (httptools.HttpParserError, AttributeError, UnicodeError) as error:  # AttributeError: it has no path
            raise InvalidHttp("its target cannot be read") from error
        self._in_head, self._unparsed = False, 0

    def on_body(self, body: bytes) -> None:
        """Take a part of the body."""
        self._unparsed = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End a request."""
        if self.parser.should_upgrade():
            return
        self._unparsed, self._in_request = 0, False
        self._request_arrived()
        super().on_message_complete()

    def _expect_request(self) -> None:
        if self._arrival is None:
            self._arrival = self.loop.call_later(self.arrival_seconds, self.transport.close)

    def _request_arrived(self) -> None:
        if self._arrival is not None:
            self._arrival.cancel()
            self._arrival = None


def bounded_http(arrival_seconds: float, crowd: Crowd) -> type[BoundedHttp]:
    """Return the protocol class for `uvicorn.Config(http=...)`; it closes what does not arrive within that time."""
    return type("BoundedHttp", (BoundedHttp,), {"arrival_seconds": arrival_seconds, "crowd": crowd})
