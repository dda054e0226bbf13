"""Move the serving ref without a verdict: at a first release, for an operator, for a recall. One function each.

Beside these only `promotion.py` moves it, after the verdict on a round. No torch: the command line calls this.
"""

from daemon.gate.decide import GATE
from storage.gate.conditions import ConditionStore
from storage.layout import StateLayout
from storage.registry.manifest import Ref
from storage.registry.refs import check_reason
from storage.registry.registry import CheckpointRegistry
from storage.rounds.folder import RoundStore

NO_REASON = "no reason given"
"""Reason in the history of a move without a reason."""


def release(registry: CheckpointRegistry, version: int, by: str, reason: str) -> Ref | None:
    """Serve `version` if nothing serves yet; return None when something does.

    Raises UnknownVersion, CorruptCheckpoint, or StorageError when the serving ref is damaged or missing: planes still
    serve the version that it named.
    """
    if registry.serving() is not None:
        return None
    return registry.promote(version, by=by, reason=reason)


def roll_back(
    registry: CheckpointRegistry, *, to: int | None, by: str, reason: str, expected: int | None = None
) -> Ref:
    """Serve an earlier version again for an operator: `to`, or the one that served before. It does not need the gate.

    Raises like `CheckpointRegistry.roll_back`; then nothing moved.
    """
    return registry.roll_back(to=to, by=by, reason=reason.strip() or NO_REASON, expected=expected)


def promote(
    registry: CheckpointRegistry,
    version: int,
    *,
    by: str,
    reason: str,
    expected: int | None = None,
    round: int | None = None,
) -> Ref:
    """Serve any version for an operator, also one that was rolled back. It does not need the gate.

    `round`: the round whose suggestion an operator approved.
    Raises like `CheckpointRegistry.promote`, or InvalidReason; then nothing moved.
    """
    check_reason(reason)
    return registry.promote(version, by=by, reason=reason.strip() or NO_REASON, expected=expected, round=round)


def recall_version(registry: CheckpointRegistry, version: int, *, reason: str, expected: int) -> Ref:
    """Serve a known-good version again, for the gate (`recall.py`), only while `expected` serves.

    Raises like `CheckpointRegistry.promote`; then nothing moved.
    """
    return registry.promote(version, by=GATE, reason=reason, expected=expected, refuse_rolled_back=True, recalled=True)


def best_versions(layout: StateLayout) -> set[int]:
    """Return the versions that are best in a known condition: retention keeps them. Raises StorageError."""
    known = ConditionStore(layout.conditions).read()
    return {item.best for item in known.conditions if item.best is not None} if known else set()


def spared_versions(layout: StateLayout) -> set[int]:
    """Return the versions that retention keeps beside those of the registry's own rules. Raises StorageError."""
    verdicts = [folder.verdict() for folder in RoundStore(layout.rounds).at("suggested")]
    return best_versions(layout) | {it.version for it in verdicts if it is not None and it.version is not None}
