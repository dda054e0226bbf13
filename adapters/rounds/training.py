"""Parts of a round's training in one process: student, recipe, optimizer, streams of crops; and one optimizer step.

The loop, budgets and files around it are `adapters.rounds.loop`; benchmarks use this class directly.
"""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from adapters.augmentation.augment import normalise_unit, to_unit
from adapters.mfm.rebuilder import Rebuilder, build_rebuilder
from adapters.networks.batch_norm import estimate_statistics
from adapters.networks.network import SegmentationNetwork
from adapters.networks.options import apply_options, compile_networks, laid_out
from adapters.networks.parallel import average_buffers, average_gradients
from adapters.networks.step_rng import StepRng
from adapters.recipes.build import build_recipe
from adapters.recipes.recipe import RecipeInputs, StepBatch, StepLosses
from adapters.recipes.self_training import TermModule
from adapters.rounds.inputs import RoundInputs
from adapters.rounds.optim import build_optimizer, set_learning_rates
from adapters.sampling.crops import SourceCrops, TargetCrops, crop_within
from adapters.sampling.rare_class import RareClasses, balanced_weights
from adapters.sampling.streams import CropStream
from configs.recipe import RecipeBase, SelfTrainingSettings

STATISTICS_BATCHES = 16
"""Batches of each domain for the estimate of the candidate's BatchNorm statistics; 8 do about as well."""
RANK_STRIDE = 7919
"""Distance between the seeds of two processes' dropout; a prime, so that rounds and processes do not collide."""


def averaged(network: SegmentationNetwork, other: SegmentationNetwork, share: float) -> SegmentationNetwork:
    """Return a copy of `network` whose floating tensors are `share` (0-1) of its own and the rest of `other`'s.

    Integer buffers are its own. Averages of fine-tuned and first weights are often better than both (Wortsman et al.,
    CVPR 2022).
    """
    theirs, mixed = other.state_dict(), copy.deepcopy(network)
    mixed.load_state_dict(
        {
            name: torch.lerp(theirs[name], mine, share) if mine.is_floating_point() else mine
            for name, mine in network.state_dict().items()
        }
    )
    return mixed


