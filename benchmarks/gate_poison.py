"""Which frames of hostile folders, and of real new conditions, the rules keep out of a round. Seconds, no round runs.

    python benchmarks/gate_poison.py --released out/stream/released

`--released` is a folder that `gate_worlds.world_folder` made: hidden scenes of every world, and a model trained on day.
The first frames are known: an earlier round used them. Cells: frames left out, source-free / with source, and why.
Without the rules nothing is left out (`round.advanced.leave_out: []`).
"""

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from gate_poison_folders import FOLDERS, Pixels
from gate_worlds import WORLDS
from PIL import Image

from adapters.checkpoints.checkpoint import load_version
from adapters.networks.network import SegmentationNetwork
from adapters.scoring.observation import observe_frame
from configs.gate import ConditionsSettings
from configs.round import RoundAdvanced
from daemon.gate.bursts import Floats
from daemon.gate.conditions import SeenFrames, distances, first_conditions, follow
from daemon.gate.frame_facts import FrameFacts, facts_of
from daemon.gate.frame_rules import Judged, left_out, look_of
from storage.buffer.catalog_records import FrameRecord
from storage.layout import StateLayout
from storage.registry.registry import CheckpointRegistry

FRAMES = 24
NEW_FRAMES = 64
"""`schedule.new_frames` of the demo."""


class Folder:
    """Facts and style vectors of the frames of one folder."""

    def __init__(self, frames: Sequence[Pixels], network: SegmentationNetwork) -> None:
        self.facts: list[FrameFacts] = [facts_of(frame) for frame in frames]
        self.styles: Floats = np.array([observe_frame(network, network, frame).style for frame in frames], np.float64)


def counts(known: Folder, new: Folder, source: Folder | None) -> Counter[str]:
    """Return how many of the new frames are left out, by reason, after a round used the known ones."""
    styles = np.concatenate([known.styles, new.styles])
    ids, settings = np.arange(1, len(styles) + 1), ConditionsSettings()
    held = ids % 5 == 0
    seen = SeenFrames(ids, ids * 1.0, styles, held, [f"{number:064x}" for number in ids], np.full(len(ids), ""))
    reference = known.styles if source is None else source.styles
    first = first_conditions(1, reference, seen, settings, 0.0)
    assert first is not None
    conditions = follow(first, seen, settings, 1, settings.golden_frames)
    centroids = np.array([row for item in conditions.conditions for row in item.centroids])
    far = distances(styles, centroids).min(axis=1) / conditions.threshold
    looks = [look_of(folder.facts) for folder in (known, source) if folder is not None]
    judged = Judged(
        records=[_record(int(number), holdout=bool(out)) for number, out in zip(ids, held, strict=True)],
        facts=dict(zip(ids.tolist(), [*known.facts, *new.facts], strict=True)),
        looks=[look for look in looks if look is not None],
        far=dict(zip(ids.tolist(), far.tolist(), strict=True)),
        trusted=frozenset(range(1, len(known.facts) + 1)),
    )
    found = left_out(judged, RoundAdvanced(), NEW_FRAMES)
    return Counter(reason for frame, reason in found.items() if frame > len(known.facts))


def _record(number: int, *, holdout: bool) -> FrameRecord:
    return FrameRecord(number, number, str(number), str(number), 0.0, 0.0, 144, 192, 144, 192, 0, holdout)


def _cell(free: Counter[str], source: Counter[str]) -> str:
    reasons = ", ".join(sorted(free | source))
    return f"{free.total()} / {source.total()}" + (f" ({reasons})" if reasons else "")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--released", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    registry = CheckpointRegistry(StateLayout(options.released / "state").checkpoints)
    network = load_version(registry, 1, torch.device("cpu"))[0]
    scenes = {}
    for world in WORLDS:
        paths = sorted((options.released / "test" / world / "images").iterdir())[:FRAMES]
        scenes[world] = [np.array(Image.open(path).convert("RGB")) for path in paths]
    made = {name: make(scenes["dusk"], np.random.default_rng(0)) for name, make in FOLDERS.items()}
    folders = {name: Folder(frames, network) for name, frames in (scenes | made).items()}
    print("| new frames | " + " | ".join(f"known: {world}" for world in WORLDS) + " |")
    print("|---" * (1 + len(WORLDS)) + "|")
    for name, new in folders.items():
        cells = [
            _cell(counts(folders[world], new, None), counts(folders[world], new, folders["day"])) for world in WORLDS
        ]
        print(f"| {name.replace('_', ' ')} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
