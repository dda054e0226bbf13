"""What serving costs, and what swaps, rollbacks and ingest do to it.

    python benchmarks/serving.py --peer litserve=A/bin/python --peer mlserver=B/bin/python --peer bentoml=C/bin/python
    python benchmarks/serving.py --parts swaps --swaps 100          only swaps, fewer of them

- throughput: images a second at saturation of `mfmd serve`, of the network alone in a loop at the same batch, and of
  each peer serving the same module (`serving_peers/`), in turn; then p50 and p99 of each server at one fixed rate. Ours
  also with `serving.advanced.compile` and in bf16, which peers leave to whoever writes the module.
- swaps: the serving ref moves again and again under a constant load; one in ten a corrupt candidate, one in ten a
  rollback. Every answer is checked against what the version that it names gives.
- rollback: from the call to the first answer of the version before, under load.
- ingest: a whole daemon; the time of answers with and without images arriving beside them.

One model (DeepLabV3+ on a tiny ResNet, 240x320, random weights), one thread a forward pass, one client
(`serving_client.py`) on the same cores. The machine may be busy with other work: compare within a run; processor time
is kinder than the clock. A peer lives in an environment of its own: `python -m venv A; A/bin/pip install torch==2.13.0
litserve numpy pillow safetensors pydantic-settings isal pyyaml transformers tifffile imagecodecs`, the same with
`mlserver uvloop==0.21.0` (its worker does not start with 0.22) or `bentoml`.
"""

import argparse
import os
import platform
import tempfile
from pathlib import Path

import torch
from serving_measures import print_ingest, print_rollback, print_swaps
from serving_processes import PEERS
from serving_throughput import Plan, print_throughput

PARTS = ("throughput", "swaps", "rollback", "ingest")


def main() -> None:
    """Measure the parts asked for and print markdown."""
    arguments = parse()
    torch.set_num_threads(1)
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}")
    peers = dict(arguments.peer)
    for peer in PEERS:
        if peer not in peers and "throughput" in arguments.parts:
            print(f"{peer} left out (--peer {peer}=PYTHON)")
    with tempfile.TemporaryDirectory(prefix="mfmd-serving-") as folder:
        root = Path(folder)
        if "throughput" in arguments.parts:
            plan = Plan(peers, arguments.turns, arguments.seconds, arguments.clients, arguments.rate, arguments.paced)
            print_throughput(root / "throughput", plan)
        if "swaps" in arguments.parts:
            print_swaps(root / "swaps", arguments.swaps, arguments.rate, arguments.pause)
        if "rollback" in arguments.parts:
            print_rollback(root / "rollback", arguments.rollbacks, arguments.rate)
        if "ingest" in arguments.parts:
            print_ingest(root / "ingest", arguments.ingest_images, arguments.rate)


def parse() -> argparse.Namespace:
    """Return the arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--peer", type=_peer, action="append", default=[], metavar="NAME=PYTHON")
    parser.add_argument("--turns", type=int, default=7, help="turns of the throughput")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each arm in a turn")
    parser.add_argument("--paced", type=float, default=10.0, help="seconds of each server at the fixed rate in a turn")
    parser.add_argument("--clients", type=int, default=8, help="clients at saturation")
    parser.add_argument("--rate", type=float, default=4.0, help="requests a second of the constant load")
    parser.add_argument("--swaps", type=int, default=1000)
    parser.add_argument("--pause", type=float, default=0.0, help="rest after each move of the ref (seconds)")
    parser.add_argument("--rollbacks", type=int, default=20)
    parser.add_argument("--ingest-images", type=int, default=10_000)
    return parser.parse_args()


def _peer(text: str) -> tuple[str, Path]:
    name, _, python = text.partition("=")
    if name not in PEERS or not Path(python).exists():
        raise argparse.ArgumentTypeError(f"{text!r}: give NAME=PYTHON with NAME of {', '.join(PEERS)}")
    return name, Path(python).absolute()


if __name__ == "__main__":
    main()
