"""The gate's second look: may a candidate serve that ran in the shadow? Pure, over records (docs/explanation/gate.md).

Agreement with what serves is no evidence of being better, the scores are that. It shows damage that hold-out frames
did not: live images, real sizes, the plane's own precision.
"""

from dataclasses import dataclass
from typing import Literal

from storage.registry.shadow_record import ShadowRecord
from storage.rounds.records import Check, ShadowTrial, Verdict


@dataclass(frozen=True, slots=True)
class ShadowSight:
    """What can be seen of a candidate's time in the shadow at one moment."""

    incumbent: int
    """The version that the candidate was compared with when it was scored."""
    serving: int | None
    """The version that serves."""
    shadow: int | None
    """The version in the shadow, whoever put it there."""
    record: ShadowRecord | None
    """The candidate beside the incumbent, all planes summed up."""
    waited: float
    """Seconds waited so far."""
    stopped: bool = False
    """Whether an operator ends the wait for good."""
    obstacle: str = ""
    """Why the candidate cannot be put into the shadow at all; empty when it can."""


def decide_shadow(trial: ShadowTrial, sight: ShadowSight, *, at: float) -> Verdict | None:
    """The verdict on a candidate that was accepted on its scores; none: wait on.

    accepted: enough images, enough agreement. rejected: enough images, too little agreement, or errors on more images
    than may fail, however few were seen. inconclusive: too few images in time, or what was seen is about another
    incumbent, or somebody ended it. `at` is the verdict's time (Unix, seconds).
    """
    end = _end(trial, sight)
    if end is None:
        return None
    decision, reason, checks = end[0], end[1], [*trial.verdict.checks, *_checks(trial, sight.record)]
    return trial.verdict.model_copy(update={"decision": decision, "reason": reason, "checks": checks, "at": at})


Decision = Literal["accepted", "rejected", "inconclusive"]


def _end(trial: ShadowTrial, sight: ShadowSight) -> tuple[Decision, str] | None:
    """Decision and reason. First what makes all evidence void, then the evidence, then what ends the wait for it.

    Who takes the candidate out by hand has decided, also in the moment in which the last image is compared.
    """
    if sight.serving != sight.incumbent:
        now = f"version {sight.serving} serves" if sight.serving is not None else "no version serves"
        return "inconclusive", f"serving changed during the shadow: {now}, it ran beside version {sight.incumbent}"
    if sight.obstacle:
        return "inconclusive", f"it cannot run in the shadow: {sight.obstacle}"
    record = sight.record
    if trial.placed and sight.shadow != trial.version:
        return "inconclusive", f"somebody ended its shadow: {_compared(trial, record)}"
    if record is not None and _fails(trial, record):
        return "rejected", f"veto: {_failed(trial, record)}"
    if record is not None and record.images >= trial.images:
        if record.agreement < trial.agreement:
            return "rejected", f"veto: {_agreed(record, trial)}"
        return "accepted", f"{trial.verdict.reason}; {_agreed(record, trial)}"
    if sight.stopped:
        return "inconclusive", f"stopped in the shadow: {_compared(trial, record)}"
    if sight.waited < trial.seconds:
        return None
    seen = f"{_compared(trial, record)}{_held(trial, sight)}"
    return "inconclusive", f"too little seen in {trial.seconds:.0f} s of shadow: {seen}"


def _held(trial: ShadowTrial, sight: ShadowSight) -> str:
    if trial.placed or sight.shadow in (None, trial.version):
        return ""
    return f"; version {sight.shadow} held its place, `mfmd checkpoints unshadow` frees it"


def _checks(trial: ShadowTrial, record: ShadowRecord | None) -> list[Check]:
    """The numbers; agreement is judged only on enough images, errors on as many as there are."""
    images = record.images if record else 0
    checks = [
        Check(
            name="shadow_images",
            kind="evidence",
            passed=images >= trial.images,
            value=images,
            limit=trial.images,
            detail=_compared(trial, record),
        )
    ]
    if record is not None:
        checks.append(
            Check(
                name="shadow_failed",
                kind="veto",
                passed=not _fails(trial, record),
                value=record.failed / record.tried if record.tried else 0.0,
                limit=trial.failures,
                detail=_failed(trial, record),
            )
        )
    if record is not None and images >= trial.images:
        checks.append(
            Check(
                name="shadow_agreement",
                kind="veto",
                passed=record.agreement >= trial.agreement,
                value=record.agreement,
                limit=trial.agreement,
                detail=_agreed(record, trial),
            )
        )
    return checks


def _fails(trial: ShadowTrial, record: ShadowRecord) -> bool:
    """Whether more images failed than may of as many as are wanted: those to come cannot make up for them."""
    return record.failed / max(trial.images, record.tried) > trial.failures


def _compared(trial: ShadowTrial, record: ShadowRecord | None) -> str:
    compared = f"{record.images if record else 0} of {trial.images} live images compared"
    if record is not None and record.images:
        compared += f", {record.agreement:.1%} of their pixels as served"
    if record is not None and record.failed:
        compared += f", an error on {record.failed} more"
    return compared


def _failed(trial: ShadowTrial, record: ShadowRecord) -> str:
    most = f"at most {trial.failures:.1%} of {max(trial.images, record.tried)} may"
    return f"in the shadow the candidate raised an error on {record.failed} of {record.tried} live images, {most}"


def _agreed(record: ShadowRecord, trial: ShadowTrial) -> str:
    return (
        f"in the shadow {record.agreement:.1%} of the pixels of {record.images} live images as served, "
        f"{trial.agreement:.1%} needed"
    )
