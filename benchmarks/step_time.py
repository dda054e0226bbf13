"""How long an optimizer step takes, for every recipe with and without MFM, and what it is compared with.

    python benchmarks/step_time.py                      every recipe, tiny network, 128 crops
    python benchmarks/step_time.py --size b0 --recipes dacs
    python benchmarks/step_time.py --options            bf16, accumulation, checkpointing, layout, compilation
    python benchmarks/step_time.py --recipes dacs --terms               every term, with and without MFM
    python benchmarks/step_time.py --recipes dacs --terms foundation blda --size b0
    python benchmarks/step_time.py --recipes dacs --profile
    python benchmarks/step_time.py --size b5 --device auto --precision bf16     on a GPU

Images are drawn by the script; crops come through the streams of a real round. Every case runs in a process of its
own; one step of each in turn (A B C A B C ...), so that what else the machine does meets all of them alike. A case
whose steps differ (MFM-DA: one for each loss) does all of them in a turn; its times are their mean. Ratios are taken
turn by turn against the baseline: their median and quartiles. CPU time is that of the process, so it hardly depends on
the company. Peak memory is that of the whole process (CPU) or of its tensors (GPU).
The reference loop (`reference_loop.py`) is a plain DACS step; other recipes have no reference. Our cases run with the
environment of a round, the reference with the user's own: export
`daemon.rounds.environment.MEMORY_KEPT` to compare loops alone.
"""

import argparse
import multiprocessing
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from step_cases import Case, Sample, Sections, build_vit, draw_state, named, serve, settings_of
from term_cases import TITLES, term_cases

from adapters.recipes.build import RECIPES
from configs.recipe import RECIPES as SETTINGS_OF
from daemon.rounds.environment import MEMORY_KEPT

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"network": "deeplabv3plus", "encoder": "resnet_tiny", "channels": 64, "output_stride": 16, "crop": 128,
             "batch": 4, "classes": 11, "mfm_dim": 32, "mfm_heads": 4, "vit": "dinov2_tiny"},
    "b0": {"network": "daformer", "encoder": "mit_b0", "channels": 256, "output_stride": 8, "crop": 256,
           "batch": 2, "classes": 19, "mfm_dim": 512, "mfm_heads": 16, "vit": "dinov2_small"},
    "b5": {"network": "daformer", "encoder": "mit_b5", "channels": 256, "output_stride": 8, "crop": 512,
           "batch": 2, "classes": 19, "mfm_dim": 512, "mfm_heads": 16, "vit": "dinov2_large"},
}  # fmt: skip
"""Presets; each value is an option of its own."""
ROUND_OPTIONS: dict[str, Sections] = {
    "bf16": {"round": {"mixed_precision": "bf16"}},
    "gradient_accumulation 2": {"round": {"advanced": {"gradient_accumulation": 2}}},
    "gradient_checkpointing": {"round": {"advanced": {"gradient_checkpointing": True}}},
    "channels_last off": {"round": {"advanced": {"channels_last": False}}},
    "compile": {"round": {"advanced": {"compile": True}}},
}
"""Rows of `--options`."""
START_SECONDS = 900.0
"""Longest that a case may take to be ready, compilation included."""


@dataclass(frozen=True, slots=True)
class Timed:
    """A case with its steps."""

    case: Case
    samples: list[Sample]
    images: int
    """Source and target images a step."""
    memory: float
    """MiB."""


