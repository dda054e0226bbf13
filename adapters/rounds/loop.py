"""The training part of a round: its start, the step loop, its budgets, the saved states, and the candidate.

A round starts from its own last state, from the state of the round before it, or clean.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from enum import IntEnum

from adapters.checkpoints.checkpoint import load_version
from adapters.errors import TrainingFailed
from adapters.networks.parallel import agree
from adapters.rounds.inputs import RoundInputs
from adapters.rounds.optim import learning_rate_factor
from adapters.rounds.progress import RoundProgress
from adapters.rounds.stop import StopRequest
from adapters.rounds.training import Training
from adapters.rounds.training_state import Counters, StateRefused, TrainingState
from storage.errors import UnknownRound
from storage.layout import StateLayout
from storage.rounds.folder import RoundFolder, RoundStore


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
        """Resume from the newest state in `folder` if there is one (`start_training`)."""
        self._settings, self._progress = inputs.settings.round, progress
        self._accelerator = inputs.accelerator
        self.training, self._state, self.before = start_training(inputs, folder)
        progress.steps = self._saved = self.before.steps
        self._opened = self._started = time.monotonic()
        self._failure = ""

    def run(self, stop: StopRequest) -> str:
        """Train until a budget is exhausted or `stop` is requested; return `step budget`, `time budget` or `SIGTERM`.

        The training state is saved on the way, and at the end unless the round failed. After a signal the round can
        resume later; after a budget the next round can inherit. Raises TrainingFailed at a loss that is not finite or
        above the limit.
        """
        self._progress.phase("training")
        self._started = time.monotonic()
        while True:
            end, time_used = self._agreed(self._end(stop))
            if end is not End.NOT_YET:
                break
            if self._due:
                self._save()
            self._step(time_used)
        with self._failure_noted():
            self._progress.flush()
        if self._agreed(End.FAILURE if self._failure else end)[0] is End.FAILURE:
            raise TrainingFailed(self._failure or "another process of the round met a non-finite or too high loss")
        self._save()
        return REASONS[end]

    def _agreed(self, end: End) -> tuple[End, float]:
        """Return why to end, and the used share of the time budget, equal in every process."""
        code, time_used = agree(self._accelerator, end, self._training_seconds / self._settings.max_seconds)
        return End(int(code)), time_used

    @property
    def _training_seconds(self) -> float:
        return self.before.training_seconds + time.monotonic() - self._started

    def _end(self, stop: StopRequest) -> End:
        if self._failure:
            return End.FAILURE
        if stop.requested:
            return End.SIGNAL
        if self._progress.steps >= self._settings.steps:
            return End.STEP_BUDGET
        return End.TIME_BUDGET if self._training_seconds >= self._settings.max_seconds else End.NOT_YET

    def _step(self, time_used: float) -> None:
        """Run one optimizer step with the used share `time_used` of the time budget."""
        settings = self._settings
        factor = learning_rate_factor(self._progress.steps, settings.steps, settings.optim, time_used)
        result = self.training.step(factor)
        with self._failure_noted():
            self._progress.add(result, images=self.training.images_per_step)
            if self._due:
                self._progress.flush()  # never save what went wrong

    @contextmanager
    def _failure_noted(self) -> Iterator[None]:
        """Keep a failure until the next agreement: processes end together."""
        try:
            yield
        except TrainingFailed as error:
            self._failure = str(error)

    @property
    def _due(self) -> bool:
        return self._settings.advanced.save_steps > 0 and self._progress.steps % self._settings.advanced.save_steps == 0

    def _save(self) -> None:
        """Save the state of this step, once, and only if there was a step."""
        steps, now = self._progress.steps, time.monotonic()
        if steps == self._saved:
            return
        seconds = self.before.seconds + now - self._opened
        self._state.save(Counters(steps, self._training_seconds, seconds))
        self._saved = steps


def start_training(inputs: RoundInputs, folder: RoundFolder) -> tuple[Training, TrainingState, Counters]:
    """Return what to train with, the folder of its states, and its counters.

    A round whose folder holds a state resumes from it. A new one inherits from `spec.inherits`. If that is not
    possible, the reason is written to the round's log, and the round starts from the weights of `spec.start`. Raises
    AdapterError when the round's own state cannot be read.
    """
    training = Training(inputs)
    state = TrainingState(training, folder.states)
    latest = folder.states.latest()
    if latest is not None:
        counters = state.resume(latest)
        _print_line(inputs, f"resumes after step {counters.steps}")
        return training, state, counters
    if inputs.spec.inherits is None or not training.recipe.learns:  # statistics are of one round's frames
        return training, state, Counters()
    refusal = ""
    try:
        _inherit(inputs, state, inputs.spec.inherits)
    except (StateRefused, UnknownRound) as error:
        refusal = str(error)
    (refused,) = agree(inputs.accelerator, float(bool(refusal)))  # one process alone would train other weights
    if refused:
        why = refusal or "another process of the round could not read it"
        _print_line(inputs, f"starts clean: the state of round {inputs.spec.inherits} is not inherited: {why}")
        training = _clean(inputs)
        return training, TrainingState(training, folder.states), Counters()
    _print_line(inputs, f"inherits the training state of round {inputs.spec.inherits}")
    return training, state, Counters()


def _inherit(inputs: RoundInputs, state: TrainingState, number: int) -> None:
    path = RoundStore(StateLayout(inputs.settings.state).rounds).folder(number).states.latest()
    if path is None:
        raise StateRefused(f"round {number} has no training state")
    state.inherit(path)


def _clean(inputs: RoundInputs) -> Training:
    """Create everything again, because a half-loaded state is no state to start from."""
    inputs.accelerator.free_memory()  # forgets the optimizer
    student, _ = load_version(inputs.registry, inputs.spec.start, inputs.accelerator.device)
    return Training(replace(inputs, student=student))


def _print_line(inputs: RoundInputs, what: str) -> None:
    """Write a line to the round's log."""
    if inputs.accelerator.is_main_process:
        print(f"round {inputs.spec.round} {what}", file=sys.stderr, flush=True)
