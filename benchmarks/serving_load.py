"""A constant load from a process of its own.

A thread beside the one that writes versions would wait for Python's lock, and that wait would count as the server's
time. Run as a script, this file is that process: it reads target and rate as a pickle from standard input, writes every
answer as a pickle to standard output, and ends with its input.
"""

import asyncio
import contextlib
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from serving_client import Answer, Target, paced


@contextmanager
def load(target: Target, rate: float) -> Iterator[list[Answer]]:
    """`rate` requests a second beside the block; the list grows by every answer. RuntimeError if the client failed."""
    answers = list[Answer]()
    with subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        reader = threading.Thread(target=_collect, args=(process.stdout, answers))
        reader.start()
        try:
            pickle.dump((target, rate), process.stdin)
            process.stdin.flush()
            yield answers
        finally:
            process.stdin.close()
            reader.join()
    if process.returncode:
        raise RuntimeError(f"the client ended with {process.returncode}; its message is above")


def _collect(stream: IO[bytes], answers: list[Answer]) -> None:
    """Append what the client says until it ends."""
    with contextlib.suppress(EOFError):
        while True:
            answers.append(Answer(*pickle.load(stream)))  # noqa: S301 - of the process above


def _ask() -> None:
    """Run the client's process."""
    target, rate = pickle.load(sys.stdin.buffer)  # noqa: S301 - of `load`
    stop = threading.Event()

    def wait_for_end() -> None:
        sys.stdin.buffer.read()
        stop.set()

    def tell(answer: Answer) -> None:
        pickle.dump(tuple(answer), sys.stdout.buffer)
        sys.stdout.buffer.flush()

    threading.Thread(target=wait_for_end, daemon=True).start()
    asyncio.run(paced(target, rate, stop.is_set, tell))


if __name__ == "__main__":
    _ask()
