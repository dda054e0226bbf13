"""Rounds that were interrupted: the daemon was killed or stopped, or the machine went down, while one ran.

The next daemon, or the next `mfmd adapt`, resumes the round from its last training state. A round that ended by itself
has its scores and is not resumed.
"""

from pathlib import Path

from pydantic import ValidationError

from configs.settings import Settings
from storage.buffer.frames import FrameBuffer
from storage.errors import StorageError
from storage.registry.registry import CheckpointRegistry
from storage.rounds.folder import RoundFolder, RoundStore
from storage.rounds.records import AT_WORK

TRIES = 3
"""After this many crashes from the same training state a round is not restarted."""


def interrupted_round(store: RoundStore, buffer: FrameBuffer, registry: CheckpointRegistry) -> int | None:
    """Return the newest round if it was interrupted and can be resumed, with its frames leased; otherwise None."""
    folder = store.latest()
    if folder is None or obstacle(folder, buffer, registry):
        return None
    if folder.number not in buffer.leases():
        buffer.lease(folder.number)
    return folder.number


def store_root(folder: RoundFolder) -> Path:
    """Return the state directory of a round's folder."""
    return folder.path.resolve().parents[1]


def obstacle(folder: RoundFolder, buffer: FrameBuffer, registry: CheckpointRegistry) -> str:
    """Return why a round cannot be resumed; empty when it can."""
    try:
        record, scores, spec = folder.record(), folder.scores(), folder.spec()
        if record.stage not in AT_WORK or (scores is not None and scores.status != "stopped"):
            return "it has ended"
        settings = Settings.model_validate(spec.settings)
    except StorageError as error:
        return str(error)
    except ValidationError as error:
        return f"its settings are no longer valid: {error.errors()[0]['msg']}"
    if record.stopped:
        return "an operator ended it"
    step = folder.saved_step
    if not step:
        return "it had saved no training state"
    if record.crashes()[-TRIES:] == [step] * TRIES:
        return f"{TRIES} starts from step {step} made no progress"
    serving = registry.serving()
    if serving is None or serving.version != spec.incumbent:
        return f"version {spec.incumbent} no longer serves"
    if serving.since > spec.created:
        return f"version {spec.incumbent} was promoted again after the round began"
    if Path(settings.state).resolve() != store_root(folder):
        return f"it was started for the state directory {settings.state}"
    frames = {*spec.train_frames, *spec.holdout_frames}
    missing = len(frames) - len(buffer.records(ids=frames))
    return f"{missing} of its frames were evicted from the buffer" if missing else ""
