"""`python -m tests.daemon.serving.swap_soak --swaps 1000`: the swap storm for long, in a real plane under real load."""

import argparse
import logging
import tempfile
import time
from pathlib import Path

import torch

from tests.daemon.serving.serving_world import World
from tests.daemon.serving.swap_storm import weather


def main() -> None:
    """Swap as often as asked and say what came of it; ends with an AssertionError if a request failed or mixed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--swaps", type=int, default=1000)
    swaps: int = parser.parse_args().swaps
    torch.set_num_threads(1)
    logging.getLogger("daemon.serving.versions.follower").setLevel(
        logging.CRITICAL
    )  # a corrupt candidate each ten swaps
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mfmd-soak-") as folder:
        load, counts = weather(World(Path(folder)), swaps)
    kinds = ", ".join(f"{number} {kind}" for kind, number in counts.items())
    print(f"{swaps} swaps ({kinds}) in {time.monotonic() - began:.0f} s: {load.total} requests answered, ", end="")
    print(f"{len(load.failed)} failed, {len(load.mixed)} mixed", flush=True)


if __name__ == "__main__":
    main()
