"""Follow a round from outside: its progress while it runs, its verdict when it is over."""

from collections.abc import Callable
from dataclasses import dataclass

from daemon.demo.driving import DrivenDaemon
from storage.rounds.folder import RoundFolder
from storage.rounds.records import Verdict

ShowRound = Callable[[float, float | None, str], None]
"""Hears steps done, steps in all, and facts about a round."""


@dataclass(frozen=True, slots=True)
class RoundOver:
    """How a round ended."""

    verdict: Verdict
    """The gate's verdict."""
    seconds: float
    """Wall time of the round itself (seconds)."""

    @property
    def version(self) -> int | None:
        """The version that the candidate became; none when it was not accepted."""
        return self.verdict.version

    @property
    def sentence(self) -> str:
        """Verdict in one line."""
        votes = [check for check in self.verdict.checks if check.kind == "vote"]
        won = f", {sum(vote.passed for vote in votes)} of {len(votes)} votes" if votes else ""
        new = f" as version {self.version}" if self.version is not None else ""
        return f"{self.verdict.decision}{new}{won}, {self.seconds:.0f} s"


def follow_round(driven: DrivenDaemon, number: int, seconds: float, show: ShowRound) -> RoundOver:
    """Wait for the end of round `number` and show how it goes.

    Raises DriveTimeout after `seconds`, DriveFailed when the daemon ended.
    """

    def look() -> RoundOver | None:
        folder = driven.round(number)
        if folder is None:
            return None
        _show(folder, show)
        verdict = folder.verdict()
        if verdict is None or (verdict.decision == "accepted" and verdict.version is None):
            return None  # an accepted verdict gets its version once the candidate is in the registry and serves
        scores = folder.scores()
        return RoundOver(verdict, scores.seconds if scores else verdict.at - folder.spec().created)

    return driven.wait_for(look, f"the verdict of round {number}", seconds)


def _show(folder: RoundFolder, show: ShowRound) -> None:
    progress = folder.last_progress()
    if progress is None:
        show(0, None, "accelerate launch")
        return
    losses = ", ".join(f"{name} {value:.2f}" for name, value in progress.losses.items())
    kept = "" if progress.kept_ratio is None else f", {100 * progress.kept_ratio:.0f} % of pseudo-labels kept"
    facts = f"{progress.phase}: losses {losses}{kept}" if losses else progress.phase
    show(progress.step, max(1, progress.steps), facts)
