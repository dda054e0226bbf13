"""The decision after the shadow, from tables: no files, no clock."""

import re
from dataclasses import replace
from typing import Any

import pytest

from daemon.gate.shadow import ShadowObservation, decide_shadow
from storage.registry.shadow_record import ShadowRecord
from storage.rounds.verdict import Check, ShadowTrial, Verdict

VOTE = Check(name="vote_flip", kind="vote", passed=True, value=0.1, limit=0.05, detail="won")
OFFLINE = Verdict(round=7, decision="accepted", reason="4 of 4 votes won", checks=[VOTE], at=10.0)
TRIAL = ShadowTrial(version=3, verdict=OFFLINE, images=100, seconds=600.0, agreement=0.5, failures=0.02, placed=True)


def record(images: int, agreement: float, failed: int = 0) -> ShadowRecord:
    return ShadowRecord(
        candidate=3,
        serving=2,
        images=images,
        pixels=1000 * images,
        same=round(1000 * images * agreement),
        failed=failed,
        since=21.0,
        updated=30.0,
    )


def sight(images: int | None, agreement: float = 0.9, *, failed: int = 0, **changes: Any) -> ShadowObservation:
    seen = record(images, agreement, failed) if images is not None else None
    return ShadowObservation(
        **{"incumbent": 2, "serving": 2, "shadow": 3, "record": seen, "waited": 60.0, **changes},
    )


@pytest.mark.parametrize(
    ("seen", "trial", "decision", "reason"),
    [
        # The evidence.
        (
            sight(100),
            {},
            "accepted",
            "4 of 4 votes won; in the shadow 90.0% of the pixels of 100 live images as served",
        ),
        (sight(250), {}, "accepted", "250 live images"),
        (sight(100, 0.5), {}, "accepted", "50.0% of the pixels .* 50.0% needed"),
        (
            sight(100, 0.499),
            {},
            "rejected",
            "veto: in the shadow 49.9% of the pixels of 100 live images .* 50.0% needed",
        ),
        (sight(100, 0.0), {"agreement": 0.0}, "accepted", "0.0% needed"),
        (sight(100, waited=9999.0), {}, "accepted", "as served"),
        # Errors: as soon as there are more than may be among as many images as are wanted.
        (sight(100, failed=2), {}, "accepted", "100 live images as served"),
        (sight(100, failed=3), {}, "rejected", "veto: .* an error on 3 of 103 live images, at most 2.0% of 103 may"),
        (sight(0, 0.0, failed=3), {}, "rejected", "an error on 3 of 3 live images, at most 2.0% of 100 may"),
        (sight(40, failed=3, waited=600.0), {}, "rejected", "an error on 3 of 43"),
        (sight(100, 0.1, failed=3), {}, "rejected", "an error on 3 of 103"),
        (sight(40, failed=2), {}, None, ""),
        (sight(98, failed=2), {}, None, ""),
        (sight(40, failed=2, waited=600.0), {}, "inconclusive", "40 of 100 .* as served, an error on 2 more$"),
        (sight(0, failed=2, waited=600.0), {}, "inconclusive", "0 of 100 live images compared, an error on 2 more$"),
        (sight(1000, failed=20), {}, "accepted", "1000 live images"),
        (sight(1000, failed=21), {}, "rejected", "an error on 21 of 1021 live images, at most 2.0% of 1021 may"),
        (sight(99, failed=1), {"failures": 0.0}, "rejected", "an error on 1 of 100 live images, at most 0.0%"),
        (sight(100, failed=900), {"failures": 1.0}, "accepted", "as served"),
        (sight(40, failed=3, shadow=None), {}, "inconclusive", "an operator ended its shadow: .* an error on 3 more"),
        (sight(40, failed=3, serving=1), {}, "inconclusive", "serving changed"),
        # Not enough of it yet, and not enough of it in time, whatever it says.
        (sight(None), {}, None, ""),
        (sight(99, 0.0), {}, None, ""),
        (sight(99, waited=599.9), {}, None, ""),
        (sight(99, waited=600.0), {}, "inconclusive", "too few images in 600 s of shadow: 99 of 100 .* 90.0%"),
        (sight(99, 0.0, waited=600.0), {}, "inconclusive", "99 of 100 live images compared, 0.0% of their pixels"),
        (sight(None, waited=600.0), {}, "inconclusive", "0 of 100 live images compared$"),
        # Evidence about another incumbent is none.
        (sight(100, serving=1), {}, "inconclusive", "serving changed during the shadow: version 1 serves"),
        (sight(100, serving=3), {}, "inconclusive", "version 3 serves, the shadow began beside version 2"),
        (sight(100, 0.0, serving=1), {}, "inconclusive", "serving changed"),
        (sight(None, serving=None), {}, "inconclusive", "no version serves"),
        # Somebody else's shadow is waited for, but not for ever; the gate's own is the operator's to end.
        (sight(None, shadow=9), {"placed": False}, None, ""),
        (sight(None, shadow=9, waited=600.0), {"placed": False}, "inconclusive", "version 9 was in the shadow instead"),
        (sight(None, shadow=None, waited=600.0), {"placed": False}, "inconclusive", "compared$"),
        (sight(40, waited=600.0), {"placed": False}, "inconclusive", "40 of 100 .* as served$"),
        (sight(100), {"placed": False}, "accepted", "as served"),
        (sight(40, shadow=None), {}, "inconclusive", "an operator ended its shadow: 40 of 100"),
        (sight(100, shadow=9), {}, "inconclusive", "an operator ended its shadow"),
        # Ended for good, or never possible.
        (sight(40, stopped=True), {}, "inconclusive", "stopped in the shadow: 40 of 100"),
        (sight(100, stopped=True), {}, "accepted", "as served"),
        (
            sight(None, obstacle="version 3: damaged"),
            {"placed": False},
            "inconclusive",
            "cannot run .*version 3: damaged",
        ),
    ],
)
def test_the_decision(seen: ShadowObservation, trial: dict[str, Any], decision: str | None, reason: str) -> None:
    verdict = decide_shadow(TRIAL.model_copy(update=trial), seen, at=99.0)
    if decision is None:
        assert verdict is None
        return
    assert verdict is not None
    assert verdict.decision == decision
    assert re.search(reason, verdict.reason), verdict.reason
    assert (verdict.round, verdict.at, verdict.version) == (7, 99.0, None)


