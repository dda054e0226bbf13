"""When is a version the better one in a condition that it was not made for? Rules on votes, and the truth.

A version is made for each drawn world (dusk, fog, night) from the released model; then rounds on each world start from
each of them. A candidate that the gate accepts on its own world is compared with the version made for another world, on
frames of that one. The truth is mIoU on hidden scenes, which no score reads. The baseline of the same run is to credit
every candidate. What exists below `--root` is kept.

    python benchmarks/gate_elsewhere.py --root out/elsewhere --seeds 1 2
"""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import NamedTuple

import torch
from adaptation_data import score
from gate_bank_worlds import BankWorld, open_world
from gate_makers import RELEASED, RoundPlan, load, run_round

from adapters.checkpoints.checkpoint import save_weights
from adapters.networks.network import SegmentationNetwork
from adapters.scoring.candidate import evenly, load_images, reference_shares, score_version
from configs.gate import GateSettings
from daemon.gate.votes import Vote, cast_votes
from storage.buffer.frames import FrameBuffer
from storage.layout import StateLayout
from storage.registry.registry import CheckpointRegistry
from storage.rounds.records import ModelScores
from storage.source.labelled import LabelledSet

WORLDS = ("dusk", "fog", "night")
MADE = "student"
"""The candidate of a first round that is the version made for its world: the one that source-free rounds promote."""
FRAMES = ("train", "mixed")
"""What a round trains on: frames of its world alone, or of another one too, as a buffer holds them after a change."""
OFFERS = (MADE, "teacher", "average_50")
STEPS = 80
GOLDEN = 8
"""Frames of another condition that a round scores; each comparison is made on each such part of the frames."""
POINT = 1.0
"""Difference in true mIoU that counts (points)."""


class Scored(NamedTuple):
    """One model on one world."""

    miou: float
    """The truth (points)."""
    scores: ModelScores


class Judge:
    """Scores models on the frames of one world."""

    def __init__(self, world: BankWorld) -> None:
        self.world = world
        layout = StateLayout(world.settings.state)
        with FrameBuffer.open(layout, world.settings.buffer, writable=False) as buffer:
            everything = load_images(
                world.settings, world.groups["holdout"], buffer, LabelledSet.open(layout), torch.device("cpu")
            )
            everything = everything._replace(frames=everything.frames[: 2 * GOLDEN])
        day = [pixels for pixels, _ in everything.source]  # where the released model is best
        self.reference = reference_shares(load(world, RELEASED), day, None)
        self.images = everything._replace(source=[], styled=[])

    def score(self, network: SegmentationNetwork) -> Scored:
        """Return the truth and the scores of a round."""
        scores, _ = score_version(network, None, self.images)
        return Scored(100.0 * score(network.eval(), self.world.hidden, self.world.settings).miou, scores)


def _opened(name: str, root: Path) -> BankWorld:
    world = open_world(name, root, root)
    return world._replace(groups={**world.groups, "mixed": (*world.groups["train"], *world.groups["wrong"])})


def make(root: Path, judges: dict[str, Judge], seed: int, *, source: bool) -> Iterator[tuple[str, str, str]]:
    """Make and score what is missing; yield name, world and incumbent of every candidate. Models are named by world."""
    folder = root / ("source" if source else "free") / f"{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    _keep(folder, "released", judges, lambda: iter([("", load(next(iter(judges.values())).world, RELEASED))]))
    origins = [("released", world) for world in WORLDS]
    origins += [(f"{made}.{MADE}", world) for made, world in product(WORLDS, WORLDS) if made != world]
    for frames, (place, (origin, world)) in product(FRAMES, enumerate(origins)):
        name = world + ("" if frames == "train" else f"-{frames}")
        name += "" if origin == "released" else f"-after-{origin.split('.')[0]}"
        plan = RoundPlan("", (STEPS,), frames=frames, source=source, seed=100 * seed + place, offers=OFFERS)
        _keep(folder, name, judges, partial(_trained, judges[world].world, folder, origin, plan))
        yield from ((f"{name}.{offer}", world, origin) for offer in OFFERS)


def _trained(world: BankWorld, folder: Path, origin: str, plan: RoundPlan) -> Iterator[tuple[str, SegmentationNetwork]]:
    version = RELEASED
    if origin != "released":
        registry = CheckpointRegistry(StateLayout(world.settings.state).checkpoints)
        version = registry.add(folder / f"{origin}.safetensors", registry.manifest(RELEASED), by="bank").version
    return run_round(world, version, plan)


