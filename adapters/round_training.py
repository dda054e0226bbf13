"""The training part of a round: the step loop under Accelerate, its budgets, and the candidate it leaves."""

import time
from collections.abc import Iterator
from enum import IntEnum

import torch
from torch import Tensor

from adapters.augment import normalise_unit, to_unit
from adapters.batch_norm import estimate_statistics
from adapters.data import SourceCrops, TargetCrops, batches, crop_within
from adapters.errors import TrainingFailed
from adapters.hosts.dacs import Dacs, StepBatch
from adapters.network import SegmentationNetwork
from adapters.optim import build_optimizer, learning_rate_factor, set_learning_rates
from adapters.parallel import agree, average_buffers, average_gradients
from adapters.rebuilder import build_rebuilder
from adapters.round_inputs import RoundInputs
from adapters.round_progress import RoundProgress
from adapters.stop import StopRequest
from adapters.teacher import Teacher

STATISTICS_BATCHES = 16
"""Batches of each domain over which the candidate's BatchNorm statistics are estimated; 8 do about as well."""
RANK_STRIDE = 7919
"""Distance between the seeds of two processes; a prime, so that rounds and processes do not meet."""


class End(IntEnum):
    """Why the loop ends; of several processes the highest wins."""

    NOT_YET = 0
    STEP_BUDGET = 1
    TIME_BUDGET = 2
    SIGNAL = 3
    FAILURE = 4


REASONS = {End.STEP_BUDGET: "step budget", End.TIME_BUDGET: "time budget", End.SIGNAL: "SIGTERM"}


class RoundTraining:
    """Student, teacher, Rebuilder and optimizer of one round, in one of its processes.

    The candidate is the teacher, with BatchNorm statistics estimated over as many source as target crops. Averaged
    weights are steady whatever the learning rate, the student's are not; statistics of the target alone would cost
    the source 9 points of mIoU. Measured in docs/decisions/0004-teacher-and-candidate.md.
    """

    def __init__(self, inputs: RoundInputs, progress: RoundProgress) -> None:
        self._inputs, self._progress = inputs, progress
        self._settings, self._accelerator = inputs.settings.round, inputs.accelerator
        seed = self._settings.seed + inputs.spec.round
        torch.manual_seed(seed)  # the same Rebuilder in every process
        crop = crop_within(
            (self._settings.crop_height, self._settings.crop_width),
            (inputs.settings.buffer.height, inputs.settings.buffer.width),
        )
        self._student = inputs.student
        self._rebuilder = build_rebuilder(self._student, crop, inputs.settings.mfm) if self._mfm_enabled else None
        teacher = Teacher(self._student, inputs.settings.host.ema_decay)
        self._student.train()
        self._optimizer = self._accelerator.prepare(self._build_optimizer())
        rank = self._accelerator.process_index
        torch.manual_seed(seed + RANK_STRIDE * rank)  # from here on each process draws its own masks and dropout
        self._host = self._build_host(teacher, torch.Generator().manual_seed(seed + RANK_STRIDE * rank))
        self._read_crops(crop, (seed, rank))

    @property
    def _mfm_enabled(self) -> bool:
        return self._inputs.settings.mfm.enabled

    def _build_optimizer(self) -> torch.optim.Optimizer:
        rate = self._inputs.settings.mfm.learning_rate
        optimizer = build_optimizer(self._student, self._settings.optim, rebuilder=self._rebuilder, rebuilder_lr=rate)
        self._parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        return optimizer

    def _build_host(self, teacher: Teacher, generator: torch.Generator) -> Dacs:
        settings = self._inputs.settings
        return Dacs(
            self._student,
            teacher,
            self._rebuilder,
            settings.host,
            settings.mfm,
            accelerator=self._accelerator,
            generator=generator,
        )

    def _read_crops(self, crop: tuple[int, int], seed: tuple[int, int]) -> None:
        """Open the two streams of crops; images that fit are read into RAM now."""
        inputs, size, device = self._inputs, self._settings.batch_size, self._accelerator.device
        target = TargetCrops(inputs.buffer, inputs.frames, crop=crop, batch_size=size, seed=(*seed, 0))
        self._target = batches(target, device)
        self._source = None
        if inputs.source is not None:
            source = SourceCrops(inputs.source, inputs.source.train, crop=crop, batch_size=size, seed=(*seed, 1))
            self._source = batches(source, device)

    def run(self, stop: StopRequest) -> str:
        """Train until a budget is reached or `stop` is requested; returns `step budget`, `time budget` or `SIGTERM`.

        Raises TrainingFailed at a loss that is not finite.
        """
        self._progress.phase("training")
        started, failure = time.monotonic(), ""
        while True:
            time_used = (time.monotonic() - started) / self._settings.max_seconds
            code, time_used = agree(self._accelerator, self._end(stop, failure, time_used), time_used)
            if (end := End(int(code))) is not End.NOT_YET:
                break
            try:
                self._step(time_used)
            except TrainingFailed as error:
                failure = str(error)
        if end is End.FAILURE:
            raise TrainingFailed(failure or "another process of the round met a loss that is not finite")
        self._progress.flush()
        return REASONS[end]

    def _end(self, stop: StopRequest, failure: str, time_used: float) -> End:
        if failure:
            return End.FAILURE
        if stop.requested:
            return End.SIGNAL
        if self._progress.steps >= self._settings.steps:
            return End.STEP_BUDGET
        return End.TIME_BUDGET if time_used >= 1.0 else End.NOT_YET

    def _step(self, time_used: float) -> None:
        """One optimizer step, `time_used` being the share of the time budget that is gone.

        Raises TrainingFailed when the losses since the last report were not finite.
        """
        settings = self._settings
        factor = learning_rate_factor(self._progress.steps, settings.steps, settings.optim, time_used)
        set_learning_rates(self._optimizer, factor)
        batch = StepBatch(next(self._target), next(self._source) if self._source is not None else None)
        self._optimizer.zero_grad(set_to_none=True)
        result = self._host.step(batch)
        average_gradients(self._accelerator, self._parameters)
        if settings.optim.clip_norm > 0.0:
            self._accelerator.clip_grad_norm_(self._parameters, settings.optim.clip_norm)
        self._optimizer.step()
        self._progress.add(result, images=settings.batch_size * (1 if batch.source is None else 2))

    def candidate(self) -> SegmentationNetwork:
        """The teacher in eval mode, with statistics of source and target, averaged over the processes."""
        teacher = self._host.finished_teacher()
        estimate_statistics(teacher, self._statistics_images())
        average_buffers(self._accelerator, teacher)
        return teacher.eval()

    def _statistics_images(self) -> Iterator[Tensor]:
        """Normalised crops, [B, 3, H, W], in turn from the target and the source."""
        for _ in range(STATISTICS_BATCHES):
            yield self._network_input(next(self._target).images)
            if self._source is not None:
                yield self._network_input(next(self._source).images)

    def _network_input(self, frames: Tensor) -> Tensor:
        return normalise_unit(to_unit(frames.to(self._accelerator.device, non_blocking=True)))