class Worker:
    """The process of a case, as seen from here."""

    def __init__(self, workspace: Path, common: Sections, case: Case, classes: int) -> None:
        self.case = case
        settings = settings_of(workspace, common, case, classes)
        draw_state(settings)
        context = multiprocessing.get_context("spawn")
        self._connection: Connection
        self._connection, theirs = context.Pipe()
        self._process: BaseProcess = context.Process(target=serve, args=(theirs, settings, case), daemon=True)
        with environment({} if case.reference else MEMORY_KEPT):
            self._process.start()
        theirs.close()
        if not self._connection.poll(START_SECONDS):
            raise TimeoutError(f"{case.name}: not ready after {START_SECONDS:.0f} s")
        self._answer()

    def ask(self, order: Any) -> Any:
        """Send an order, wait for the answer."""
        self._connection.send(order)
        return self._answer()

    def _answer(self) -> Any:
        try:
            return self._connection.recv()
        except EOFError as error:
            raise RuntimeError(f"{self.case.name}: its process ended; why stands above") from error

    def end(self) -> None:
        """Let the process finish."""
        self._connection.send("end")
        self._process.join()


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Inside, processes start with `variables` where the user has not set them, as the daemon starts a round."""
    added = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


def time_cases(workers: Sequence[Worker], steps: int) -> list[Timed]:
    """One step of each in turn, `steps` times, every other time in reverse order."""
    samples: dict[str, list[Sample]] = {worker.case.name: [] for worker in workers}
    for turn in range(steps):
        for worker in workers if turn % 2 == 0 else reversed(workers):
            samples[worker.case.name].append(worker.ask("step"))
    return [Timed(worker.case, samples[worker.case.name], *worker.ask("facts")) for worker in workers]


def recipe_cases(recipe: str) -> list[Case]:
    """Return the bare recipe, with MFM where it takes MFM, and the reference loop where there is one."""
    network = {"multi_resolution": True} if recipe == "hrda" else {}
    bare: Sections = {"recipe": named(recipe), "mfm": {"enabled": False}, "network": network}
    cases = [Case(recipe, bare)]
    if not SETTINGS_OF[recipe].test_time:
        cases.append(Case(f"{recipe}+mfm", {**bare, "mfm": {"enabled": True}}))
    if recipe == "dacs":
        plain = {"mixed_precision": "no"}
        cases.append(Case("reference dacs", {**bare, "round": plain}, reference=True))
        cases.append(Case("reference dacs+mfm", {**bare, "mfm": {"enabled": True}, "round": plain}, reference=True))
    return cases


def option_cases(recipe: str) -> list[Case]:
    """Return the recipe with MFM as it is by default, and with one option changed at a time."""
    base: Sections = {"recipe": named(recipe)}
    return [Case("default", base), *(Case(name, {**base, **change}) for name, change in ROUND_OPTIONS.items())]


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Return lower quartile, median, upper quartile."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def ratio(case: Timed, baseline: Timed | None, field: str) -> str:
    """Median and quartiles of `case` over `baseline`, turn by turn, for the same number of images."""
    if baseline is None:
        return "-"
    share = baseline.images / case.images
    pairs = zip(case.samples, baseline.samples, strict=True)
    low, middle, high = quartiles([share * getattr(one, field) / getattr(other, field) for one, other in pairs])
    return f"{middle:.2f} ({low:.2f}-{high:.2f})"


def row(timed: Timed, bare: Timed | None, reference: Timed | None) -> str:
    """Return a line of the table."""
    wall = quartiles([1000.0 * sample.wall for sample in timed.samples])
    cpu = quartiles([1000.0 * sample.cpu for sample in timed.samples])
    waiting = sum(sample.waiting for sample in timed.samples) / sum(sample.wall for sample in timed.samples)
    cells = [
        timed.case.name,
        f"{1000.0 * timed.images / wall[1]:.2f}",
        f"{wall[1]:.0f} ({wall[0]:.0f}-{wall[2]:.0f})",
        f"{cpu[1]:.0f} ({cpu[0]:.0f}-{cpu[2]:.0f})",
        f"{timed.memory:.0f}",
        f"{100.0 * waiting:.1f} %",
        ratio(timed, bare, "wall"),
        ratio(timed, bare, "cpu"),
        ratio(reference, timed, "cpu") if reference is not None else "-",
    ]
    return "| " + " | ".join(cells) + " |"


def header(baseline: str) -> str:
    """Return the table's head."""
    return (
        f"| case | images/s | step, ms (quartiles) | CPU time, ms | peak MiB | waits for input | wall / {baseline} "
        f"| CPU time / {baseline} | reference / this, CPU time |\n" + "|---" * 9 + "|"
    )


def recipes_table(arguments: argparse.Namespace, workspace: Path) -> None:
    """Print a line for every recipe, with and without MFM."""
    print(header("bare recipe"), flush=True)
    for recipe in arguments.recipes:
        timed = run(arguments, workspace, recipe_cases(recipe))
        for entry in timed.values():
            is_reference = entry.case.reference
            bare = timed["reference dacs" if is_reference else recipe]
            reference = None if is_reference else timed.get(f"reference {entry.case.name}")
            print(row(entry, bare, reference), flush=True)


def terms_table(arguments: argparse.Namespace, workspace: Path) -> None:
    """Print a line for every chosen term, alone and with MFM, over its base: the first recipe, or one of its own."""
    weights = sum(weight.numel() for weight in build_vit(arguments.vit).parameters())
    print(f"ViT: `{arguments.vit}`, {weights / 1e6:.1f} M parameters\n")
    print(header("base"), flush=True)
    cases = term_cases(arguments.recipes[0], arguments.vit, workspace)
    for title in arguments.terms or cases:
        for base, case in cases[title][
            : 1 if arguments.alone else None
        ]:  # in pairs: a slow term must not spread the turns of the others
            timed = run(arguments, workspace, [base, case])
            print(row(timed[case.name], timed[base.name], None), flush=True)


