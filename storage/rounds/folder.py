"""Round folders: the files through which the daemon and the process of a round communicate."""

import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from storage import durable
from storage.durable.record import lines_of, parsed, read_record
from storage.errors import StorageError, UnknownRound
from storage.registry.files import listed, numbers
from storage.rounds.records import Progress, RoundScores, RoundSpec
from storage.rounds.training_states import TrainingStates
from storage.rounds.verdict import RoundRecord, Stage, Verdict

RECORD = "round.json"
TAIL_BYTES = 16 * 1024
"""What is read of a long `progress.jsonl` to find its last line (bytes)."""


class RoundFolder:
    """One round's folder.

    `spec.json` and `round.json` exist from the beginning. The round's process writes `scores.json` last.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.spec_path = path / "spec.json"
        """The argument of `adapters.round`."""
        self.candidate = path / "candidate.safetensors"
        """Weights of the recipe's own candidate, plain network."""
        self.log = path / "log"
        """Standard output and error of the round."""
        self.states = TrainingStates(path / "state")
        """Teacher, student, Rebuilder, optimizer, counters and random states, as the round saved them."""
        self._progress = path / "progress.jsonl"

    def other(self, name: str) -> Path:
        """Return the path of the weights of another candidate; they are removed when the round has ended."""
        return self.path / f"candidate-{name}.safetensors"

    def remove_others(self) -> None:
        """Remove the weights of all other candidates."""
        for path in self.path.glob("candidate-*.safetensors"):
            durable.remove_file(path)

    @property
    def number(self) -> int:
        """Number of the round."""
        return int(self.path.name)

    def spec(self) -> RoundSpec:
        """Return the request. Raises StorageError when it cannot be read."""
        spec = read_record(self.spec_path, RoundSpec)
        if spec is None:
            raise StorageError(f"{self.spec_path}: missing; the round folder was modified")
        return spec

    def record(self) -> RoundRecord:
        """Return where the round stands. Raises StorageError when `round.json` is damaged or missing."""
        path = self.path / RECORD
        record = read_record(path, RoundRecord)
        if record is None:
            raise StorageError(f"{path}: missing; the folder was modified or is older than mfmd 0.1.0: remove it")
        return record

    def enter(self, stage: Stage, **changes: Any) -> Stage:
        """Let the round enter a stage, durably; `changes` are other fields of its record. Returns the stage."""
        self.change(stage=stage, since=time.time(), **changes)
        return stage

    def change(self, **changes: Any) -> RoundRecord:
        """Change fields of the record, durably."""
        record = self.record().model_copy(update=changes)
        durable.write_record(self.path / RECORD, record)
        return record

    @property
    def saved_step(self) -> int:
        """Step of the newest training state; 0 without one."""
        return max(self.states.steps(), default=0)

    def append_progress(self, progress: Progress) -> None:
        """Add a line to `progress.jsonl`: flushed, not fsynced, because nothing is decided by it."""
        with self._progress.open("a", encoding="utf-8") as file:
            file.write(progress.model_dump_json() + "\n")

    def progress(self) -> list[Progress]:
        """Return all progress so far, oldest first; a line still being written is omitted."""
        return list(parsed(lines_of(self._progress), Progress, self._progress))

    def last_progress(self) -> Progress | None:
        """Return the newest progress, read from the end of the file; None before the first."""
        return next(parsed(reversed(lines_of(self._progress, TAIL_BYTES)), Progress, self._progress), None)

    def kept_ratio(self) -> float | None:
        """Return the share of pseudo-label pixels that the newest steps learnt from (0-1); None if not known."""
        lines = parsed(reversed(lines_of(self._progress, TAIL_BYTES)), Progress, self._progress)
        return next((line.kept_ratio for line in lines if line.kept_ratio is not None), None)

    def seconds_left(self) -> float | None:
        """Return the time that training still takes at its pace since the newest start; None while that is unknown."""
        lines = list(parsed(lines_of(self._progress, TAIL_BYTES), Progress, self._progress))
        starts = self.record().starts
        since = starts[-1].at if starts else 0.0
        seen = [line for line in lines if line.phase == "training" and line.at >= since]
        if not seen or lines[-1].phase != "training" or seen[-1].step <= seen[0].step:
            return None
        pace = (seen[-1].at - seen[0].at) / (seen[-1].step - seen[0].step)
        return pace * max(0, seen[-1].steps - seen[-1].step)

    def write_scores(self, scores: RoundScores) -> None:
        """Write `scores.json` durably."""
        durable.write_record(self.path / "scores.json", scores)

    def remove_scores(self) -> None:
        """Remove `scores.json` of a stopped round, because the round is resumed."""
        durable.remove_file(self.path / "scores.json")

    def scores(self) -> RoundScores | None:
        """Return how the process ended; None while it runs or when it was killed. Raises StorageError when damaged."""
        return read_record(self.path / "scores.json", RoundScores)

    def write_verdict(self, verdict: Verdict) -> None:
        """Write `verdict.json` durably."""
        durable.write_record(self.path / "verdict.json", verdict)

    def verdict(self) -> Verdict | None:
        """Return the gate's decision; None before it. Raises StorageError when damaged."""
        return read_record(self.path / "verdict.json", Verdict)