class Training:
    """State of one optimizer step.

    The candidate is the recipe's finished network (the teacher, if there is one), with BatchNorm statistics estimated
    over as many source as target crops. Averaged weights are stable at any learning rate, the student's are not.
    Statistics of the target alone would cost the source 9 points of mIoU. Measured in
    docs/explanation/decisions/0004-teacher-and-candidate.md.
    """

    def __init__(self, inputs: RoundInputs) -> None:
        self._inputs, self._settings = inputs, inputs.settings
        self.accelerator = inputs.accelerator
        self._seed = self._settings.round.advanced.seed + inputs.spec.round
        # Test-time recipes train on the target alone; the gate scores their candidate on the source all the same.
        self._replayed = None if self._settings.recipe.test_time else inputs.source
        torch.manual_seed(self._seed)  # the same Rebuilder in every process
        self.crop = crop_within(
            (self._settings.round.crop_height, self._settings.round.crop_width),
            (self._settings.buffer.height, self._settings.buffer.width),
        )
        self.student = inputs.student
        apply_options(self.student, self._settings.round, self.accelerator)
        self.recipe = build_recipe(self._recipe_inputs())
        self.student.train()
        if self._settings.round.advanced.compile:
            compile_networks(self.recipe.modules().values())
        self.optimizer = self._build_optimizer() if self.recipe.learns else None
        self._seed_dropout()
        self._target, self._source = self._open_streams()
        self._streams: dict[str, CropStream[Any]] = {"target": self._target}
        if self._source is not None:
            self._streams["source"] = self._source

    def _recipe_inputs(self) -> RecipeInputs[RecipeBase]:
        inputs, settings, accelerator = self._inputs, self._settings, self.accelerator
        return RecipeInputs(
            student=self.student,
            rebuilder=self._build_rebuilder(),
            released=inputs.released,
            reference=inputs.reference,
            recipe=settings.recipe,
            mfm=settings.mfm,
            class_names=tuple(entry.name for entry in settings.classes),
            accelerator=accelerator,
            draws=StepRng(self._seed, rank=accelerator.process_index, processes=accelerator.num_processes),
            source_free=self._replayed is None,
            target_images=len(inputs.frames),
            class_weights=self._class_weights(),
        )

    def _class_weights(self) -> Tensor | None:
        """Return the weights of `recipe.class_balance`; None when it is off, or without source."""
        source, recipe = self._replayed, self._settings.recipe
        if source is None or not isinstance(recipe, SelfTrainingSettings) or recipe.class_balance == 0.0:
            return None
        pixels = source.class_pixels[list(source.train)]
        return balanced_weights(pixels, recipe.class_balance).to(self.accelerator.device)

    def _build_rebuilder(self) -> Rebuilder | None:
        mfm = self._settings.mfm
        if not mfm.enabled or self._settings.recipe.test_time:
            return None
        return build_rebuilder(self.student, self.student.view_size(self.crop), mfm)

    def _build_optimizer(self) -> torch.optim.Optimizer:
        settings, rebuilder = self._settings, self.recipe.rebuilder
        added = {name: module for name, module in self.recipe.modules().items() if isinstance(module, TermModule)}
        built = build_optimizer(
            self.student,
            settings.round.optim,
            rebuilder=rebuilder,
            rebuilder_lr=settings.mfm.learning_rate,
            added=added,
        )
        optimizer: torch.optim.Optimizer = self.accelerator.prepare(built)
        return optimizer

    def _seed_dropout(self) -> None:
        """Give each process its own dropout from here on."""
        torch.manual_seed(self._seed + RANK_STRIDE * self.accelerator.process_index)

    def _open_streams(self) -> tuple[TargetCrops, SourceCrops | None]:
        """Open the two streams of crops; images that fit are read into RAM now."""
        inputs, source, recipe = self._inputs, self._replayed, self._settings.recipe
        common: dict[str, Any] = {
            "crop": self.crop,
            "batch_size": self._settings.round.batch_size,
            "rank": self.accelerator.process_index,
            "processes": self.accelerator.num_processes,
            "pin": self.accelerator.device.type == "cuda",
        }
        target = TargetCrops(inputs.buffer, inputs.frames, recipe, seed=(self._seed, 0), **common)
        if source is None:
            return target, None
        rare = RareClasses.from_settings(source, recipe)
        return target, SourceCrops(source, source.train, seed=(self._seed, 1), rare=rare, **common)

    def step(self, factor: float) -> StepLosses:
        """Run one optimizer step, every learning rate times `factor`."""
        batches = [self._next_batch() for _ in range(self._settings.round.advanced.gradient_accumulation)]
        if self.optimizer is None:
            return self.recipe.step(*batches)
        set_learning_rates(self.optimizer, factor)
        self.optimizer.zero_grad(set_to_none=True)
        losses = self.recipe.step(*batches)
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        if any(one.grad is not None for one in parameters):  # none where MFM's own step pauses; fp16's scaler needs one
            average_gradients(self.accelerator, parameters)
            if self._settings.round.optim.advanced.clip_norm > 0.0:
                self.accelerator.clip_grad_norm_(parameters, self._settings.round.optim.advanced.clip_norm)
            self.optimizer.step()
        self.recipe.after_step(self.optimizer)
        return losses

    def _next_batch(self) -> StepBatch:
        target = next(self._target)
        target = target._replace(images=laid_out(target.images, self._settings.round))
        if self._source is None:
            return StepBatch(target)
        source = next(self._source)
        return StepBatch(target, source._replace(images=laid_out(source.images, self._settings.round)))

    def state_dict(self) -> dict[str, Any]:
        """Return counters and positions to continue from; weights and moments are not in it."""
        streams = {name: stream.state_dict() for name, stream in self._streams.items()}
        return {"recipe": self.recipe.state_dict(), "source": None, **streams}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        self.recipe.load_state_dict(state["recipe"])
        for name, stream in self._streams.items():
            stream.load_state_dict(state[name])

    def inherit_state_dict(self, state: dict[str, Any]) -> None:
        """Continue with the recipe's counters of another round; crops, random numbers, dropout are this one's."""
        self.recipe.load_state_dict({**state["recipe"], "draws": self.recipe.state_dict()["draws"]})
        self._seed_dropout()

    @property
    def images_per_step(self) -> int:
        """Source and target images of one step, in this process."""
        settings = self._settings.round
        return settings.batch_size * settings.advanced.gradient_accumulation * len(self._streams)

    def candidate(self) -> SegmentationNetwork:
        """Return the finished network in eval mode, with statistics of source and target, averaged over processes.

        It is a copy, and the next step reads the same crops again, so training can continue.
        """
        return self._completed(self.recipe.finished())

    @property
    def candidate_name(self) -> str:
        """Which network `candidate` returns."""
        return "teacher" if "teacher" in self.recipe.modules() else "student"

    def other_candidates(
        self, candidate: SegmentationNetwork, incumbent: SegmentationNetwork
    ) -> dict[str, SegmentationNetwork]:
        """Return further candidates by name, like `candidate`: the student, and averages with the incumbent.

        The averages have the shares of `round.advanced.average_ratios`. Call it in every process.
        """
        found = {}
        if self.candidate_name == "teacher":
            found["student"] = self._completed(copy.deepcopy(self.student))
        for share in self._settings.round.advanced.average_ratios:
            found[f"average_{round(100 * share)}"] = self._completed(averaged(candidate, incumbent, share))
        return found

    def _completed(self, network: SegmentationNetwork) -> SegmentationNetwork:
        if self.recipe.restate:
            estimate_statistics(network, self._statistics_images())
        average_buffers(self.accelerator, network)
        return network.eval()

    def _statistics_images(self) -> Iterator[Tensor]:
        """Yield normalised crops, [B, 3, H, W], alternately of target and source, whose positions stay."""
        streams = self._streams.values()
        before = [stream.state_dict() for stream in streams]
        for _ in range(STATISTICS_BATCHES):
            for stream in streams:
                frames = next(stream).images.to(self.accelerator.device, non_blocking=True)
                yield normalise_unit(to_unit(frames))
        for stream, position in zip(streams, before, strict=True):
            stream.load_state_dict(position)
