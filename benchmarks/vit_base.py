"""A small ViT in the place of a foundation model, for `fundus.py --config configs/presets/fundus_fewshot.yaml`.

Trains a `dinov2_tiny` from scratch on the 20 labelled training images of DRIVE, with the real `mfmd pretrain`, and
saves it as a directory in Hugging Face format. It is no foundation model: it has seen twenty photographs and their
labels. Nothing of STARE is read.

    python benchmarks/vit_base.py --data ../shared/data/fundus --root /tmp/base --out /tmp/base/vit
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from driven_rounds import pretrain, write_config
from fundus import PRESET, read_data
from rich.console import Console

from adapters.checkpoints.checkpoint import load_version
from adapters.networks.encoders.vit import PlainVit
from daemon.demo.driving import DrivenDaemon
from storage.registry.registry import CheckpointRegistry

CHANGES: dict[str, dict[str, Any]] = {
    "network": {"name": "light", "encoder": "dinov2_tiny"},
    "pretrain": {
        "steps": 2000,
        "batch_size": 8,
        "crop_height": 128,
        "crop_width": 128,
        "optim": {"learning_rate": 0.001, "head_multiplier": 1.0, "advanced": {"warmup_steps": 100}},
        "advanced": {"min_scale": 0.8, "max_scale": 1.25, "jitter": 0.1, "gamma": 0.3},
    },
}
"""What differs from the preset of the U-Net."""


def save_vit(driven: DrivenDaemon, out: Path) -> None:
    """Save the ViT of version 1 in `out`, in Hugging Face format."""
    network, _ = load_version(CheckpointRegistry(driven.layout.checkpoints), 1, torch.device("cpu"))
    assert isinstance(network.encoder, PlainVit)
    network.encoder.model.save_pretrained(out)


def main() -> int:
    """Run the command line; return 0 if everything ran."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with drive and stare")
    parser.add_argument("--root", type=Path, required=True, help="folder for images and state")
    parser.add_argument("--out", type=Path, required=True, help="folder for the ViT")
    arguments = parser.parse_args()
    root = arguments.root.resolve()
    root.mkdir(parents=True, exist_ok=True)
    data = read_data(arguments.data.resolve(), root)
    config = write_config(PRESET, root, data.source, len(data.seen))
    settings = yaml.safe_load(config.read_text(encoding="utf-8"))
    config.write_text(yaml.safe_dump({**settings, **CHANGES}, sort_keys=False), encoding="utf-8")
    driven = DrivenDaemon(config)
    pretrain(driven, Console(stderr=True))
    save_vit(driven, arguments.out.resolve())
    return 0


if __name__ == "__main__":
    sys.exit(main())