def _keep(
    folder: Path, name: str, judges: dict[str, Judge], make: Callable[[], Iterator[tuple[str, SegmentationNetwork]]]
) -> None:
    if (folder / f"{name}.done").exists():
        return
    for key, network in make():
        model = f"{name}.{key.split('.')[1]}" if key else name
        save_weights(network, folder / f"{model}.safetensors")
        for world, judge in judges.items():
            found = judge.score(network)
            line = {"miou": found.miou, "scores": found.scores.model_dump(mode="json")}
            (folder / f"{model}@{world}.json").write_text(json.dumps(line), encoding="utf-8")
            print(f"{folder} {model} on {world}: {found.miou:.1f}", flush=True)
    (folder / f"{name}.done").touch()


def read(folder: Path, model: str, world: str) -> Scored:
    """Return a model on a world."""
    line = json.loads((folder / f"{model}@{world}.json").read_text(encoding="utf-8"))
    return Scored(line["miou"], ModelScores.model_validate(line["scores"]))


def part(scores: ModelScores, frames: Sequence[int]) -> ModelScores:
    """Return the scores of some frames."""
    columns = ("gram", "marginal", "area", "dropout_disagreement", "flip_consistency", "agreement")
    return scores.model_copy(
        update={name: [getattr(scores, name)[n] for n in frames] for name in columns if getattr(scores, name)}
    )


class Case(NamedTuple):
    """A candidate against the version that is best in another condition, on some golden frames of it."""

    name: str
    gain: float
    """Truth (points)."""
    votes: list[Vote]
    made: bool
    """Whether that version was made for the condition, by a round."""


def cases(
    folder: Path, found: Sequence[tuple[str, str, str]], judges: dict[str, Judge], settings: GateSettings
) -> Iterator[Case]:
    """Yield every comparison of a candidate that the gate's votes accept on its own world."""
    for name, world, origin in found:
        here = [read(folder, model, world).scores for model in (name, origin)]
        if not all(vote.won for vote in cast_votes(*here, judges[world].reference, settings, 0)):
            continue
        for other, best in product(WORLDS, ("released", MADE)):
            if other == world:
                continue
            kept = best if best == "released" else f"{other}.{MADE}"
            mine, its = read(folder, name, other), read(folder, kept, other)
            images = len(mine.scores.gram)
            for start in range(0, images, GOLDEN):
                frames = evenly(range(start, min(start + GOLDEN, images)), GOLDEN)
                votes = cast_votes(
                    part(mine.scores, frames), part(its.scores, frames), judges[other].reference, settings, 0
                )
                yield Case(f"{name} on {other}, {kept}", mine.miou - its.miou, votes, best != "released")


def _most(case: Case) -> bool:
    return 2 * sum(vote.won for vote in case.votes) > len(case.votes) and not any(vote.lost for vote in case.votes)


RULES: dict[str, Callable[[Case], bool]] = {
    "most votes, none lost": _most,
    "most votes, the norm among them, none lost": lambda case: _most(case) and case.votes[0].won,
    "all votes": lambda case: all(vote.won for vote in case.votes),
    "always": lambda case: True,
}
"""Rules by which a candidate becomes the best version of another condition; the last is the baseline."""


def table(found: Sequence[Case]) -> Iterator[str]:
    """Yield how many comparisons each rule credits, by truth, and the worst that it credits."""
    groups = {
        "better by over 1": [case for case in found if case.gain > POINT],
        "within 1": [case for case in found if abs(case.gain) <= POINT],
        "worse by over 1": [case for case in found if case.gain < -POINT],
    }
    yield "| best one | rule | " + " | ".join(groups) + " | worst |"
    yield "|---" * (3 + len(groups)) + "|"
    for made, (title, rule) in product((False, True), RULES.items()):
        mine = [[case for case in group if case.made is made] for group in groups.values()]
        cells = [f"{sum(map(rule, group))} of {len(group)}" for group in mine]
        worst = min((case.gain for group in mine for case in group if rule(case)), default=0.0)
        yield f"| {'made there' if made else 'released'} | {title} | {' | '.join(cells)} | {worst:+.1f} |"


def main() -> None:
    """Make what is missing and print the table of each mode."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--modes", nargs="+", choices=("source", "free"), default=["free"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    judges = {name: Judge(_opened(name, options.root)) for name in WORLDS}
    for mode in options.modes:
        found: list[Case] = []
        for seed in options.seeds:
            models = list(make(options.root, judges, seed, source=mode == "source"))
            found += cases(options.root / mode / f"{seed}", models, judges, GateSettings())
        print(f"{mode}: {len(found)} comparisons")
        print("\n".join(table(found)))


if __name__ == "__main__":
    main()
