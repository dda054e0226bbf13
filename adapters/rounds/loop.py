"""The training part of a round: the step loop, its budgets, the saved states, and the candidate."""

import time
from enum import IntEnum

from adapters.errors import TrainingFailed
from adapters.networks.network import SegmentationNetwork
from adapters.networks.parallel import agree
from adapters.rounds.inputs import RoundInputs
from adapters.rounds.optim import learning_rate_factor
from adapters.rounds.progress import RoundProgress
from adapters.rounds.start import start_training
from adapters.rounds.stop import StopRequest
from adapters.rounds.training_state import Counters
from storage.rounds.folder import RoundFolder


class End(IntEnum):
    """Why the loop ends; with several processes the highest wins."""

    NOT_YET = 0
    STEP_BUDGET = 1
    TIME_BUDGET = 2
    SIGNAL = 3
    FAILURE = 4


REASONS = {End.STEP_BUDGET: "step budget", End.TIME_BUDGET: "time budget", End.SIGNAL: "SIGTERM"}


class RoundTraining:
    """Trains until a budget is exhausted, a signal arrives, or a loss explodes; equally in every process."""

    def __init__(self, inputs: RoundInputs, progress: RoundProgress, folder: RoundFolder) -> None:
        """Resume from the newest state in `folder` if there is one (`adapters.rounds.start`)."""
        self._settings, self._progress = inputs.settings.round, progress
        self._accelerator = inputs.accelerator
        self._training, self._state, self._before = start_training(inputs, folder)
        progress.steps = self._saved = self._before.steps
        self._opened = self._started = time.monotonic()

    @property
    def seconds_before(self) -> float:
        """Wall time of the round before this process, up to the state that it resumes from (seconds)."""
        return self._before.seconds

    def run(self, stop: StopRequest) -> str:
        """Train until a budget is exhausted or `stop` is requested; return `step budget`, `time budget` or `SIGTERM`.

        The training state is saved on the way, and at the end unless the round failed. After a signal the round can
        resume later; after a budget the next round can inherit. Raises TrainingFailed at a loss that is not finite or
        above the limit.
        """
        self._progress.phase("training")
        self._started, failure = time.monotonic(), ""
        while True:
            end, time_used = self._agreed(self._end(stop, failure))
            if end is not End.NOT_YET:
                break
            self._save_when_due()
            failure = self._step(time_used)
        failure = failure or self._flush()
        if self._agreed(End.FAILURE if failure else end)[0] is End.FAILURE:
            raise TrainingFailed(failure or "another process of the round met a non-finite or too high loss")
        self._save()
        return REASONS[end]

    def candidate(self) -> SegmentationNetwork:
        """Return the network to be judged, in eval mode."""
        return self._training.candidate()

    def _agreed(self, end: End) -> tuple[End, float]:
        """Return why to end, and the used share of the time budget, equal in every process."""
        code, time_used = agree(self._accelerator, end, self._training_seconds / self._settings.max_seconds)
        return End(int(code)), time_used

    @property
    def _training_seconds(self) -> float:
        return self._before.training_seconds + time.monotonic() - self._started

    def _end(self, stop: StopRequest, failure: str) -> End:
        if failure:
            return End.FAILURE
        if stop.requested:
            return End.SIGNAL
        if self._progress.steps >= self._settings.steps:
            return End.STEP_BUDGET
        return End.TIME_BUDGET if self._training_seconds >= self._settings.max_seconds else End.NOT_YET

    def _step(self, time_used: float) -> str:
        """Run one optimizer step with the used share `time_used` of the time budget; return a failure, or nothing."""
        settings = self._settings
        factor = learning_rate_factor(self._progress.steps, settings.steps, settings.optim, time_used)
        result = self._training.step(factor)
        try:
            self._progress.add(result, images=self._training.images_per_step)
        except TrainingFailed as error:
            return str(error)
        return self._flush() if self._due else ""  # never save what went wrong

    def _flush(self) -> str:
        try:
            self._progress.flush()
        except TrainingFailed as error:
            return str(error)
        return ""

    @property
    def _due(self) -> bool:
        return self._settings.advanced.save_steps > 0 and self._progress.steps % self._settings.advanced.save_steps == 0

    def _save_when_due(self) -> None:
        if self._due:
            self._save()

    def _save(self) -> None:
        """Save the state of this step, once, and only if there was a step."""
        steps, now = self._progress.steps, time.monotonic()
        if steps == self._saved:
            return
        seconds = self._before.seconds + now - self._opened
        self._state.save(Counters(steps, self._training_seconds, seconds))
        self._saved = steps
