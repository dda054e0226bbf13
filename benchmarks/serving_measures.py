"""What benchmarks/serving.py measures beside throughput: swaps, rollback and ingest under a constant load."""

import asyncio
import json
import math
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ingest_daemon import frames, resident, write_image
from serving_client import Answer, saturate
from serving_load import load
from serving_processes import Server, plane_target, serve_ours
from serving_swaps import Move, Moved, Swaps, overlapping, problems
from serving_world import ServingWorld

from daemon.demo.driving import DrivenDaemon

SEEDS = (1, 2, 3, 4, 5)
EARLY = 50
"""Moves after which memory must not grow any more."""
AROUND = 25
"""Moves before and after one (as far as there are) whose mean counts as the memory after it: readings vary by
20 MiB."""
WARM_SECONDS = 5.0
WARM_CLIENTS = 8
"""Clients that warm up a server, so that batches of every size have run before memory and times are looked at."""


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that `share` of the values do not exceed; NaN without values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan


def times(answers: Sequence[Answer]) -> str:
    """p50 and p99 in milliseconds, and how many."""
    seconds = [answer.seconds for answer in answers]
    return f"{1000 * percentile(seconds, 0.5):.0f} | {1000 * percentile(seconds, 0.99):.0f} | {len(answers)}"


def p99(answers: Sequence[Answer]) -> float:
    """Of the time an answer takes (seconds)."""
    return percentile([answer.seconds for answer in answers], 0.99)


def print_problems(found: Sequence[str], answers: int) -> None:
    """How many answers were wrong, and the first ones."""
    mixed = sum(text.startswith("mixed") for text in found)
    print(f"\n{answers} answers, {len(found) - mixed} failed, {mixed} mixed")
    for text in found[:5]:
        print(f"- {text}")


def started_world(root: Path, **serving: object) -> ServingWorld:
    """Create a world whose first version serves."""
    world = ServingWorld(root, serving)
    world.registry.promote(world.add(SEEDS[0]), by="benchmark", reason="first")
    return world


def settle(answers: list[Answer], seconds: float) -> list[Answer]:
    """Return the answers of the next `seconds` of a load."""
    first = len(answers)
    time.sleep(seconds)
    return answers[first:]


def print_swaps(root: Path, count: int, rate: float, pause: float) -> None:
    """`count` moves of the serving ref under load; steady stretches before and after."""
    world = started_world(root)
    expected = world.expected_of(SEEDS)
    with serve_ours(world) as server:
        asyncio.run(saturate(server.target, WARM_CLIENTS, WARM_SECONDS))
        moves, steady, answers = _swapped(world, server, count, rate, pause)
    print_problems(problems(answers, world.seeds, expected), len(answers))
    moving = [one for one in answers if moves[0].began <= one.due <= moves[-1].ended]
    during = overlapping(moving, moves)
    print(f"\n{count} moves at {rate:g} requests/s, {pause:g} s rest after each\n")
    print("| | p50, ms | p99, ms | requests | p99 / steady |\n|---|---|---|---|---|")
    for name, some in (
        ("steady, before and after", steady),
        ("all while the ref moves", moving),
        ("under way during a move", during),
    ):
        print(f"| {name} | {times(some)} | {p99(some) / p99(steady):.2f} |")
    _print_moves(moves)


def _swapped(
    world: ServingWorld, server: Server, count: int, rate: float, pause: float
) -> tuple[list[Moved], list[Answer], list[Answer]]:
    """Return the moves, the answers of the steady stretches, and all answers."""
    with load(server.target, rate) as answers:
        settle(answers, WARM_SECONDS)
        steady = settle(answers, max(30.0, count / 10))
        swaps = Swaps(world, server.target, SEEDS, pause)
        moves = [_noted(move, server.pid) for move in swaps.run(count)]
        steady += settle(answers, max(30.0, count / 10))
    return moves, steady, answers


def _noted(move: Moved, pid: int) -> Moved:
    """Return the move with the server's memory; print a line on standard error now and then."""
    noted = replace(move, memory=resident(pid))
    if move.number % EARLY == 0:
        print(f"{move.number} moves, {noted.memory / 2**20:.1f} MiB", file=sys.stderr, flush=True)
    return noted


