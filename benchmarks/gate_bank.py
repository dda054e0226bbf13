"""A bank of real candidates with scores and hidden truth, to measure the gate's error rates on (`gate.py`).

Each candidate comes from an incumbent: the released model, or one that already adapted. Scores are those of a round
(`score_version`); the truth is the mIoU on target labels that no score reads. The bank is a cache: what exists is kept,
what is missing is made. A full bank takes about two hours on two shared cores.

    python benchmarks/gate_bank.py --root out/bank --data ../shared/data
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from adaptation_data import score
from gate_bank_worlds import BankWorld, open_world
from gate_makers import RELEASED, RoundPlan, candidates, load, run_round
from numpy.typing import NDArray

from adapters.checkpoints.checkpoint import save_weights
from adapters.networks.network import SegmentationNetwork
from adapters.scoring.candidate import ScoredImages, load_images, reference_shares, score_version
from storage.buffer.frames import FrameBuffer
from storage.layout import StateLayout
from storage.registry.registry import CheckpointRegistry
from storage.rounds.records import ModelScores
from storage.source.labelled import LabelledSet

WORLDS = ("dusk", "fog", "night", "camvid", "fundus")
ORIGINS = {"released": RELEASED, "adapted": 2, "elsewhere": 3}
"""Incumbents by version: the released model, one that adapted to this target, one that adapted to another condition."""
ADAPTED = {2: RoundPlan("", (160,), seed=11), 3: RoundPlan("", (160,), frames="wrong", seed=12)}


class Banked(NamedTuple):
    """One model of the bank."""

    world: str
    origin: str
    name: str
    kind: str
    miou: float
    """The truth: mIoU on hidden target images (0-1)."""
    iou: list[float | None]
    """The same by class (0-1)."""
    scores: ModelScores
    maps: NDArray[np.uint8]
    """Class maps of the scored frames, [N, h, w]."""


class Scorer:
    """Scores models of one world on the same images."""

    def __init__(self, world: BankWorld) -> None:
        self._world, layout = world, StateLayout(world.settings.state)
        source = LabelledSet.open(layout)
        with FrameBuffer.open(layout, world.settings.buffer, writable=False) as buffer:
            self.images: ScoredImages = load_images(
                world.settings, world.groups["holdout"], buffer, source, torch.device("cpu")
            )
        released = load(world, RELEASED)
        self.references = {
            "source": reference_shares(released, self.images.frames, source),
            "free": reference_shares(released, [pixels for pixels, _ in self.images.source], None),
        }

    def score(self, network: SegmentationNetwork) -> tuple[ModelScores, NDArray[np.uint8], float, list[float | None]]:
        """Return scores, class maps [N, h, w], true mIoU and true IoU by class (0-1)."""
        scores, maps = score_version(network, None, self.images)
        truth = score(network.eval(), self._world.hidden, self._world.settings)
        arrays = np.stack([each.numpy() for each in maps]) if maps else np.zeros((0, 0, 0), np.uint8)
        return scores, arrays, truth.miou, list(truth.iou.values())


def build(world: BankWorld, origins: Sequence[str], folder: Path) -> None:
    """Make and score every candidate of `world` that `folder` lacks."""
    add_origins(world)
    scorer = Scorer(world)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "references.json").write_text(json.dumps(scorer.references), encoding="utf-8")
    for origin in origins:
        if not (folder / f"{origin}.json").exists():
            _keep(folder, f"{origin}", "incumbent", load(world, ORIGINS[origin]), scorer, origin)
        done = {path.stem.split("~")[1] for path in folder.glob(f"{origin}~*~done")}
        before = ""
        for name, kind, network in candidates(world, ORIGINS[origin], done):
            key = name.split(".")[0]
            if before and key != before:
                (folder / f"{origin}~{before}~done").touch()
            before = key
            _keep(folder, f"{origin}~{name}", kind, network, scorer, origin)
        if before:
            (folder / f"{origin}~{before}~done").touch()


def add_origins(world: BankWorld) -> None:
    """Add the incumbents that adapted to the world's registry, unless they are there."""
    registry = CheckpointRegistry(StateLayout(world.settings.state).checkpoints)
    for version, plan in ADAPTED.items():
        if version in registry.versions():
            continue
        network = dict(run_round(world, RELEASED, plan))[f"{plan.marks[-1]}.teacher"]
        path = world.settings.state / f"origin-{version}.safetensors"
        save_weights(network, path)
        added = registry.add(path, registry.manifest(RELEASED), by="bank")
        assert added.version == version


def _keep(folder: Path, name: str, kind: str, network: SegmentationNetwork, scorer: Scorer, origin: str) -> None:
    began = time.monotonic()
    scores, maps, miou, iou = scorer.score(network)
    save_weights(network, folder / f"{name}.safetensors")
    np.savez_compressed(folder / f"{name}.npz", maps=maps)
    line: dict[str, Any] = {"origin": origin, "name": name, "kind": kind, "miou": miou, "iou": iou}
    line |= {"scores": scores.model_dump(mode="json"), "seconds": time.monotonic() - began}
    part = folder / f"{name}.json.part"
    part.write_text(json.dumps(line), encoding="utf-8")
    part.rename(folder / f"{name}.json")
    print(f"{folder.name} {name} ({kind}): {100 * miou:.1f}, {line['seconds']:.1f} s", flush=True)


def read(folder: Path) -> Iterator[Banked]:
    """Yield every model of the bank of one world, incumbents too (their kind is `incumbent`)."""
    for path in sorted(folder.glob("*.json")):
        if path.name == "references.json":
            continue
        line = json.loads(path.read_text(encoding="utf-8"))
        maps = np.load(path.with_suffix("").with_name(path.name[: -len(".json")] + ".npz"))["maps"]
        yield Banked(
            folder.name, line["origin"], line["name"], line["kind"], line["miou"], line["iou"],
            ModelScores.model_validate(line["scores"]), maps,
        )  # fmt: skip


def main() -> None:
    """Make the bank."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder with camvid and fundus")
    parser.add_argument("--worlds", nargs="+", choices=WORLDS, default=WORLDS)
    parser.add_argument("--origins", nargs="+", choices=list(ORIGINS), default=list(ORIGINS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.worlds:
        build(open_world(name, options.root, options.data), options.origins, options.root / "bank" / name)


if __name__ == "__main__":
    main()
