"""How long a connection may be held open by a client from which no request comes, or that reads no answer.

uvicorn times what is idle between two answered requests, and nothing else: a client that connects and is silent, sends
the head of its request byte by byte, or leaves its answer unread, would hold its connection (and the answer) for ever,
and a few thousand of them all that the process may open. What lies between the head and the end of the answer is the
application's (`serving/deadline.py`).
"""

import asyncio
from typing import Literal

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 10.0
"""Longest from the connection, or from the first byte of a further request, to the end of the request's head."""
REST_SECONDS = 30.0
"""Longest that is read after the answer of a request whose body was refused (so that the client sees the answer)."""
READ_SECONDS = 30.0
"""How often it is looked whether a client reads what is written for it."""
READ_BYTES = 32 * 1024
"""Least that it must have read since the last look (bytes), unless that was all: 1 kB a second."""

Phase = Literal["head", "rest", "idle"]


class TimedConnection(H11Protocol):
    """A connection that is closed, without an answer, when its client takes too long in a phase or reads too slowly."""

    _phase: Phase | None = None
    _timer: asyncio.TimerHandle | None = None
    _unread: int | None = None
    _unread_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start to wait for the first head (over TLS: after the handshake, which asyncio limits to 60 s)."""
        super().connection_made(transport)
        self._time()

    def data_received(self, data: bytes) -> None:
        """Take what came; more bytes of the same phase give it no more time."""
        super().data_received(data)
        self._time()

    def on_response_complete(self) -> None:
        """Go on to the next request, part of which may have come already."""
        super().on_response_complete()
        self._time()
        self._watch_reader()

    def renew_headers(self) -> None:
        """Give the answer in the making the server's headers of now; uvicorn gives it those of its request's time."""
        if self.cycle is not None:
            self.cycle.default_headers = self.server_state.default_headers

    def timeout_keep_alive_handler(self) -> None:
        """Close the idle connection, but not while the client still reads its answer: `_look_at_reader` judges that."""
        if self._unread_bytes() and not self.transport.is_closing():
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )
            return
        super().timeout_keep_alive_handler()

    def pause_writing(self) -> None:
        """Wait with writing (the transport holds enough): from now on it is watched whether the client reads."""
        super().pause_writing()
        self._watch_reader()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timers with the connection."""
        super().connection_lost(exc)
        self._stop_timer()
        if self._unread_timer is not None:
            self._unread_timer.cancel()

    def _time(self) -> None:
        phase = None if self.transport.is_closing() else self._now_in()
        if phase == self._phase:
            return
        self._stop_timer()
        self._phase = phase
        if phase is not None:
            seconds = {"head": HEAD_SECONDS, "rest": REST_SECONDS, "idle": float(self.timeout_keep_alive)}[phase]
            self._timer = self.loop.call_later(seconds, self._give_up)

    def _now_in(self) -> Phase | None:
        """What the client is waited for; none while the application or uvicorn's own timer does that."""
        if self.conn.their_state is h11.SEND_BODY:
            return "rest" if self.cycle is not None and self.cycle.response_complete else None
        if self.conn.their_state is not h11.IDLE:
            return None
        if self.cycle is None or self.conn.trailing_data[0]:
            return "head"
        # uvicorn ends its keep-alive timer at any byte, also at the last of a refused body, after which nothing comes
        return "idle" if self.timeout_keep_alive_task is None else None

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        if self._unread_bytes():
            self.transport.abort()  # a plain close waits until the client has read what was written
        else:
            self.timeout_keep_alive_handler()

    def _unread_bytes(self) -> int:
        """What is written for the client and not yet taken by the system.

        Over TLS all of it, enciphered, goes at once to the transport beneath, which asyncio shows to nobody.
        """
        beneath = getattr(getattr(self.transport, "_ssl_protocol", None), "_transport", None)
        return self.transport.get_write_buffer_size() + (beneath.get_write_buffer_size() if beneath else 0)

    def _watch_reader(self) -> None:
        if self._unread_timer is None and self._unread_bytes():
            self._unread = None
            self._unread_timer = self.loop.call_later(READ_SECONDS, self._look_at_reader)

    def _look_at_reader(self) -> None:
        """Abort when too little was read since the last look. While an answer is written, its request's time counts."""
        self._unread_timer = None
        unread = self._unread_bytes()
        if not unread:
            return
        written = self.transport.is_closing() or self.cycle is None or self.cycle.response_complete
        if written and self._unread is not None and self._unread - unread < READ_BYTES:
            self.transport.abort()
            return
        self._unread = unread if written else None
        self._unread_timer = self.loop.call_later(READ_SECONDS, self._look_at_reader)