def options_table(arguments: argparse.Namespace, workspace: Path) -> None:
    """Print a line for every option of a round, each for the first recipe with MFM."""
    print(header("default"), flush=True)
    default, *changed = option_cases(arguments.recipes[0])
    for case in changed:  # in pairs: a slow option must not spread the turns of the others
        timed = run(arguments, workspace, [default, case])
        for name in (default.name, case.name):
            print(row(timed[name], timed[default.name], None), flush=True)


def run(arguments: argparse.Namespace, workspace: Path, cases: Sequence[Case]) -> dict[str, Timed]:
    """Time `cases` together."""
    workers = [Worker(workspace, common_sections(arguments), case, arguments.classes) for case in cases]
    try:
        return {timed.case.name: timed for timed in time_cases(workers, arguments.steps)}
    finally:
        for worker in workers:
            worker.end()


def print_profile(arguments: argparse.Namespace, workspace: Path) -> None:
    """Print where the time goes, for the first recipe, bare and with MFM."""
    for case in recipe_cases(arguments.recipes[0]):
        if case.reference:
            continue
        worker = Worker(workspace, common_sections(arguments), case, arguments.classes)
        print(f"{case.name}, {arguments.steps} steps\n{worker.ask((arguments.steps, arguments.rows))}", flush=True)
        worker.end()


def common_sections(arguments: argparse.Namespace) -> Sections:
    """Return the settings that all cases share."""
    side = arguments.crop + arguments.crop // 2
    return {
        "recipe": {},
        "buffer": {"height": side, "width": side, "capacity_frames": 32, "reserve_bytes": 0},
        "network": {
            "name": arguments.network,
            "encoder": arguments.encoder,
            "channels": arguments.channels,
            "advanced": {"output_stride": arguments.output_stride},
        },
        "mfm": {"ablation": {"dim": arguments.mfm_dim, "heads": arguments.mfm_heads}},
        "round": {
            "batch_size": arguments.batch,
            "crop_height": arguments.crop,
            "crop_width": arguments.crop,
            "device": arguments.device,
            "advanced": {"threads": arguments.threads},
            "mixed_precision": arguments.precision,
        },
    }


def parse() -> argparse.Namespace:
    """Parse the command line; what is not given comes from the preset `--size`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="tiny", help="preset of the options below")
    for name, value in SIZES["tiny"].items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), help="default: as the preset")
    parser.add_argument("--device", choices=("auto", "cpu"), default="cpu", help="auto: the GPU when there is one")
    parser.add_argument("--precision", choices=("no", "bf16", "fp16"), default="no", help="of our steps")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each process")
    parser.add_argument("--steps", type=int, default=20, help="timed steps of each case")
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--options", action="store_true", help="the options of a round instead of the recipes")
    parser.add_argument(
        "--terms", nargs="*", choices=TITLES, help="these terms over the first recipe instead; none: all"
    )
    parser.add_argument("--alone", action="store_true", help="each of --terms without MFM only")
    parser.add_argument("--profile", action="store_true", help="a profiler table of the first recipe instead")
    parser.add_argument("--rows", type=int, default=25, help="lines of the profile")
    arguments = parser.parse_args()
    for name, value in SIZES[arguments.size].items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    return arguments


def hardware(device: str) -> str:
    """Processor, number of cores, and the GPU when one is used."""
    import torch

    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown processor")
    gpu = f", {torch.cuda.get_device_name()}" if device == "auto" and torch.cuda.is_available() else ""
    return f"{model}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}{gpu}, torch {torch.__version__}"


def main() -> int:
    """Command line."""
    arguments = parse()
    print(f"{time.strftime('%Y-%m-%d')}, {hardware(arguments.device)}, mfmd {version('mfmd')}")
    print(f"`python {' '.join(sys.argv)}`: {arguments.encoder} + {arguments.network} ({arguments.channels} channels), ")
    print(f"{arguments.classes} classes, crops of {arguments.crop}, batch {arguments.batch} + {arguments.batch}\n")
    workspace = Path(tempfile.mkdtemp(prefix="mfmd-step-time-"))
    tables = {"profile": print_profile, "options": options_table, "terms": terms_table}
    job = next(
        (table for name, table in tables.items() if getattr(arguments, name) not in (None, False)), recipes_table
    )
    try:
        job(arguments, workspace)
    finally:
        shutil.rmtree(workspace, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
