"""A suggestion: an accepted candidate that waits for a person (`gate.policy: manual`). The rule is pure, over records.

One waits at a time: a newer one replaces it. It is void when another version serves than the one it was compared with.
"""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from configs.settings import Settings
from daemon.gate.decide import GATE
from daemon.gate.moves import NO_REASON, promote
from daemon.gate.promotion import end_round, into_manifest
from storage.errors import CorruptCheckpoint, NotSuggested, ServingChanged, StorageError, UnknownVersion
from storage.layout import StateLayout
from storage.registry.refs import check_reason
from storage.registry.registry import CheckpointRegistry
from storage.rounds.folder import RoundFolder, RoundStore
from storage.rounds.records import RoundSpec
from storage.rounds.verdict import Answer, Stage, Verdict

_ANSWERING = threading.Lock()
"""Held while a suggestion is decided: by the daemon's thread for rounds, and by answers through the control API."""


@dataclass(frozen=True, slots=True)
class SuggestionFacts:
    """Facts about a suggestion at one moment."""

    incumbent: int
    """The version that the candidate was compared with."""
    serving: int | None
    versions: Sequence[int]
    """Versions on disk."""
    served: bool
    """Whether its version serves, or served since."""


def settled(verdict: Verdict, answer: Answer | None, seen: SuggestionFacts, *, at: float) -> Verdict | None:
    """Return the final verdict on a suggestion; None while it waits. An accepted one is to serve, or did.

    What a person decided comes first, also when a kill came before the end. `at` is the verdict's time (Unix, seconds).
    """
    version = verdict.version
    if verdict.decision != "accepted":  # decided before a kill
        return verdict
    if seen.served:
        by_hand = f"{verdict.reason}; an operator served it by hand"
        return verdict.model_copy(update={"answer": answer} if answer else {"reason": by_hand})
    if answer is not None and not answer.approved:
        decision = "inconclusive" if answer.by == GATE else "rejected"
        reason = answer.reason if answer.by == GATE else f"rejected by {answer.by}: {answer.reason}"
        return verdict.model_copy(update={"decision": decision, "reason": reason, "answer": answer, "at": answer.at})
    obstacle = _obstacle(version, seen)
    if obstacle:
        update = {"decision": "inconclusive", "reason": obstacle, "answer": answer, "at": at}
        return verdict.model_copy(update=update)
    if answer is None:
        return None
    reason = f"approved by {answer.by}: {answer.reason}; {verdict.reason}"
    return verdict.model_copy(update={"reason": reason, "answer": answer})


def _obstacle(version: int | None, seen: SuggestionFacts) -> str:
    if version not in seen.versions:
        return f"version {version} was removed while it waited for a decision"
    if seen.serving == seen.incumbent:
        return ""
    now = f"version {seen.serving} serves" if seen.serving is not None else "no version serves"
    return f"serving changed while it waited for a decision: {now}, it was compared with version {seen.incumbent}"


def waiting_version(store: RoundStore) -> int | None:
    """Return the version that waits for a decision; None when none does. Raises StorageError when damaged."""
    return next((suggested_version(folder) for folder in store.at("suggested")), None)


def suggested_version(folder: RoundFolder) -> int:
    """Return the version of a suggestion. Raises StorageError when the folder was modified."""
    verdict = folder.verdict()
    if verdict is None or verdict.version is None:
        raise StorageError(f"{folder.path / 'verdict.json'}: names no version; the round folder was modified")
    return verdict.version


def suggestion_of(store: RoundStore, version: int) -> RoundFolder:
    """Return the round whose suggestion `version` is. Raises NotSuggested when it does not wait, or StorageError."""
    waiting = {suggested_version(folder): folder for folder in store.at("suggested")}
    if version in waiting:
        return waiting[version]
    others = f"version {max(waiting)} waits" if waiting else "none waits"
    raise NotSuggested(
        f"version {version} does not wait for a decision; {others}: `mfmd checkpoints show {version}` has its verdict"
    )


def answer_suggestion(registry: CheckpointRegistry, settings: Settings, version: int, answer: Answer) -> Verdict:
    """Let the suggested `version` serve, or reject it, for a person; return the final verdict.

    The answer is durable before it is carried out, so a kill loses nothing. Raises NotSuggested, InvalidReason,
    UnknownVersion, CorruptCheckpoint or StorageError: then it waits as before; ServingChanged when it became void.
    """
    check_reason(answer.reason)
    answer = answer.model_copy(update={"reason": answer.reason.strip() or NO_REASON})
    with _ANSWERING:
        folder = suggestion_of(RoundStore(StateLayout(settings.state).rounds), version)
        if _settle(registry, folder, settings) != "suggested":
            raise NotSuggested(f"version {version} no longer waits for a decision: {folder.record().reason}")
        if answer.approved:
            registry.verify(version)
        folder.change(answer=answer)
        _settle(registry, folder, settings)
        verdict = folder.verdict()
    assert verdict is not None  # a suggestion has one
    if answer.approved and verdict.decision != "accepted":
        raise ServingChanged(verdict.reason)
    return verdict


def settle_suggestions(registry: CheckpointRegistry, settings: Settings) -> None:
    """End suggestions that are void or were replaced by a newer one, and finish answers that a kill interrupted.

    Raises StorageError; then they wait as before.
    """
    newest: int | None = None
    for folder in RoundStore(StateLayout(settings.state).rounds).at("suggested"):
        with _ANSWERING:
            stage = _settle(registry, folder, settings)
            if stage == "suggested" and newest is not None:
                why = f"replaced by version {newest} of a later round"
                folder.change(answer=Answer(approved=False, by=GATE, reason=why, at=time.time()))
                stage = _settle(registry, folder, settings)
        newest = suggested_version(folder) if stage == "suggested" else newest


def _settle(registry: CheckpointRegistry, folder: RoundFolder, settings: Settings) -> Stage:
    """Advance a suggestion; return `suggested` while it waits. Call it with `_ANSWERING` held."""
    record, spec, verdict, version = folder.record(), folder.spec(), folder.verdict(), suggested_version(folder)
    assert verdict is not None
    serving, served = registry.serving(), version not in registry.state().never_served
    if record.stage != "suggested":  # another thread was first
        return record.stage
    facts = SuggestionFacts(spec.incumbent, serving.version if serving else None, registry.versions(), served)
    end = settled(verdict, record.answer, facts, at=time.time())
    if end is None:
        return "suggested"
    if end.decision == "accepted" and not served:
        assert end.answer is not None
        end = _serve_approved(registry, spec, version, end, end.answer)
    into_manifest(registry, folder, end)
    return end_round(registry, folder, settings, end)


def _serve_approved(
    registry: CheckpointRegistry, spec: RoundSpec, version: int, verdict: Verdict, answer: Answer
) -> Verdict:
    """Let an approved version serve; return the verdict, inconclusive when it cannot serve any more."""
    try:
        promote(registry, version, by=answer.by, reason=answer.reason, round=spec.round, expected=spec.incumbent)
    except (ServingChanged, UnknownVersion, CorruptCheckpoint) as error:
        update = {"decision": "inconclusive", "reason": f"approved, but it cannot serve: {error}", "at": time.time()}
        return verdict.model_copy(update=update)
    return verdict
