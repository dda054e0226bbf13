"""The one client of benchmarks/serving.py: HTTP/1.1 over asyncio streams (`serving_load.py` gives it a process).

It costs a fraction of a millisecond of processor time an answer, so that it does not take from the server what is
measured. At a fixed rate a request's time counts from the moment when it was due, not from when a connection was free
for it: a server that stalls cannot hide it.
"""

import asyncio
import base64
import contextlib
import hashlib
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

ANSWER_SECONDS = 120.0
"""A request that takes longer has failed."""


@dataclass(frozen=True)
class Decoded:
    """Takes the base64 text out of a JSON answer, where `way` leads; a class, so that it reaches another process."""

    way: tuple[str | int, ...]

    def __call__(self, body: bytes) -> bytes:
        """Return the bytes that the JSON text of an answer holds."""
        value = json.loads(body)
        for step in self.way:
            value = value[step]
        return base64.b64decode(value)


@dataclass(frozen=True)
class Target:
    """Where to ask, and how a request looks there."""

    host: str
    port: int
    path: str
    content_type: str
    bodies: Sequence[bytes]
    """One for each picture; asked in turn."""
    picture_of: Callable[[bytes], bytes] = bytes
    """The PNG in the body of an answer."""

    def request(self, number: int) -> bytes:
        """Return the bytes of a request for a picture."""
        body = self.bodies[number % len(self.bodies)]
        head = f"POST {self.path} HTTP/1.1\r\nHost: {self.host}:{self.port}\r\nContent-Type: {self.content_type}\r\n"
        return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


class Reply(NamedTuple):
    """The answer."""

    status: int
    headers: dict[str, str]
    """Names in lower case."""
    body: bytes


class Answer(NamedTuple):
    """One request, as its client saw it."""

    due: float
    """When it was to be sent (monotonic seconds)."""
    done: float
    """When its last byte had come, or when it failed (monotonic seconds)."""
    picture: int
    status: int
    """HTTP status; 0 when there was no answer at all."""
    version: int
    """Of X-Checkpoint-Version; 0 without one."""
    digest: str
    """SHA-256 of the PNG."""
    problem: str
    """The error; empty for an answer with status 200."""

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.done - self.due


@dataclass
class Connections:
    """Connections to one target, kept alive; one more is opened when all are busy."""

    target: Target
    _idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = field(default_factory=list)

    async def ask(self, number: int, due: float) -> Answer:
        """Send the request of that number and read its answer; never raises."""
        picture = number % len(self.target.bodies)
        try:
            async with asyncio.timeout(ANSWER_SECONDS), self._connection() as (reader, writer):
                writer.write(self.target.request(number))
                reply = await read_reply(reader)
        except (OSError, EOFError, ValueError, TimeoutError) as error:
            return Answer(due, time.monotonic(), picture, 0, 0, "", repr(error))
        done = time.monotonic()
        version = int(reply.headers.get("x-checkpoint-version", "0"))
        if reply.status != 200:
            problem = reply.body[:300].decode(errors="replace")
            return Answer(due, done, picture, reply.status, version, "", problem)
        digest = hashlib.sha256(self.target.picture_of(reply.body)).hexdigest()
        return Answer(due, done, picture, reply.status, version, digest, "")

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """Lend a free connection; close it after a failure.

        A connection that the server closed while it was idle is skipped, as every HTTP client does.
        """
        pair = self._idle.pop() if self._idle else None
        while pair is not None and pair[0].at_eof():
            pair[1].close()
            pair = self._idle.pop() if self._idle else None
        if pair is None:
            pair = await asyncio.open_connection(self.target.host, self.target.port)
        try:
            yield pair
        except BaseException:
            pair[1].close()
            raise
        self._idle.append(pair)

    async def close(self) -> None:
        """Close all connections."""
        for _, writer in self._idle:
            writer.close()
            with contextlib.suppress(OSError):  # the server may have closed first; nothing is waited for any more
                await writer.wait_closed()
        self._idle.clear()


async def read_reply(reader: asyncio.StreamReader) -> Reply:
    """Read one answer with a Content-Length. Raises ValueError without one, EOFError when the connection ends."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head[:-4].split("\r\n")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if "content-length" not in headers:
        raise ValueError(f"an answer without Content-Length: {head!r}")
    return Reply(int(first.split(" ", 2)[1]), headers, await reader.readexactly(int(headers["content-length"])))


async def saturate(target: Target, clients: int, seconds: float) -> list[Answer]:
    """Let `clients` ask without a pause for `seconds`; return the answers in order of arrival."""
    connections, answers = Connections(target), list[Answer]()
    end = time.monotonic() + seconds

    async def client(first: int) -> None:
        number = first
        while time.monotonic() < end:
            answers.append(await connections.ask(number, time.monotonic()))
            number += clients

    await asyncio.gather(*map(client, range(clients)))
    await connections.close()
    return answers


async def paced(target: Target, rate: float, stop: Callable[[], bool], tell: Callable[[Answer], None]) -> None:
    """Ask `rate` times a second, whatever comes back, until `stop` says so; waits for the last answer.

    `tell` gets each answer when it has come.
    """
    connections, number, start = Connections(target), 0, time.monotonic()

    async def one(number: int, due: float) -> None:
        tell(await connections.ask(number, due))

    async with asyncio.TaskGroup() as group:
        while not stop():
            due = start + number / rate
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            group.create_task(one(number, due))
            number += 1
    await connections.close()


def ask_paced(target: Target, rate: float, seconds: float) -> list[Answer]:
    """Ask at a fixed rate for `seconds`; return the answers."""
    answers, end = list[Answer](), time.monotonic() + seconds
    asyncio.run(paced(target, rate, lambda: time.monotonic() > end, answers.append))
    return answers
