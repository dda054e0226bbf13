"""Where the CPU time of a DACS step with MFM goes: every pass cut into encoder, Rebuilder, decoder and loss.

    python benchmarks/step_parts.py
    python benchmarks/step_parts.py --size b0 --steps 4

The passes are those of the recipe. Between their parts the graph is cut, so that each gradient is timed by itself.
Images, networks and settings are those of `step_time.py`. One thread, milliseconds of the process's CPU time, the
median of the steps. Start it with the environment of a round (`daemon.rounds.environment.MEMORY_KEPT`).
"""

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from step_cases import Case, Runner, draw_state, settings_of
from step_time import SIZES, common_sections, hardware
from torch import Tensor

from adapters.augmentation.augment import normalise_unit
from adapters.mfm.branch import untouched_running_statistics
from adapters.mfm.feature_mask import draw_keep
from adapters.mfm.rebuilder import Rebuilder
from adapters.networks.training_pass import encode, weighted_cross_entropy
from adapters.recipes.recipe import RecipeInputs
from adapters.recipes.self_training import SelfTraining
from adapters.recipes.terms import mix_term
from configs.recipe import SelfTrainingSettings

MFM = "mfm "
"""Beginning of the names of the parts that MFM adds."""


class Clock:
    """Milliseconds of CPU time by part, in the order in which parts come first."""

    def __init__(self) -> None:
        self.spent: dict[str, list[float]] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what runs inside as `name`."""
        started = time.process_time()
        yield
        self.spent.setdefault(name, []).append(1000.0 * (time.process_time() - started))

    def medians(self) -> dict[str, float]:
        """Return the median of each part over the steps."""
        return {name: statistics.median(values) for name, values in self.spent.items()}


def leaves(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return `tensors` cut from their graphs; each collects its gradient."""
    return tuple(tensor.detach().requires_grad_() for tensor in tensors)


def back(clock: Clock, name: str, outputs: Sequence[Tensor], cut: Sequence[Tensor]) -> None:
    """Propagate the gradients that the leaves `cut` of `outputs` have collected."""
    with clock.part(f"{name}, gradient"):
        torch.autograd.backward(list(outputs), [leaf.grad for leaf in cut])


def cut_pass(
    clock: Clock,
    name: str,
    inputs: RecipeInputs[SelfTrainingSettings],
    images: Tensor,
    labels: Tensor,
    weight: Tensor | None,
    rebuilder: Rebuilder | None = None,
) -> None:
    """Run a pass of the student over `images` [B, 3, H, W] in [0, 1], with all gradients, part by part."""
    student, size = inputs.student, (images.shape[-2], images.shape[-1])
    with clock.part(f"{name}encoder"):
        maps = encode(student, normalise_unit(images), inputs.draws).features[0]
    cut = read = leaves(maps)
    rebuilt: tuple[Tensor, ...] = ()
    if rebuilder is not None:
        with clock.part(f"{name}Rebuilder"):
            settings = rebuilder.settings
            rebuilt = rebuilder(cut, draw_keep(cut[-1], settings.ablation.grid, settings.mask_ratio, inputs.draws))
        read = leaves(rebuilt)
    with clock.part(f"{name}decoder"), untouched_running_statistics(student.decoder):
        logits = student.decoder(read).contiguous()
    (small,) = leaves([logits])
    with clock.part(f"{name}loss at full size"):
        resized = F.interpolate(small, size=size, mode="bilinear", align_corners=False)
        loss = weighted_cross_entropy(resized, labels, weight)
    with clock.part(f"{name}loss at full size, gradient"):
        loss.backward()
    back(clock, f"{name}decoder", [logits], [small])
    if rebuilt:
        back(clock, f"{name}Rebuilder", rebuilt, read)
    back(clock, f"{name}encoder", maps, cut)


def cut_step(clock: Clock, runner: Runner) -> None:
    """Do an optimizer step of DACS with MFM."""
    training, recipe = runner._training, runner._training.recipe
    assert isinstance(recipe, SelfTraining) and recipe.rebuilder is not None and training.optimizer is not None
    with clock.part("crops"):
        batch = training._next_batch()
    with clock.part("teacher, update"):
        recipe._prepare()
    recipe.steps += 1
    training.optimizer.zero_grad(set_to_none=True)
    with clock.part("teacher, pseudo-labels"):
        images = recipe._images(batch)
    assert images.source is not None and images.source_labels is not None
    cut_pass(clock, "source ", recipe.inputs, images.source, images.source_labels, None)
    with clock.part("mix, whole"):
        loss = mix_term(recipe.inputs, images)["mix"]
    with clock.part("mix, whole, gradient"):
        loss.backward()
    cut_pass(clock, MFM, recipe.inputs, images.target, images.pseudo.labels, images.pseudo.weight, recipe.rebuilder)
    groups = training.optimizer.param_groups
    for name, mine in (("optimizer, network", False), (f"{MFM}optimizer, Rebuilder", True)):
        training.optimizer.param_groups = [group for group in groups if ("rebuilder" in group["name"]) == mine]
        with clock.part(name):
            training.optimizer.step()
    training.optimizer.param_groups = groups


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--steps", type=int, default=20)
    arguments = parser.parse_args()
    options = argparse.Namespace(**SIZES[arguments.size], device="cpu", threads=1, precision="no")
    torch.set_num_threads(1)
    workspace, clock = Path(tempfile.mkdtemp(prefix="mfmd-step-parts-")), Clock()
    case = Case("dacs+mfm", {"recipe": {"name": "dacs"}, "mfm": {"enabled": True}})
    try:
        settings = settings_of(workspace, common_sections(options), case, options.classes)
        draw_state(settings)
        runner = Runner(settings, case)
        for _ in range(arguments.steps):
            cut_step(clock, runner)
    finally:
        shutil.rmtree(workspace, ignore_errors=True)
    print(f"{time.strftime('%Y-%m-%d')}, {hardware('cpu')}\n`python {' '.join(sys.argv)}`\n")
    print("| part | CPU time, ms |\n|---|---|")
    medians = clock.medians()
    for name, spent in medians.items():
        print(f"| {name} | {spent:.1f} |")
    added = sum(spent for name, spent in medians.items() if name.startswith(MFM))
    bare = sum(medians.values()) - added
    rebuilding = sum(spent for name, spent in medians.items() if name.startswith(MFM) and "Rebuilder" in name)
    print(f"| **DACS** | {bare:.1f} |\n| **MFM** | {added:.1f} |\n")
    free = 1 + (added - rebuilding) / bare
    print(f"DACS+MFM / DACS {1 + added / bare:.2f}; with a Rebuilder that costs nothing {free:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
