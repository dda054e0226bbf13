"""A round from spec to scores, and the record of each way it can end."""

import os
import time
import traceback
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from accelerate.state import PartialState

from adapters.checkpoints.bases import save_beside_base
from adapters.checkpoints.checkpoint import load_version
from adapters.errors import TrainingFailed
from adapters.networks.network import SegmentationNetwork
from adapters.rounds.inputs import RoundInputs, load_inputs, unseen_canary
from adapters.rounds.loop import RoundTraining
from adapters.rounds.progress import RoundProgress
from adapters.rounds.stop import RoundStopped, StopRequest
from adapters.scoring.candidate import score_round
from adapters.scoring.plugin_scores import load_scores
from adapters.tracing.spans import span
from configs.settings import Settings
from storage import durable
from storage.rounds.folder import RoundFolder
from storage.rounds.records import RoundScores


def train_and_score(spec_path: Path, stop: StopRequest) -> int:
    """Run the round of `spec_path` and write its `scores.json`, however it ends; return the exit status."""
    run = RoundRun(RoundFolder(spec_path.resolve().parent), stop)
    status = 0
    try:
        scores = run.run()
    except RoundStopped:
        scores = run.ended("stopped", "SIGTERM")
    except TrainingFailed as error:
        scores = run.ended("failed", str(error))
    except Exception as error:  # noqa: BLE001  the process ends here: recorded, shown, turned into an exit status
        traceback.print_exc()
        scores = run.ended("failed", f"{type(error).__name__}: {error}")
        status = 1
    run.finish(scores)
    return status


class RoundRun:
    """One round in one process of `accelerate launch`; only the first process writes and scores."""

    def __init__(self, folder: RoundFolder, stop: StopRequest) -> None:
        self._folder, self._stop = folder, stop
        self._started = time.monotonic()
        self._first = os.environ.get("RANK", "0") == "0"  # set by the launcher; known before Accelerate is set up
        self._progress: RoundProgress | None = None

    def run(self) -> RoundScores:
        """Load, train, save the candidate, score.

        Raises RoundStopped after SIGTERM, TrainingFailed at a non-finite or too high loss, AdapterError,
        StorageError.
        """
        with self._stop.interruptible(), span("mfmd.round.loading"):
            spec = self._folder.spec()
            settings = Settings.model_validate(spec.settings)
            load_scores(settings.round)  # one that cannot be imported fails before the training, not after it
            self._progress = RoundProgress(self._folder if self._first else None, settings.round)
            PartialState(cpu=settings.round.device == "cpu")  # every process of the round is there, or this waits
            self._progress.phase("loading")
            inputs = load_inputs(spec, settings)
        with inputs.buffer:
            with self._stop.interruptible():
                loop = RoundTraining(inputs, self._progress, self._folder)
            self._started -= loop.before.seconds
            with span("mfmd.round.training"):
                reason = loop.run(self._stop)
            # Not compiled from here on: other modes and sizes, and the versions it is compared with are not either.
            with self._stop.interruptible(), torch.compiler.set_stance("force_eager"), span("mfmd.round.scoring"):
                self._progress.phase("scoring")
                device = inputs.accelerator.device
                incumbent, _ = load_version(inputs.registry, inputs.spec.incumbent, device)
                candidate = loop.training.candidate()
                others = loop.training.other_candidates(candidate, incumbent)
                if not self._first:
                    return self.ended("completed", reason)
                return self._score(inputs, candidate, others, incumbent, loop.training.candidate_name, reason)

    def _score(
        self,
        inputs: RoundInputs,
        candidate: SegmentationNetwork,
        others: dict[str, SegmentationNetwork],
        incumbent: SegmentationNetwork,
        name: str,
        reason: str,
    ) -> RoundScores:
        """Save the candidates, then compare them with the versions on disk."""
        for path, network in [
            (self._folder.candidate, candidate),
            *((self._folder.other(n), m) for n, m in others.items()),
        ]:
            save_beside_base(network, path)
            durable.fsync_file(path)
        spec, device = inputs.spec, inputs.accelerator.device
        released = incumbent
        if spec.released != spec.incumbent:
            released, _ = load_version(inputs.registry, spec.released, device)
        networks = {"candidate": candidate, "incumbent": incumbent, "released": released}
        canary, problem = unseen_canary(inputs)
        labelled = None if inputs.settings.gate.policy == "source_free" else inputs.source
        scored = score_round(
            inputs.settings,
            spec,
            inputs.buffer,
            labelled,
            **networks,
            others=others,
            name=name,
            load=lambda version: load_version(inputs.registry, version, device)[0],
            canary=canary,
            on_scored=partial(self._progress.phase, "scoring") if self._progress is not None else lambda: None,
        )
        update = {**scored._asdict(), "name": name, "canary_problem": problem}
        return self.ended("completed", reason).model_copy(update=update)

    def ended(self, status: Literal["completed", "stopped", "failed"], reason: str) -> RoundScores:
        """Return how the round ended, without scores."""
        steps = self._progress.steps if self._progress else 0
        return RoundScores(status=status, reason=reason, steps=steps, seconds=time.monotonic() - self._started)

    def finish(self, scores: RoundScores) -> None:
        """Write `scores.json`, the last file of a round, and leave the group of processes."""
        if self._first:
            self._folder.write_scores(scores)
            if self._progress is not None:
                self._progress.phase("done")
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
