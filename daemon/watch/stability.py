"""Which files have stood still long enough: a bounded queue of candidates, each looked at twice.

The folder itself is the queue of what waits; this holds only what may be taken next.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from daemon.runtime.backoff import Backoff
from daemon.watch.arrival import Arrival

CAPACITY = 4096
"""Candidates held at once; more are left in the folder for a later rescan."""
RETRIES = Backoff(base=1.0, cap=60.0)
"""Delays after passing errors of one file."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    arrival: Arrival
    due: float
    failures: int


class StabilityQueue:
    """Candidates by name, those that are due longest first. Times are monotonic seconds."""

    def __init__(self, delay: float, capacity: int = CAPACITY) -> None:
        self.delay = delay
        """How long a file must stand still (seconds); may be changed at any time."""
        self._capacity = capacity
        self._waiting: OrderedDict[str, _Waiting] = OrderedDict()
        self._renamed: OrderedDict[str, _Waiting] = OrderedDict()
        self._later: dict[str, tuple[float, int]] = {}

    def __len__(self) -> int:
        return len(self._waiting) + len(self._renamed) + len(self._later)

    def __contains__(self, name: str) -> bool:
        return name in self._waiting or name in self._renamed or name in self._later

    @property
    def full(self) -> bool:
        """Whether nothing more fits."""
        return len(self) >= self._capacity

    def note(self, name: str, arrival: Arrival, now: float, failures: int = 0) -> None:
        """The file was seen like this: its delay begins, unless it was seen like this before."""
        known = self._renamed.get(name) or self._waiting.get(name)
        if known is not None and known.arrival.file == arrival.file:
            return
        self._forget(name)
        self._waiting[name] = _Waiting(arrival, now + self.delay, failures if known is None else known.failures)

    def note_renamed(self, name: str, arrival: Arrival, now: float) -> None:
        """The file was renamed into place: it may be taken now."""
        self._forget(name)
        self._renamed[name] = _Waiting(replace(arrival, renamed_into_place=True), now, 0)

    def postpone(self, name: str, failures: int, now: float) -> None:
        """Reading it failed for the `failures`-th time in a row: look again after a growing delay."""
        self._forget(name)
        self._later[name] = (now + RETRIES.delay(failures), failures)

    def take(self, see: Callable[[str], Arrival | None], now: float) -> Iterator[tuple[str, Arrival, int]]:
        """Remove and give those that did not change for the delay or were renamed: name, file, failures so far.

        `see` returns the file as it is now; one that changed waits again, one that is gone is dropped.
        """
        self._return_postponed(see, now)
        while (head := self._head()) is not None and head[1].due <= now:
            name, waiting = head
            self._forget(name)
            arrival = see(name)
            if arrival is None:
                continue
            if arrival.file == waiting.arrival.file:
                yield name, replace(arrival, renamed_into_place=waiting.arrival.renamed_into_place), waiting.failures
            else:
                self.note(name, arrival, now, waiting.failures)

    def next_due(self, now: float) -> float | None:
        """Seconds until the next one may be taken; none when nothing waits."""
        head = self._head()
        times = [due for due, _ in self._later.values()]
        if head is not None:
            times.append(head[1].due)
        return max(0.0, min(times) - now) if times else None

    def oldest(self) -> float | None:
        """Modification time of the oldest candidate (Unix, seconds)."""
        times = (item.arrival.file.mtime_ns / 1e9 for part in (self._waiting, self._renamed) for item in part.values())
        return min(times, default=None)

    def clear(self) -> None:
        """Forget all: the folder is gone."""
        self._waiting.clear()
        self._renamed.clear()
        self._later.clear()

    def _head(self) -> tuple[str, _Waiting] | None:
        """What is due first; each part is in the order of its due times, for each has one delay."""
        heads = [next(iter(part.items())) for part in (self._waiting, self._renamed) if part]
        return min(heads, key=lambda item: item[1].due, default=None)

    def _forget(self, name: str) -> None:
        self._waiting.pop(name, None)
        self._renamed.pop(name, None)
        self._later.pop(name, None)

    def _return_postponed(self, see: Callable[[str], Arrival | None], now: float) -> None:
        for name, (due, failures) in list(self._later.items()):
            if now >= due:
                del self._later[name]
                arrival = see(name)
                if arrival is not None:
                    self.note(name, arrival, now, failures)