def _print_moves(moves: Sequence[Moved]) -> None:
    print("\n| move | times | until the plane said so, median s | slowest |\n|---|---|---|---|")
    for kind in Move:
        took = [move.ended - move.began for move in moves if move.move is kind]
        if took:
            print(f"| {kind} | {len(took)} | {statistics.median(took):.2f} | {max(took):.2f} |")
    first, last = min(EARLY, len(moves)), len(moves)
    early, late = (statistics.fmean(move.memory for move in _around(moves, number)) for number in (first, last))
    print(
        f"\nresident memory after move {first}: {early / 2**20:.1f} MiB, after move {last}: {late / 2**20:.1f} MiB ",
        end="",
    )
    print(f"({100 * (late / early - 1):+.2f} %; means of up to {2 * AROUND} moves around each)")
    step = max(1, len(moves) // 10)
    print("on the way: " + ", ".join(f"{move.memory / 2**20:.1f}" for move in moves[step - 1 :: step]))


def _around(moves: Sequence[Moved], number: int) -> Sequence[Moved]:
    return moves[max(0, number - AROUND) : number + AROUND]


def print_rollback(root: Path, times_back: int, rate: float) -> None:
    """From the rollback's call to the first answer of the version before, under load."""
    world, seconds = started_world(root), list[float]()
    expected = world.expected_of(SEEDS)
    with serve_ours(world) as server, load(server.target, rate) as answers:
        for turn in range(times_back):
            version = world.add(SEEDS[(turn + 1) % len(SEEDS)])
            world.registry.promote(version, by="benchmark", reason="to be taken back")
            _first(answers, version)
            began = time.monotonic()
            before = world.registry.roll_back(to=None, by="benchmark", reason="worse").version
            seconds.append(_first(answers, before, after=began).done - began)
    print_problems(problems(answers, world.seeds, expected), len(answers))
    print(f"\nrollback under {rate:g} requests/s, first answer of the version before: "
          f"median {statistics.median(seconds):.2f} s, slowest {max(seconds):.2f} s of {times_back}")  # fmt: skip


def _first(answers: list[Answer], version: int, after: float = 0.0) -> Answer:
    """Wait for the first answer of `version` to a request that was due after `after`."""
    deadline = time.monotonic() + 60.0
    while time.monotonic() < deadline:
        found = next((one for one in answers[-200:] if one.version == version and one.due >= after), None)
        if found:
            return found
        time.sleep(0.005)
    raise TimeoutError(f"version {version} did not answer within a minute")


def print_ingest(root: Path, images: int, rate: float) -> None:
    """Measure a daemon's inference plane under load, at rest and while `images` images arrive at once."""
    world = started_world(root)
    expected = world.expected_of(SEEDS[:2])
    waiting = root / "waiting"
    waiting.mkdir()
    for number in range(images):
        write_image(waiting, number)
    with DrivenDaemon(world.config) as daemon:
        server = _plane_of(daemon, world)
        with load(server.target, rate) as answers:
            settle(answers, WARM_SECONDS)
            steady = settle(answers, 45.0)
            beside, seconds = _while_ingesting(daemon, waiting, images, answers)
            steady += settle(answers, 30.0)
    print_problems(problems(answers, world.seeds, expected), len(answers))
    print(f"\n{images} images committed in {seconds:.0f} s beside {rate:g} requests/s\n")
    print("| | p50, ms | p99, ms | requests | p99 / without |\n|---|---|---|---|---|")
    for name, some in (("without ingest, before and after", steady), ("while images are ingested", beside)):
        print(f"| {name} | {times(some)} | {p99(some) / p99(steady):.2f} |")


def _while_ingesting(
    daemon: DrivenDaemon, waiting: Path, images: int, answers: list[Answer]
) -> tuple[list[Answer], float]:
    """Move the images into the drop folder and wait until all are committed; answers meanwhile, and seconds."""
    first, began = len(answers), time.monotonic()
    for path in sorted(waiting.iterdir()):
        path.rename(daemon.settings.watch.folder / path.name)
    while (done := frames(daemon)) < images:
        if time.monotonic() - began > 3600:
            raise TimeoutError(f"only {done} of {images} images were committed within an hour")
        time.sleep(0.5)
    return answers[first:], time.monotonic() - began


def _plane_of(daemon: DrivenDaemon, world: ServingWorld) -> Server:
    """Return the inference plane that the daemon started, once it serves."""
    record = world.settings.state / "run" / "serve.json"
    daemon.wait_for(daemon.served_version, "a version serves", 180)
    content = json.loads(record.read_bytes())
    return Server("mfmd run", content["pid"], plane_target(content["port"]))
