"""Retina photographs through the real daemon: whether rounds find more vessels of a camera that nobody labelled.

The source is DRIVE, with labels: 21 to 40 train, 01 to 20 are for validation, as the data set says. The target is
STARE, another camera: every third image stays hidden, the others are copied into the drop folder. Served masks are
scored before and after each round, on the hidden images, on all of STARE, and on DRIVE's validation images. Only this
script reads labels of STARE.

    python benchmarks/fundus.py --data ../shared/data/fundus --root /tmp/fundus --seeds 1 2 3
    python benchmarks/fundus.py ... --config configs/presets/fundus_fewshot.yaml --first-hidden 2 \\
        --set network.pretrained=/tmp/base/vit network.encoder=dinov2_tokens_tiny

With the second command 14 images of STARE arrive: the gate holds out four, ten train. `benchmarks/vit_base.py` makes
the ViT.

A seed is that of source training and of its rounds; with `--source-seed` all begin from one source model. A source
model that is in `--root` for the same settings is used again. Prints markdown tables for
docs/explanation/benchmarks.md; `--root` gets them too.
"""

import argparse
import json
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from driven_rounds import adapt, hardware, pretrain, start, write_config
from fundus_scores import Truth, VesselScore, mean_score, vessel_score
from rich.console import Console

from daemon.demo.driving import DrivenDaemon, describe
from daemon.demo.report import stage
from daemon.demo.scoring import Pair, pair_up, read_mask, score_served
from storage.durable.digest import digest_of

PRESET = Path(__file__).parent.parent / "configs" / "presets" / "fundus.yaml"
FIRST_TRAINED = 21
"""DRIVE's images from this number on are its training set, those before it its test set (Staal et al., 2004)."""
FIRST_HIDDEN, EVERY = 1, 3
"""STARE's images, by name, that the daemon never sees: 7 of 20, of both its halves, healthy and diseased."""
SETS = {"stare_hidden": "STARE, hidden", "stare": "STARE, all", "drive": "DRIVE, validation"}
COLUMNS = {"dice": "Dice", "pooled_dice": "pooled Dice", "iou": "IoU", "centreline": "centreline"}


@dataclass(frozen=True, slots=True)
class Data:
    """The images with their truths, read once."""

    pairs: dict[str, list[Pair]]
    """By the names of `SETS`."""
    seen: list[Path]
    """STARE's images that arrive in the drop folder."""
    source: dict[str, Path]
    """Folders of the labelled source, as the settings name them."""
    truths: dict[Path, Truth]
    """By label file."""


def source_folders(root: Path) -> dict[str, Path]:
    """Return where `sort_drive` puts images and labels, as the settings name them."""
    parts = {"": "train", "validation_": "validation"}
    return {
        f"{prefix}{kind}": root / "drive" / parts[prefix] / kind for prefix in parts for kind in ("images", "labels")
    }


def sort_drive(data: Path, root: Path) -> dict[str, Path]:
    """Copy DRIVE into folders of `root`, training images apart from those of validation; return the folders."""
    folders = source_folders(root)
    for pair in pair_up(data / "drive"):
        prefix = "" if int(pair.image.stem) >= FIRST_TRAINED else "validation_"
        for kind, file in (("images", pair.image), ("labels", pair.label)):
            folder = folders[prefix + kind]
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, folder / file.name)
    return folders


def read_data(data: Path, root: Path, first_hidden: int = FIRST_HIDDEN) -> Data:
    """Sort DRIVE into folders of `root`, as the settings want it, and choose the hidden images of STARE."""
    stare, source = pair_up(data / "stare"), sort_drive(data, root)
    hidden = stare[first_hidden::EVERY]
    held_out = pair_up(source["validation_images"].parent)
    truths = {pair.label: Truth.of(read_mask(pair.label)) for pair in [*stare, *held_out]}
    seen = [pair.image for pair in stare if pair not in hidden]
    return Data({"stare_hidden": hidden, "stare": stare, "drive": held_out}, seen, source, truths)


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the table: an event, and the scores of the server's answers after it."""

    event: str
    version: int
    scores: dict[str, VesselScore]
    """By the names of `SETS`."""
    seconds: float
    """Time since the start (seconds)."""