class RoundStore:
    """All round folders of a state directory; one writer, the daemon."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def next_number(self) -> int:
        """Return the number of the next round."""
        return max(self.numbers(), default=0) + 1

    def create(self, spec: RoundSpec) -> RoundFolder:
        """Create the folder of a round, in stage `planned`. Raises FileExistsError when the number is taken."""
        durable.make_directory(self.root)
        durable.remove_partials(self.root)
        final = self.root / f"{spec.round:06d}"
        temporary = self.root / f".{spec.round:06d}{durable.PARTIAL}"
        (temporary / "state").mkdir(parents=True)
        durable.write_record(temporary / "spec.json", spec)
        durable.write_record(temporary / RECORD, RoundRecord(round=spec.round, since=time.time()))
        durable.publish_directory(temporary, final)
        return RoundFolder(final)

    def numbers(self) -> list[int]:
        """Return the numbers of the rounds on disk, ascending."""
        return numbers(self.root)

    def folder(self, number: int) -> RoundFolder:
        """Return the folder of a round. Raises UnknownRound."""
        path = self.root / f"{number:06d}"
        if not path.is_dir():
            raise UnknownRound(f"no round {number} in {self.root}; rounds: {listed(self.numbers())}")
        return RoundFolder(path)

    def latest(self) -> RoundFolder | None:
        """Return the newest round's folder, or None."""
        known = self.numbers()
        return self.folder(known[-1]) if known else None

    def at(self, stage: Stage) -> list[RoundFolder]:
        """Return the rounds in one stage, newest first. A round with a damaged record is in none."""
        found = []
        for number in reversed(self.numbers()):
            with suppress(StorageError):
                if self.folder(number).record().stage == stage:
                    found.append(self.folder(number))
        return found

    def prune(self, keep: int, spare: int | None = None) -> list[int]:
        """Remove the oldest folders beyond `keep` (at least one stays, so numbers continue); return their numbers.

        Round `spare` stays in any case, because a later round inherits its training state; so do suggestions.
        """
        stay = {spare, *(folder.number for folder in self.at("suggested"))}
        removed = [number for number in self.numbers()[: -max(1, keep)] if number not in stay]
        for number in removed:
            durable.retire_directory(self.folder(number).path)
        return removed

    def remove_states(self, spare: int | None) -> None:
        """Remove the training states of all rounds but `spare`, and half-written or half-removed leftovers of kills."""
        for number in self.numbers():
            states = self.folder(number).states
            if number == spare:
                states.tidy()
            else:
                states.remove()