IMAGES, AGREED = ("shadow_images", "evidence"), ("shadow_agreement", "veto")
SEEN = (*IMAGES, True, 120, 100)


@pytest.mark.parametrize(
    ("seen", "numbers"),
    [
        (sight(120, 0.8), [SEEN, ("shadow_failed", "veto", True, 0.0, 0.02), (*AGREED, True, 0.8, 0.5)]),
        (sight(120, 0.2), [SEEN, ("shadow_failed", "veto", True, 0.0, 0.02), (*AGREED, False, 0.2, 0.5)]),
        (sight(120, 0.8, failed=30), [SEEN, ("shadow_failed", "veto", False, 0.2, 0.02), (*AGREED, True, 0.8, 0.5)]),
        (sight(0, failed=4), [(*IMAGES, False, 0, 100), ("shadow_failed", "veto", False, 1.0, 0.02)]),
        (sight(12), [(*IMAGES, False, 12, 100), ("shadow_failed", "veto", True, 0.0, 0.02)]),
        (sight(None), [(*IMAGES, False, 0, 100)]),
    ],
)
def test_the_numbers_are_checks_behind_those_of_the_scores(
    seen: ShadowObservation, numbers: list[tuple[object, ...]]
) -> None:
    verdict = decide_shadow(TRIAL, replace(seen, waited=600.0), at=99.0)
    assert verdict is not None
    assert verdict.checks[0] == VOTE
    found = [(item.name, item.kind, item.passed, item.value, item.limit) for item in verdict.checks[1:]]
    assert found == numbers
    assert all(item.detail for item in verdict.checks)