@dataclass(slots=True)
class SeedRun:
    """Source training and rounds of one seed, in a folder of their own."""

    data: Data
    seed: int
    source_seed: int
    folder: Path
    console: Console
    changes: dict[str, Any] = field(default_factory=dict)
    """Settings that differ from the preset, by dotted key."""
    started: float = field(default_factory=time.monotonic)
    lines: list[Line] = field(default_factory=list)

    def run(self, preset: Path, rounds: int) -> list[Line]:
        """Train the source model or take the one that is there, serve, adapt; return the lines."""
        driven = self.prepare(preset)
        try:
            start(driven, self.console)
            self.score(driven, "source model")
            for number in range(1, rounds + 1):
                verdict = adapt(driven, self.console, number, self.data.seen if number == 1 else [])
                self.score(driven, f"round {number}: {describe(verdict)}")
        finally:
            driven.stop()
        return self.lines

    def prepare(self, preset: Path) -> DrivenDaemon:
        """Write the configuration; train, and keep a copy of the state, unless that was done for these settings."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        config = write_config(preset, self.folder, self.data.source, len(self.data.seen))
        settings = yaml.safe_load(config.read_text(encoding="utf-8"))
        settings = seeded(changed(settings, self.changes), self.seed, self.source_seed)
        config.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
        driven = DrivenDaemon(config)
        learnt = [settings[name] for name in ("classes", "network", "buffer", "source", "pretrain")]
        trained = self.folder.parent / "starts" / digest_of(json.dumps(learnt, sort_keys=True).encode())[:12]
        if not trained.is_dir():
            pretrain(driven, self.console)
            shutil.copytree(driven.layout.root, trained.with_suffix(".new"))
            trained.with_suffix(".new").rename(trained)
        else:
            shutil.copytree(trained, driven.layout.root)
        return driven

    def score(self, driven: DrivenDaemon, event: str) -> None:
        """Segment every image through the server, and record the scores."""
        scores, serving = dict[str, VesselScore](), 0
        with stage(self.console, f"Seed {self.seed}: score what is served") as show:
            for name, pairs in self.data.pairs.items():
                served = score_served(driven, pairs)
                scores[name] = vessel_score(served.masks, [self.data.truths[pair.label] for pair in pairs])
                serving = served.version
            show(f"version {serving}, " + ", ".join(f"{SETS[n]} {100 * s.dice:.1f}" for n, s in scores.items()))
        self.lines.append(Line(event, serving, scores, time.monotonic() - self.started))


def changed(settings: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return `settings` with the values of `changes`, by dotted key."""
    for key, value in changes.items():
        *sections, name = key.split(".")
        part = settings
        for section in sections:
            part = part.setdefault(section, {})
        part[name] = value
    return settings


def seeded(settings: dict[str, Any], seed: int, source_seed: int) -> dict[str, Any]:
    """Return `settings` with `seed` for rounds and `source_seed` for source training."""
    for section, value in (("pretrain", source_seed), ("round", seed)):
        part = settings.get(section, {})
        settings[section] = {**part, "advanced": {**part.get("advanced", {}), "seed": value}}
    return settings


def markdown(runs: dict[int, list[Line]], command: str) -> str:
    """Return the tables for docs/explanation/benchmarks.md: each seed, then the mean over seeds."""
    head = [f"{title}: {column}" for title in SETS.values() for column in COLUMNS.values()]
    text = [
        f"{time.strftime('%Y-%m-%d')}, {hardware()}, mfmd {version('mfmd')}, torch {version('torch')}. "
        f"Command: `{command}`. Scores of the vessel class in %, of what `POST /v1/segment` answers.",
        "",
        f"| seed | what happened | serves | {' | '.join(head)} | minutes |",
        "|---" * (len(head) + 4) + "|",
    ]
    for seed, lines in runs.items():
        text += [
            f"| {seed} | {line.event} | version {line.version} | {_cells(line.scores)} | {line.seconds / 60:.1f} |"
            for line in lines
        ]
    text += ["", f"| mean of {len(runs)} | {' | '.join(head)} |", "|---" * (len(head) + 1) + "|"]
    means = [mean_of([lines[number] for lines in runs.values()]) for number in range(len(next(iter(runs.values()))))]
    text += [f"| {_name(number)} | {_cells(mean)} |" for number, mean in enumerate(means)]
    changes = [_change(means[-1][name], means[0][name], column) for name in SETS for column in COLUMNS]
    return "\n".join([*text, f"| change | {' | '.join(changes)} |"]) + "\n"


def mean_of(lines: Sequence[Line]) -> dict[str, VesselScore]:
    """Return the mean scores of the same event over seeds."""
    return {name: mean_score([line.scores[name] for line in lines]) for name in SETS}


def _name(number: int) -> str:
    return f"after round {number}" if number else "source model"


def _cells(scores: dict[str, VesselScore]) -> str:
    return " | ".join(f"{100 * getattr(scores[name], column):.1f}" for name in SETS for column in COLUMNS)


def _change(after: VesselScore, before: VesselScore, column: str) -> str:
    return f"{100 * (getattr(after, column) - getattr(before, column)):+.1f}"


def main() -> int:
    """Run the command line; return 0 if everything ran."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with drive and stare")
    parser.add_argument("--root", type=Path, required=True, help="folder for source models, states and tables")
    parser.add_argument("--config", type=Path, default=PRESET, help="preset to run (paths, ports, seeds are replaced)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--source-seed", type=int, help="begin every seed from the source model of this one")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings other than the preset's")
    parser.add_argument("--first-hidden", type=int, default=FIRST_HIDDEN, help=f"hide every {EVERY}rd from this index")
    parser.add_argument("--rounds", type=int, default=2, help="rounds of each seed; all but the first are asked for")
    arguments = parser.parse_args()
    root = arguments.root.resolve()
    changes = {key: yaml.safe_load(value) for key, _, value in (item.partition("=") for item in arguments.set)}
    data, runs = read_data(arguments.data.resolve(), root, arguments.first_hidden), dict[int, list[Line]]()
    for seed in arguments.seeds:
        source_seed = seed if arguments.source_seed is None else arguments.source_seed
        run = SeedRun(data, seed, source_seed, root / f"seed-{seed}", Console(stderr=True), changes)
        runs[seed] = run.run(arguments.config, arguments.rounds)
        table = markdown(runs, " ".join(["python", *sys.argv]))
        (root / "fundus.md").write_text(table, encoding="utf-8")  # what is done survives a seed that fails
    print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
