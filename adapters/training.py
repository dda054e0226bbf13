"""What a round trains with, in one process: student, recipe, optimizer, streams of crops; and one optimizer step.

The loop, budgets and files around it are `adapters.round_training`; benchmarks drive this class themselves.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from adapters.augment import normalise_unit, to_unit
from adapters.batch_norm import estimate_statistics
from adapters.class_balance import balanced_weights
from adapters.data import SourceBatch, SourceCrops, TargetBatch, TargetCrops, batches, crop_within
from adapters.draws import Draws
from adapters.hosts.build import build_host
from adapters.hosts.host import HostInputs, StepBatch, StepLosses
from adapters.network import SegmentationNetwork
from adapters.optim import build_optimizer, set_learning_rates
from adapters.parallel import average_buffers, average_gradients
from adapters.rebuilder import Rebuilder, build_rebuilder
from adapters.round_inputs import RoundInputs

STATISTICS_BATCHES = 16
"""Batches of each domain over which the candidate's BatchNorm statistics are estimated; 8 do about as well."""
RANK_STRIDE = 7919
"""Distance between the seeds of two processes' dropout; a prime, so that rounds and processes do not meet."""


class Training:
    """Everything that one optimizer step touches.

    The candidate is what the recipe calls finished (the teacher, where there is one), with BatchNorm statistics
    estimated over as many source as target crops. Averaged weights are steady whatever the learning rate, the student's
    are not; statistics of the target alone would cost the source 9 points of mIoU. Measured in
    docs/decisions/0004-teacher-and-candidate.md.
    """

    def __init__(self, inputs: RoundInputs) -> None:
        self._inputs, self._settings = inputs, inputs.settings
        self.accelerator = inputs.accelerator
        seed = self._settings.round.seed + inputs.spec.round
        torch.manual_seed(seed)  # the same Rebuilder in every process
        self.crop = crop_within(
            (self._settings.round.crop_height, self._settings.round.crop_width),
            (self._settings.buffer.height, self._settings.buffer.width),
        )
        self.student = inputs.student
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        self.host = build_host(self._host_inputs(Draws(seed, rank=rank, processes=processes)))
        self.student.train()
        self.optimizer = self._build_optimizer() if self.host.learns else None
        torch.manual_seed(seed + RANK_STRIDE * rank)  # from here on each process draws its own dropout
        self._target, self._source = self._streams((seed, rank))

    def _host_inputs(self, draws: Draws) -> HostInputs:
        inputs, settings = self._inputs, self._settings
        return HostInputs(
            student=self.student,
            rebuilder=self._build_rebuilder(),
            released=inputs.released,
            host=settings.host,
            mfm=settings.mfm,
            class_names=tuple(entry.name for entry in settings.classes),
            accelerator=self.accelerator,
            draws=draws,
            class_weights=self._class_weights(),
        )

    def _class_weights(self) -> Tensor | None:
        """Of `host.class_balance`; none when it is off, or without source: nobody knows the frequencies then."""
        source, exponent = self._inputs.source, self._settings.host.class_balance
        if source is None or exponent == 0.0:
            return None
        return balanced_weights(source.class_pixels[list(source.train)], exponent).to(self.accelerator.device)

    def _build_rebuilder(self) -> Rebuilder | None:
        mfm = self._settings.mfm
        if not mfm.enabled or self._settings.host.test_time:
            return None
        return build_rebuilder(self.student, self.crop, mfm)

    def _build_optimizer(self) -> torch.optim.Optimizer:
        optimizer: torch.optim.Optimizer = self.accelerator.prepare(
            build_optimizer(
                self.student,
                self._settings.round.optim,
                rebuilder=self.host.rebuilder,
                rebuilder_lr=self._settings.mfm.learning_rate,
            )
        )
        return optimizer

    def _streams(self, seed: tuple[int, int]) -> tuple[Iterator[TargetBatch], Iterator[SourceBatch] | None]:
        """The two streams of crops; images that fit are read into RAM now."""
        inputs, size, device = self._inputs, self._settings.round.batch_size, self.accelerator.device
        target = TargetCrops(inputs.buffer, inputs.frames, crop=self.crop, batch_size=size, seed=(*seed, 0))
        if inputs.source is None:
            return batches(target, device), None
        source = SourceCrops(inputs.source, inputs.source.train, crop=self.crop, batch_size=size, seed=(*seed, 1))
        return batches(target, device), batches(source, device)

    def step(self, factor: float) -> StepLosses:
        """One optimizer step, every learning rate times `factor`."""
        batch = StepBatch(next(self._target), next(self._source) if self._source is not None else None)
        if self.optimizer is None:
            return self.host.step(batch)
        set_learning_rates(self.optimizer, factor)
        self.optimizer.zero_grad(set_to_none=True)
        losses = self.host.step(batch)
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        average_gradients(self.accelerator, parameters)
        if self._settings.round.optim.clip_norm > 0.0:
            self.accelerator.clip_grad_norm_(parameters, self._settings.round.optim.clip_norm)
        self.optimizer.step()
        self.host.after_step(self.optimizer)
        return losses

    @property
    def images_per_step(self) -> int:
        """Source and target images of one step, in this process."""
        return self._settings.round.batch_size * (1 if self._source is None else 2)

    def candidate(self) -> SegmentationNetwork:
        """The finished network in eval mode, with statistics of source and target, averaged over the processes."""
        network = self.host.finished()
        if self.host.restate:
            estimate_statistics(network, self._statistics_images())
        average_buffers(self.accelerator, network)
        return network.eval()

    def _statistics_images(self) -> Iterator[Tensor]:
        """Normalised crops, [B, 3, H, W], in turn from the target and the source."""
        for _ in range(STATISTICS_BATCHES):
            yield self._network_input(next(self._target).images)
            if self._source is not None:
                yield self._network_input(next(self._source).images)

    def _network_input(self, frames: Tensor) -> Tensor:
        return normalise_unit(to_unit(frames.to(self.accelerator.device, non_blocking=True)))
