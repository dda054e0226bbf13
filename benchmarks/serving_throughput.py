"""Throughput at saturation and times at a fixed rate: ours, the bare forward loop and peers, in turn."""

import asyncio
import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from serving_client import Answer, ask_paced, saturate
from serving_measures import SEEDS, percentile, print_problems, started_world
from serving_processes import OURS, Server, serve_ours, serve_peer, versions_of
from serving_swaps import problems
from serving_world import LARGE, ServingWorld, pictures

from adapters.networks.network import SegmentationNetwork, normalise
from configs.serving import ServingAdvanced, ServingSettings
from storage.media.images import decode_image

BARE = "bare forward loop"
OPTIONS: dict[str, dict[str, object]] = {
    f"{OURS}, not folded": {"advanced": {"fold_batch_norm": False}},
    f"{OURS}, compile": {"advanced": {"compile": True}},
    f"{OURS}, bf16": {"precision": "bf16"},
}
"""Ours once more, with an option of the section `serving` that makes the forward pass itself faster."""
AS_IT_IS = ServingSettings(advanced=ServingAdvanced(fold_batch_norm=False))
"""What peers run: the module itself."""
PACKAGES = ("torch", "uvicorn", "pydantic")


@dataclass
class Arm:
    """What one way of computing masks took, turn by turn."""

    rates: list[float] = field(default_factory=list)
    """Images a second."""
    costs: list[float] = field(default_factory=list)
    """Processor time an image (seconds)."""
    paced: list[Answer] = field(default_factory=list)
    """Answers at the fixed rate."""


@dataclass(frozen=True)
class Plan:
    """How long and how hard."""

    peers: Mapping[str, Path]
    turns: int
    seconds: float
    clients: int
    rate: float
    paced: float
    """Of each server at the fixed rate in a turn (seconds)."""


def print_throughput(root: Path, plan: Plan) -> None:
    """All arms in turn, every other turn in reverse order; a table, and ratios taken turn by turn."""
    world = started_world(root)
    expected = {"ours": {SEEDS[0]: world.expected(SEEDS[0])}, "peers": {SEEDS[0]: world.expected(SEEDS[0], AS_IT_IS)}}
    network, batch = world.network(SEEDS[0]), world.settings.serving.max_batch_images
    found = list[str]()
    with ExitStack() as held:
        servers = _start(world, plan.peers, held)
        arms = {name: Arm() for name in (BARE, *(server.name for server in servers))}
        for turn in range(plan.turns):
            order = [None, *servers][:: 1 if turn % 2 == 0 else -1]
            for server in order:
                if server is None:
                    _forward(arms[BARE], network, batch, plan.seconds)
                else:
                    found += _wrong(server.name, _saturated(arms[server.name], server, plan), world, expected)
            for server in servers[:: 1 if turn % 2 == 0 else -1]:
                arms[server.name].paced += ask_paced(server.target, plan.rate, plan.paced)
    found += [text for name, arm in arms.items() for text in _wrong(name, arm.paced, world, expected)]
    print_problems(found, sum(len(arm.paced) for arm in arms.values()))
    _print_table(arms, plan, batch)


def _start(world: ServingWorld, peers: Mapping[str, Path], held: ExitStack) -> list[Server]:
    servers = [held.enter_context(serve_ours(world))]
    for name, options in OPTIONS.items():
        other = started_world(world.root.with_name(f"throughput-{len(servers)}"), **options)
        servers.append(held.enter_context(serve_ours(other, name)))
    for peer, python in peers.items():
        servers.append(held.enter_context(serve_peer(peer, python, world)))
        print(f"{peer}: {versions_of(python, (peer, *PACKAGES))}")
    for server in servers:
        asyncio.run(saturate(server.target, 4, 2.0))
    return servers


def _wrong(
    name: str,
    answers: Sequence[Answer],
    world: ServingWorld,
    expected: Mapping[str, Mapping[int, Sequence[str]]],
) -> list[str]:
    """Problems; a peer names no version, but serves the first. With an option some pixels get other labels."""
    named = [one._replace(version=one.version or 1) for one in answers]
    found = problems(named, world.seeds, expected["ours" if name == OURS else "peers"])
    return [text for text in found if name not in OPTIONS or not text.startswith("mixed")]


def _forward(arm: Arm, network: SegmentationNetwork, batch: int, seconds: float) -> None:
    """Nothing but the network, on images that are ready for it."""
    pixels = np.stack([decode_image(one, max_bytes=LARGE, max_pixels=LARGE) for one in pictures()])
    images = normalise(torch.from_numpy(np.resize(pixels, (batch, *pixels.shape[1:]))))
    done, wall, cpu = 0, time.perf_counter(), time.process_time()
    with torch.inference_mode():
        while time.perf_counter() - wall < seconds:
            network(images)
            done += batch
    arm.rates.append(done / (time.perf_counter() - wall))
    arm.costs.append((time.process_time() - cpu) / done)


def _saturated(arm: Arm, server: Server, plan: Plan) -> list[Answer]:
    cpu, wall = server.cpu_seconds(), time.perf_counter()
    answers = asyncio.run(saturate(server.target, plan.clients, plan.seconds))
    arm.rates.append(len(answers) / (time.perf_counter() - wall))
    arm.costs.append((server.cpu_seconds() - cpu) / len(answers))
    return answers


def _print_table(arms: Mapping[str, Arm], plan: Plan, batch: int) -> None:
    print(f"\nsaturation: {plan.clients} clients, batch {batch}, {plan.turns} turns of {plan.seconds:g} s; "
          f"fixed rate: {plan.rate:g} requests/s, {plan.paced:g} s a turn\n")  # fmt: skip
    print("| | images/s | CPU time an image, ms | rate / bare loop | CPU time, bare loop / it | p50, ms | p99, ms |")
    print("|---|---|---|---|---|---|---|")
    base = arms[BARE]
    for name, arm in arms.items():
        cost = 1000 * statistics.median(arm.costs)
        rate, cpu = _spread(_ratios(arm.rates, base.rates)), _spread(_ratios(base.costs, arm.costs))
        seconds = [answer.seconds for answer in arm.paced]
        paced = (
            "- | -"
            if not seconds
            else f"{1000 * percentile(seconds, 0.5):.0f} | {1000 * percentile(seconds, 0.99):.0f}"
        )
        print(f"| {name} | {statistics.median(arm.rates):.1f} | {cost:.1f} | {rate} | {cpu} | {paced} |")
    print()
    for name, arm in arms.items():
        for own in (OURS, *OPTIONS):
            if name not in (OURS, BARE, *OPTIONS):
                ours = arms[own]
                rate, cpu = _spread(_ratios(ours.rates, arm.rates)), _spread(_ratios(arm.costs, ours.costs))
                print(f"- {own} / {name}: rate {rate}, processor time {name} / ours {cpu}")


def _ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    return [one / other for one, other in zip(above, below, strict=True)]


def _spread(values: Sequence[float]) -> str:
    """Return median and quartiles."""
    if len(values) < 2:
        return f"{values[0]:.2f}"
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.2f} ({low:.2f}-{high:.2f})"
