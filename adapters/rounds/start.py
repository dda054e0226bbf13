"""Start of a round: from its own last state, from the state of the round before it, or clean."""

import sys
from dataclasses import replace

from adapters.checkpoints.checkpoint import load_version
from adapters.networks.parallel import agree
from adapters.rounds.inputs import RoundInputs
from adapters.rounds.training import Training
from adapters.rounds.training_state import Counters, StateRefused, TrainingState
from storage.errors import UnknownRound
from storage.layout import StateLayout
from storage.rounds.folder import RoundFolder, RoundStore


def start_training(inputs: RoundInputs, folder: RoundFolder) -> tuple[Training, TrainingState, Counters]:
    """Return what to train with, the folder of its states, and its counters.

    A round whose folder holds a state resumes from it. A new one inherits from `spec.inherits`. If that is not
    possible, the reason is written to the round's log, and the round starts from the incumbent's weights. Raises
    AdapterError when the round's own state cannot be read.
    """
    training = Training(inputs)
    state = TrainingState(training, folder.states)
    latest = folder.states.latest()
    if latest is not None:
        counters = state.resume(latest)
        _say(inputs, f"resumes after step {counters.steps}")
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
        _say(inputs, f"starts clean: the state of round {inputs.spec.inherits} is not inherited: {why}")
        training = _clean(inputs)
        return training, TrainingState(training, folder.states), Counters()
    _say(inputs, f"inherits the training state of round {inputs.spec.inherits}")
    return training, state, Counters()


def _inherit(inputs: RoundInputs, state: TrainingState, number: int) -> None:
    path = RoundStore(StateLayout(inputs.settings.state).rounds).folder(number).states.latest()
    if path is None:
        raise StateRefused(f"round {number} has no training state")
    state.inherit(path)


def _clean(inputs: RoundInputs) -> Training:
    """Create everything again, because a half-loaded state is no state to start from."""
    inputs.accelerator.free_memory()  # forgets the optimizer
    student, _ = load_version(inputs.registry, inputs.spec.incumbent, inputs.accelerator.device)
    return Training(replace(inputs, student=student))


def _say(inputs: RoundInputs, what: str) -> None:
    """Write a line to the round's log."""
    if inputs.accelerator.is_main_process:
        print(f"round {inputs.spec.round} {what}", file=sys.stderr, flush=True)
