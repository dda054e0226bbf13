"""Swaps under load, seen from outside: what `mfmd serve` answers while its registry's serving ref moves all the time.

One in ten moves is to a corrupt candidate, which must not serve; one in ten is a rollback to the version before. The
clients' answers are checked afterwards against what the version they name gives: none may fail, none may be mixed.
Works on any running inference plane; the tests use it with fewer swaps.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from http.client import HTTPConnection
from typing import Protocol

from serving_client import Answer, Target

from storage.durable import write_record
from storage.registry.manifest import Ref
from storage.registry.registry import CheckpointRegistry

SWAP_SECONDS = 120.0
"""Longest wait for a move to show."""
POLL_SECONDS = 0.02
KEPT = 4
"""Versions kept while new ones come."""
BY, WHY = "benchmark", "swaps under load"


class Versions(Protocol):
    """A registry and a way to add to it."""

    @property
    def registry(self) -> CheckpointRegistry:
        """Where versions are."""
        ...

    def add(self, seed: int) -> int:
        """Add a version with weights of that seed, and return its number; it does not serve yet."""
        ...


class Move(StrEnum):
    """What happens to the serving ref."""

    SWAP = "swap"
    CORRUPT = "corrupt candidate"
    ROLLBACK = "rollback"


@dataclass(frozen=True)
class Moved:
    """One move and when it was seen."""

    move: Move
    number: int
    """From 1."""
    version: int
    """Version that serves after it."""
    began: float
    """Before the ref moved (monotonic seconds)."""
    ended: float
    """When the plane said that it was done (monotonic seconds)."""
    memory: int = 0
    """Resident memory of the server after it (bytes); 0 unless the caller notes it."""


@dataclass
class Swaps:
    """Moves the serving ref again and again, and waits each time until the plane followed."""

    versions: Versions
    target: Target
    seeds: Sequence[int]
    """Weights of the versions, in turn; at least three."""
    pause: float = 0.0
    """Rest after each move (seconds)."""
    _turn: int = 0

    def run(self, count: int) -> Iterator[Moved]:
        """Make `count` moves, one each time the next is asked for; one in ten a corrupt candidate, one in ten back."""
        for number in range(1, count + 1):
            move = {5: Move.CORRUPT, 9: Move.ROLLBACK}.get(number % 10, Move.SWAP)
            began, version = self._move(move)
            yield Moved(move, number, version, began, time.monotonic())
            if number % 10 == 0:
                self.versions.registry.prune(KEPT)
            time.sleep(self.pause)

    def _move(self, move: Move) -> tuple[float, int]:
        """One move, until it shows; when it began and the version that serves after it."""
        if move is Move.CORRUPT:
            return self._offer_corrupt()
        registry = self.versions.registry
        if move is Move.SWAP:
            version, began = self._next_version(), time.monotonic()
            registry.promote(version, by=BY, reason=WHY)
        else:
            began = time.monotonic()
            version = registry.roll_back(to=None, by=BY, reason=WHY).version
        self._wait(lambda state: state["version"] == version, f"version {version} serves")
        return began, version

    def _offer_corrupt(self) -> tuple[float, int]:
        """Promote a version whose weights were damaged after it was registered; roll it back after the refusal."""
        registry = self.versions.registry
        serving, version = registry.serving(), self._next_version()
        if serving is None:
            raise ValueError(f"{registry.root}: no version serves; promote one before the swaps")
        path = registry.weights_path(version)
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 0xFF
        path.write_bytes(data)
        began = time.monotonic()
        moved = Ref(version=version, since=time.time(), by=BY, reason=WHY)
        write_record(registry.ref_path("serving"), moved)  # `promote` would see the damage
        self._wait(lambda state: _failed(state) == version, f"corrupt version {version} is refused")
        registry.promote(serving.version, by=BY, reason=WHY)
        wanted = serving.version
        self._wait(lambda state: state["wanted"] == state["version"] == wanted, f"version {wanted} serves on")
        return began, wanted

    def _next_version(self) -> int:
        self._turn += 1
        return self.versions.add(self.seeds[self._turn % len(self.seeds)])

    def _wait(self, condition: Callable[[dict[str, object]], bool], what: str) -> None:
        deadline = time.monotonic() + SWAP_SECONDS
        while not condition(state := serving_status(self.target)):
            if time.monotonic() > deadline:
                raise TimeoutError(f"not within {SWAP_SECONDS:.0f} s: {what}; the plane says {state}")
            time.sleep(POLL_SECONDS)


def _failed(state: dict[str, object]) -> object:
    failure = state["last_failure"]
    return failure["version"] if isinstance(failure, dict) else None


def serving_status(target: Target) -> dict[str, object]:
    """`GET /v1/serving`."""
    connection = HTTPConnection(target.host, target.port, timeout=30)
    try:
        connection.request("GET", "/v1/serving")
        return dict(json.loads(connection.getresponse().read()))
    finally:
        connection.close()


def problems(answers: Sequence[Answer], seeds: Mapping[int, int], expected: Mapping[int, Sequence[str]]) -> list[str]:
    """Describe wrong answers: requests that failed, and masks that are not those of the version they name.

    `seeds`: version -> seed of its weights; `expected`: seed -> SHA-256 of the PNG for each picture.
    """
    found = list[str]()
    for answer in answers:
        if answer.problem or answer.status != 200:
            found.append(f"failed with status {answer.status}: {answer.problem}")
        elif answer.version not in seeds:
            found.append(f"version {answer.version} answered, which nobody made serve")
        elif answer.digest != expected[seeds[answer.version]][answer.picture]:
            found.append(f"mixed: picture {answer.picture} is not what version {answer.version} gives")
    return found


def overlapping(answers: Sequence[Answer], moves: Sequence[Moved]) -> list[Answer]:
    """Answers to requests that were under way during a move."""
    return [one for one in answers if any(move.began <= one.done and one.due <= move.ended for move in moves)]
