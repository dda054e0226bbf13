"""What each option of the forward pass costs and changes, on one CPU network, in one run.

    python benchmarks/serving_options.py --encoder resnet50 --network deeplabv3plus --images 8

A table: ms an image (median), ratio to float32, and the share of pixels with the label of float32. The options take
turns image by image, so that another load on the machine meets all of them alike. `--compile` adds torch.compile, which
takes minutes for a large network; the time to compile stands beside it. `--fp16` adds fp16.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from adapters.inference.forward import ServedForward
from adapters.networks.build import build_network
from configs.network import Architecture
from configs.serving import ServingSettings
from daemon.serving.versions.swap import noise

OPTIONS: dict[str, dict[str, object]] = {
    "float32": {},
    "not folded": {"advanced": {"fold_batch_norm": False}},
    "channels_last": {"advanced": {"channels_last": True}},
    "bf16": {"precision": "bf16"},
    "bf16 + channels_last": {"precision": "bf16", "advanced": {"channels_last": True}},
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print the table."""
    asked = _arguments(arguments)
    torch.set_num_threads(asked.threads)
    torch.manual_seed(0)
    network = build_network(Architecture(name=asked.network, encoder=asked.encoder), 19).eval()
    images = [_smooth((asked.height, asked.width), seed) for seed in range(asked.images)]
    options = OPTIONS | ({"compile": {"advanced": {"compile": True}}} if asked.compile else {})
    options |= {"fp16": {"precision": "fp16"}} if asked.fp16 else {}
    forwards = {
        name: ServedForward(copy.deepcopy(network), ServingSettings.model_validate(values), torch.device("cpu"))
        for name, values in options.items()
    }
    print(f"{asked.network}, {asked.encoder}, {asked.height}x{asked.width}, {asked.threads} thread(s)")
    _prepare(forwards, images)
    _report(*_measure(forwards, images))


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="deeplabv3plus")
    parser.add_argument("--encoder", default="resnet50")
    parser.add_argument("--height", type=int, default=240)
    parser.add_argument("--width", type=int, default=320)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--fp16", action="store_true")
    return parser.parse_args(arguments)


def _smooth(size: tuple[int, int], seed: int) -> Tensor:
    """Return an image of large soft blocks: noise alone would be all edges."""
    return torch.nn.functional.interpolate(noise((size[0] // 16, size[1] // 16), seed), size, mode="bicubic")


@torch.inference_mode()
def _prepare(forwards: dict[str, ServedForward], images: Sequence[Tensor]) -> None:
    for name, forward in forwards.items():
        started = time.perf_counter()
        forward.warm_up(images[0])
        print(f"{name}: prepared in {time.perf_counter() - started:.1f} s")


@torch.inference_mode()
def _measure(
    forwards: dict[str, ServedForward], images: Sequence[Tensor]
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds of every image and its agreement with float32, by option."""
    seconds: dict[str, list[float]] = {name: [] for name in forwards}
    agreement: dict[str, list[float]] = {name: [] for name in forwards}
    for image in images:
        exact: Tensor | None = None
        for name, forward in forwards.items():
            started = time.perf_counter()
            labels = forward(image).argmax(1)
            seconds[name].append(time.perf_counter() - started)
            exact = labels if exact is None else exact
            agreement[name].append(float((labels == exact).float().mean()))
    return seconds, agreement


def _report(seconds: dict[str, list[float]], agreement: dict[str, list[float]]) -> None:
    plain = statistics.median(seconds["float32"])
    print("| option | ms an image | times float32's speed | labels as float32 |\n|---|---|---|---|")
    for name, values in seconds.items():
        median = statistics.median(values)
        same = statistics.mean(agreement[name])
        print(f"| {name} | {median * 1000:.1f} | {plain / median:.2f} | {same:.2%} |")


if __name__ == "__main__":
    main()
