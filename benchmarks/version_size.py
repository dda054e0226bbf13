"""What versions of a frozen ViT take, with and without a base: bytes on the disk, and seconds to register and load.

    python benchmarks/version_size.py --encoder dinov2_small --work WORK

Random weights; the encoder is frozen, the head trains. Times are medians over all versions but the first; loading
includes hashing. The training state has student and teacher, without the optimizer's moments.
"""

import argparse
import shutil
import statistics
import time
from pathlib import Path

import torch

from adapters.checkpoints.bases import save_beside_base, save_split
from adapters.checkpoints.checkpoint import load_version, make_manifest
from adapters.inference.forward import ServedForward
from adapters.networks.build import build_network
from adapters.networks.frozen import base_names
from adapters.networks.network import SegmentationNetwork
from configs.settings import Settings
from storage.registry.registry import CheckpointRegistry

VERSIONS = 6
MIB = 1 << 20
CPU = torch.device("cpu")


def main() -> None:
    """Measure both ways and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="dinov2_small")
    parser.add_argument("--work", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    values = {"state": arguments.work / "state", "classes": "demo", "watch": {"folder": arguments.work / "drop"}}
    settings = Settings.model_validate({**values, "network": {"name": "light", "encoder": arguments.encoder}})
    network = build_network(settings.network.architecture(), len(settings.classes))
    print(f"{arguments.encoder}: {sum(value.numel() for value in network.parameters()) / 1e6:.1f} M parameters")
    print("| | each version (MiB) | base (MiB) | add (s) | load (s) | copy into a slot (s) | training state (MiB) |")
    print("|---|---|---|---|---|---|---|")
    measure("whole", network, settings)
    network.encoder.requires_grad_(False)
    measure("with a base", network, settings)


def measure(name: str, network: SegmentationNetwork, settings: Settings) -> None:
    """Add versions of `network` whose head differs, as rounds do, load the last one, and print a row."""
    shutil.rmtree(settings.state, ignore_errors=True)
    registry, folder = CheckpointRegistry(settings.state / "checkpoints"), settings.state / "saved"
    folder.mkdir(parents=True)
    times = dict[str, list[float]](add=[], load=[], slot=[])
    forward = ServedForward(build_network(settings.network.architecture(), network.num_classes), settings.serving, CPU)
    for version in range(1, VERSIONS + 1):
        torch.nn.init.normal_(next(network.decoder.parameters()))
        saved = save_split(network, base_names(network), folder)
        began = time.perf_counter()
        base = saved.base if version == 1 else None
        registry.add(saved.weights, make_manifest(settings, origin="import"), by="benchmark", base=base)
        times["add"].append(time.perf_counter() - began)
        began = time.perf_counter()
        loaded, _ = load_version(registry, version, CPU)
        times["load"].append(time.perf_counter() - began)
        began = time.perf_counter()
        forward.load(*registry.weight_files(version))
        times["slot"].append(time.perf_counter() - began)
    for part in ("student", "teacher"):
        save_beside_base(loaded, folder / f"{part}.state")
    state = sum(path.stat().st_size for path in folder.glob("*.state"))
    weights, *shared = (path.stat().st_size for path in registry.weight_files(VERSIONS))
    seconds = " | ".join(f"{statistics.median(values[1:]):.2f}" for values in times.values())
    print(f"| {name} | {weights / MIB:.2f} | {sum(shared) / MIB:.1f} | {seconds} | {state / MIB:.2f} |")


if __name__ == "__main__":
    main()
