"""Ways to make a candidate for the gate's bank: good rounds, over-long ones, and many that do harm.

All that learns is the code of adapters. Each way is deterministic. It starts from a version of the world's registry.
"""

import copy
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from adaptation_arms import override
from gate_bank_worlds import BankWorld

from adapters.checkpoints.checkpoint import load_version
from adapters.networks.network import SegmentationNetwork
from adapters.rounds.inputs import load_inputs
from adapters.rounds.optim import learning_rate_factor
from adapters.rounds.training import Training, averaged
from configs.settings import Settings
from storage.layout import StateLayout
from storage.registry.registry import CheckpointRegistry
from storage.rounds.records import RoundSpec

RELEASED = 1
"""Version of the released model in every world."""


@dataclass(frozen=True, slots=True)
class RoundPlan:
    """A round whose candidates are taken at several steps."""

    kind: str
    """What the candidates are, in the tables."""
    marks: Sequence[int]
    """Steps at which candidates are taken; the last is the step budget."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Settings by dotted name, on top of the world's."""
    frames: str = "train"
    """Group of frames that the round trains on."""
    source: bool = True
    """Whether labelled source is replayed."""
    seed: int = 0
    """Seed of the round."""
    offers: Sequence[str] = ("teacher", "student", "average_50")
    """Which candidates are taken at each mark."""


FAST = {"round.optim.learning_rate": 0.003}
SLOW = {"round.optim.learning_rate": 0.00003}
ROUNDS = {
    "good": RoundPlan("a round with source", (40, 160)),
    "long": RoundPlan("over-long, with source", (480,), seed=3),
    "free": RoundPlan("a source-free round", (40, 160), source=False),
    "free_long": RoundPlan("over-long, source-free", (480,), source=False, seed=3),
    "fast": RoundPlan("learning rate times ten", (20, 80), FAST),
    "free_fast": RoundPlan("learning rate times ten", (20, 80), FAST, source=False),
    "tiny": RoundPlan("tiny steps", (1, 6), SLOW, offers=("teacher", "student")),
    "tent": RoundPlan("entropy minimisation", (20, 80), {"recipe.name": "tent"}, source=False, offers=("student",)),
    "tent_fast": RoundPlan(
        "entropy minimisation", (20, 80), {"recipe.name": "tent", **FAST}, source=False, offers=("student",)
    ),
    "statistics": RoundPlan(
        "statistics only", (12,), {"recipe.name": "bn_statistics"}, source=False, offers=("student",)
    ),
    "wrong": RoundPlan("trained on another condition", (160,), frames="wrong"),
    "wrong_free": RoundPlan("trained on another condition", (160,), frames="wrong", source=False),
    "noise": RoundPlan("trained on noise", (80,), frames="noise", offers=("teacher", "student")),
    "noise_free": RoundPlan("trained on noise", (80,), frames="noise", source=False, offers=("teacher", "student")),
    "swapped": RoundPlan("red and blue swapped", (120,), frames="swapped", offers=("teacher", "student")),
    "swapped_free": RoundPlan(
        "red and blue swapped", (120,), frames="swapped", source=False, offers=("teacher", "student")
    ),
    "copies": RoundPlan("trained on one image", (120,), frames="copies", offers=("teacher", "student")),
    "copies_free": RoundPlan(
        "trained on one image", (120,), frames="copies", source=False, offers=("teacher", "student")
    ),
}
NOISE = (0.02, 0.05, 0.1, 0.2)
"""Deviation of the noise on weights, as a share of their own."""


def candidates(world: BankWorld, origin: int, done: set[str]) -> Iterator[tuple[str, str, SegmentationNetwork]]:
    """Yield name, kind and network of every candidate from version `origin`, but for rounds that are in `done`."""
    for key, plan in ROUNDS.items():
        if key not in done:
            for name, network in run_round(world, origin, plan):
                yield f"{key}.{name}", plan.kind, network
    if "altered" not in done:
        yield from _altered(load(world, origin))


def load(world: BankWorld, version: int) -> SegmentationNetwork:
    """Return a version of the world's registry, in eval mode."""
    registry = CheckpointRegistry(StateLayout(world.settings.state).checkpoints)
    return load_version(registry, version, torch.device("cpu"))[0]


def run_round(world: BankWorld, origin: int, plan: RoundPlan) -> Iterator[tuple[str, SegmentationNetwork]]:
    """Train as a round does; yield `STEP.NAME` and the network of each candidate at each mark."""
    settings = changed(world.settings, {**plan.changes, "round.steps": plan.marks[-1]}, source=plan.source)
    os.environ["ACCELERATE_MIXED_PRECISION"] = settings.round.mixed_precision  # as `accelerate launch` says it
    spec = RoundSpec(
        round=plan.seed,
        incumbent=origin,
        released=RELEASED,
        train_frames=world.groups[plan.frames],
        holdout_frames=(),
        settings=settings.model_dump(mode="json"),
        created=time.time(),
        trigger="manual",
    )
    inputs, incumbent = load_inputs(spec, settings), load(world, origin)
    with inputs.buffer:
        training = Training(inputs)
        for step in range(1, plan.marks[-1] + 1):
            training.step(learning_rate_factor(step - 1, plan.marks[-1], settings.round.optim))
            if step in plan.marks:
                for name, network in _offered(training, incumbent, plan.offers):
                    yield f"{step}.{name}", network


def _offered(
    training: Training, incumbent: SegmentationNetwork, offers: Sequence[str]
) -> Iterator[tuple[str, SegmentationNetwork]]:
    own = training.candidate()
    offered = {training.candidate_name: own, **training.other_candidates(own, incumbent)}
    yield from ((name, network) for name, network in offered.items() if name in offers)


def changed(settings: Settings, changes: Mapping[str, Any], *, source: bool) -> Settings:
    """Return `settings` with `changes` by dotted name; of another recipe only what that recipe has is kept."""
    values = settings.model_dump(mode="json", exclude_unset=True)
    override(values, changes)
    if "recipe.name" in changes:
        values["recipe"].pop("advanced", None)
    values["state"] = str(settings.state)
    if not source:
        values.pop("source", None)
    return Settings.model_validate(values)


def _altered(network: SegmentationNetwork) -> Iterator[tuple[str, str, SegmentationNetwork]]:
    """Yield copies with noise in the weights, and copies in which a class is dead."""
    for number, share in enumerate(NOISE):
        yield f"altered.noise{share}", "noise in the weights", _noisy(network, share, number)
    shares = range(network.num_classes)
    for dead in list(shares)[-2:]:
        yield f"altered.dead{dead}", "a dead class", _without(network, dead)
    yield "altered.copy", "the incumbent again", averaged(network, network, 0.5)


def _noisy(network: SegmentationNetwork, share: float, seed: int) -> SegmentationNetwork:
    noisy, generator = copy.deepcopy(network), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in noisy.parameters():
            if parameter.dim() > 1:
                drawn = torch.randn(parameter.shape, generator=generator)
                parameter.add_(drawn * parameter.std() * share)
    return noisy.eval()


def _without(network: SegmentationNetwork, dead: int) -> SegmentationNetwork:
    """Return a copy that never answers class `dead`: its logit is far below the others."""
    other = copy.deepcopy(network)
    classifier = [
        module
        for module in other.modules()
        if isinstance(module, torch.nn.Conv2d) and module.out_channels == network.num_classes
    ][-1]
    assert classifier.bias is not None
    with torch.no_grad():
        classifier.bias[dead] -= 30.0
    return other.eval()
