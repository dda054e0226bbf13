"""The training part of a round: the step loop, its budgets, and the candidate it leaves."""

import time
from enum import IntEnum

from adapters.errors import TrainingFailed
from adapters.network import SegmentationNetwork
from adapters.optim import learning_rate_factor
from adapters.parallel import agree
from adapters.round_inputs import RoundInputs
from adapters.round_progress import RoundProgress
from adapters.stop import StopRequest
from adapters.training import Training


class End(IntEnum):
    """Why the loop ends; of several processes the highest wins."""

    NOT_YET = 0
    STEP_BUDGET = 1
    TIME_BUDGET = 2
    SIGNAL = 3
    FAILURE = 4


REASONS = {End.STEP_BUDGET: "step budget", End.TIME_BUDGET: "time budget", End.SIGNAL: "SIGTERM"}


class RoundTraining:
    """Trains until a budget is used up, a signal comes, or a loss is not finite; the same in every process."""

    def __init__(self, inputs: RoundInputs, progress: RoundProgress) -> None:
        self._settings, self._progress = inputs.settings.round, progress
        self._training = Training(inputs)
        self._accelerator = inputs.accelerator

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
        result = self._training.step(factor)
        self._progress.add(result, images=self._training.images_per_step)

    def candidate(self) -> SegmentationNetwork:
        """The network to be judged, in eval mode."""
        return self._training.candidate()
