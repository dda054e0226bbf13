"""How strongly a source-free round should be held to the released weights: the drawn dusk, fog and night.

Each world of the gate's bank gets source-free rounds of 160 steps from the released model, with each value of
`recipe.anchor_weight` and each seed. The table has the mIoU on hidden frames of the world and of day, which the
released model was trained on.

    python benchmarks/anchor.py --root out/bank --data ../shared/data
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from adaptation_data import labelled_part, score
from adaptation_report import figure
from gate_bank_worlds import open_world
from gate_makers import RELEASED, RoundPlan, load, run_round

WORLDS = ("dusk", "fog", "night")
STEPS = 160
CANDIDATES = ("teacher", "average_50")
"""The round's candidate, and its average with the released model, half each."""


def rows(root: Path, data: Path, name: str, anchors: Sequence[float], seeds: Sequence[int]) -> list[str]:
    """Return the lines of one world."""
    world = open_world(name, root, data)
    day = labelled_part(root / "released" / "test" / "day", len(world.settings.classes))
    parts = (world.hidden, day)
    before = [score(load(world, RELEASED), part, world.settings).miou for part in parts]
    lines = [f"| {name} | released | - | {100 * before[0]:.1f} | {100 * before[1]:.1f} |"]
    for anchor in anchors:
        found: dict[str, list[tuple[float, ...]]] = {}
        for seed in seeds:
            plan = RoundPlan("", (STEPS,), {"recipe.anchor_weight": anchor}, source=False, seed=seed, offers=CANDIDATES)
            for mark, network in run_round(world, RELEASED, plan):
                scores = tuple(score(network, part, world.settings).miou for part in parts)
                found.setdefault(mark.split(".")[1], []).append(scores)
        for candidate, scored in found.items():
            target, source = (figure(values) for values in zip(*scored, strict=True))
            lines.append(f"| {name} | {candidate} | {anchor:g} | {target} | {source} |")
    return lines


def main() -> None:
    """Print the table, world by world."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder of the worlds, as gate_bank.py fills it")
    parser.add_argument("--data", type=Path, required=True, help="folder of camvid and fundus")
    parser.add_argument("--worlds", nargs="+", choices=WORLDS, default=list(WORLDS))
    parser.add_argument("--anchors", nargs="+", type=float, default=[20.0, 100.0, 300.0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| world | candidate | anchor | its mIoU | day mIoU |")
    print("|---|---|---|---|---|")
    for name in options.worlds:
        print("\n".join(rows(options.root, options.data, name, options.anchors, options.seeds)), flush=True)


if __name__ == "__main__":
    main()
