"""Canary labels: true mIoU on a few labelled target images decides before any vote (docs/explanation/gate.md).

With few images it only rejects a candidate that is clearly worse. Pure, numpy only.
"""

from configs.gate import GateSettings
from daemon.gate.bursts import Floats
from daemon.gate.shapes import sound_counts
from daemon.gate.votes import TOLERANCE, Vote, Weights, paired_bootstrap, resampled_miou
from storage.canary.records import LEAST_IMAGES
from storage.rounds.records import ModelScores
from storage.rounds.verdict import Check

CANARY = "canary"
"""Name of the check."""


def canary_vote(
    candidate: ModelScores, incumbent: ModelScores, settings: GateSettings, seed: int, classes: Weights = None
) -> Vote | None:
    """Return the evidence of canary images: a vote, or with fewer than `LEAST_IMAGES` a veto; None without images.

    The images are labelled by hand and chosen apart from each other, so single ones are drawn, not bursts.
    """
    if candidate.canary is None or incumbent.canary is None:
        return None
    images = len(candidate.canary.tp)
    before, after = (resampled_miou(model, classes) for model in (incumbent.canary, candidate.canary))

    def gain(weights: Floats) -> Floats:
        return after(weights) - before(weights)

    sure = paired_bootstrap(
        gain, images, confidence=settings.confidence, resamples=settings.advanced.bootstrap, seed=seed
    )
    decides = images >= LEAST_IMAGES
    won, lost = decides and sure.lower > TOLERANCE, sure.upper < -TOLERANCE
    detail = (
        f"mIoU on {images} canary images {sure.value:+.4f}, bounds {sure.lower:+.4f} to {sure.upper:+.4f} "
        f"at {settings.confidence:.0%} each side{'' if decides else f'; {LEAST_IMAGES - images} more would decide'}"
    )
    check = Check(
        name=CANARY,
        kind="vote" if decides else "veto",
        passed=won if decides else not lost,
        value=sure.value,
        limit=sure.lower if decides else sure.upper,
        detail=detail,
    )
    return Vote(CANARY, won, lost, check, sure)


def undecided(canary: Vote | None) -> str:
    """Return why canary labels do not decide about a candidate when only they may (`gate.policy: canary`)."""
    if canary is None:
        return (
            f"gate.policy is canary and no labelled canary image was scored; {LEAST_IMAGES} decide: add {LEAST_IMAGES}"
        )
    return f"gate.policy is canary and the labels do not decide: {canary.check.detail}"


def odd_canary(candidate: ModelScores, incumbent: ModelScores, problem: str, classes: int) -> str:
    """Return why canary images cannot be compared, in one sentence with the remedy; empty when they can."""
    if problem:
        return f"canary images could not be read, so no candidate is accepted: {problem}"
    both = [model.canary for model in (candidate, incumbent) if model.canary is not None]
    if not both:
        return ""
    images = len(both[0].tp)
    if len(both) < 2 or not images or not all(sound_counts(counts, images, classes) for counts in both):
        return f"scores.json: canary counts are not {[images, classes]} numbers for both models; run the round again"
    return ""
