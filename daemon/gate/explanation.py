"""Why a round ended as it did, and how a version came to be and served, in plain sentences. Pure, over records."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from daemon.gate.check_meanings import MEANINGS
from storage.gate.conditions import Conditions
from storage.gate.probation import Probation
from storage.registry.history import MOVES
from storage.registry.manifest import HistoryEvent, Manifest
from storage.rounds.records import RoundScores, RoundSpec
from storage.rounds.verdict import AT_WORK, Check, ConditionCost, RoundRecord, Verdict

TRIGGERS = {
    "new_frames": "Enough new frames had come (`schedule.new_frames`: {new_frames}; fewer do when it is quiet).",
    "interval": "The interval had passed (`schedule.interval_seconds`: {interval_seconds}), and a new frame had come.",
    "drift": "A drift alarm: the newest frames look foreign.",
    "manual": "Somebody asked for it: `mfmd adapt` or the control API.",
}
EFFORTS = {
    "full": "a full round",
    "tiny": "a small round of few steps",
    "statistics": "statistics only: BatchNorm statistics of the newest frames, nothing learnt",
}
POLICIES = {
    "auto": "The gate decides by itself.",
    "source": "The gate decides by itself, and labelled source is part of its evidence.",
    "source_free": "The gate decides by itself, without labelled source.",
    "canary": "Only canary labels accept a candidate; no vote is counted.",
    "manual": "The gate only suggests; a person decides.",
    "always": "An experiment: every whole candidate serves, whatever the checks say.",
}
DECISIONS = {
    "accepted": "The gate accepted it: no veto failed, and the evidence for it is enough.",
    "rejected": "It was rejected: {stays}.",
    "inconclusive": "It is inconclusive: nothing proved it better or worse, so {stays}.",
}
PROBATION = {
    "watching": "is on probation: fresh frames compare it with version {previous}",
    "passed": "passed its probation against version {previous}",
    "cooling_down": "failed its probation and was rolled back to version {previous}; no round starts for a while",
    "rolled_back": "failed its probation and was rolled back to version {previous}",
    "ended": "left its probation before the end",
}


@dataclass(frozen=True, slots=True)
class Section:
    """A heading and sentences."""

    title: str
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Explanation:
    """The whole reasoning; `title` is the result in one sentence. Sections without lines are left out."""

    title: str
    sections: tuple[Section, ...]

    def as_text(self) -> str:
        """Return it as plain text, sections apart."""
        parts = [self.title]
        for section in self.sections:
            parts += ["", section.title, *(f"  {line}" for line in section.lines)]
        return "\n".join(parts)


@dataclass(frozen=True, slots=True)
class RoundFacts:
    """What the state directory knows about a round, and `history`, all of it; None: not written, or not read."""

    number: int
    record: RoundRecord
    spec: RoundSpec
    scores: RoundScores | None
    verdict: Verdict | None
    history: Sequence[HistoryEvent]
    probation: Probation | None = None


@dataclass(frozen=True, slots=True)
class VersionFacts:
    """What the state directory knows about a version; `history` is all of it, oldest first."""

    number: int
    manifest: Manifest | None
    """None when it was removed, or cannot be read."""
    damage: str
    """Why the manifest cannot be read; empty otherwise."""
    serving: int | None
    waits: bool
    """Whether it waits for a person's decision."""
    history: Sequence[HistoryEvent]
    probation: Probation | None = None
    conditions: Conditions | None = None


def explain_round(facts: RoundFacts) -> Explanation:
    """Explain a round, from what triggered it to what became of its version."""
    spec, verdict = facts.spec, facts.verdict
    version = verdict.version if verdict else facts.record.trial.version if facts.record.trial else None
    return _explanation(
        _headline(facts),
        ("Why it began", _beginning(facts)),
        ("What it did", _work(facts)),
        ("Candidates", _candidates(verdict)),
        (f"Checks of {(verdict and verdict.candidate) or 'the candidate'}", _checks(verdict.checks if verdict else ())),
        ("Other conditions", _elsewhere(spec, verdict)),
        ("Decision", _decision(facts)),
        ("What happened afterwards", _afterwards(facts, version)),
    )


def explain_version(facts: VersionFacts) -> Explanation:
    """Explain a version: how it came to be, when and why it served and stopped."""
    verdict = _verdict_of(facts.manifest)
    best = [item for item in facts.conditions.conditions if item.best == facts.number] if facts.conditions else []
    other = [event for event in facts.history if event.version == facts.number and event.event not in (*MOVES, "added")]
    return _explanation(
        _state(facts),
        ("How it came to be", _origin(facts)),
        ("Why the gate decided so", [_sentence(verdict.reason), *_checks(verdict.checks)] if verdict else []),
        ("When it served", _served(facts)),
        ("Since then", [*_probation(facts.probation, facts.number), *map(_told, other)]),
        (
            "Conditions where it is best",
            [f"{item.name}: {_sentence(item.best_reason or 'it serves')}" for item in best],
        ),
    )


def _explanation(title: str, *sections: tuple[str, Iterable[str]]) -> Explanation:
    made = (Section(heading, tuple(lines)) for heading, lines in sections)
    return Explanation(title, tuple(section for section in made if section.lines))


def _headline(facts: RoundFacts) -> str:
    name, record, verdict = f"Round {facts.number}", facts.record, facts.verdict
    stays = f"version {facts.spec.incumbent} stayed"
    if record.stage in AT_WORK:
        return f"{name} has not ended: it is {record.stage}."
    if record.stage == "shadowing" and record.trial is not None:
        return f"{name} has not ended: its candidate, version {record.trial.version}, runs in the shadow."
    if facts.scores is not None and facts.scores.status == "stopped":
        return f"{name} was stopped: {stays}."
    if record.stage == "failed" or verdict is None:
        return f"{name} failed: {stays}."
    if record.stage == "suggested":
        n = verdict.version
        return f"{name} suggests version {n}, which waits: `mfmd approve {n}` serves it, `mfmd reject {n}` does not."
    if record.stage == "judged":
        return f"{name} is judged ({verdict.decision}); the daemon carries that out next."
    if verdict.decision == "accepted":
        return f"{name} was accepted: its candidate is version {verdict.version}."
    return f"{name} is {verdict.decision}: {stays}." if verdict.decision == "inconclusive" else f"{name}: {stays}."


def _beginning(facts: RoundFacts) -> Iterator[str]:
    spec = facts.spec
    schedule = {name: _setting(spec, "schedule", name, "-") for name in ("new_frames", "interval_seconds")}
    yield TRIGGERS[spec.trigger].format(**schedule)
    recipe = _setting(spec, "recipe", "name", "")
    yield f"It began {_at(spec.created)} as {EFFORTS[spec.effort]}" + (
        f", with the recipe {recipe}." if recipe else "."
    )
    if spec.restarts:
        yield f"Rounds before it were rejected, so it started from the released weights (version {spec.released})."
    else:
        again = f", with the training state of round {spec.inherits}" if spec.inherits is not None else ""
        yield f"It started from version {spec.incumbent}, which served then{again}."


def _work(facts: RoundFacts) -> Iterator[str]:
    spec, scores, record = facts.spec, facts.scores, facts.record
    held = len(spec.holdout_frames)
    yield f"It trained on {len(spec.train_frames)} frames; {held} held-out frames were kept apart to judge by."
    if spec.conditions is not None:
        decide = len(spec.conditions.frames)
        yield f"The newest frames are of {spec.conditions.name}; {decide} held-out frames of it decide."
    elif held:
        yield "Their condition was not known, so all held-out frames decide."
    if len(record.starts) > 1:
        yield f"Its processes started {len(record.starts)} times, {len(record.crashes())} of them ended by a crash."
    if scores is not None:
        yield f"It did {scores.steps} steps in {scores.seconds:.0f} s and ended so: {_sentence(scores.reason)}"
    elif record.stage == "failed":
        yield f"It left no scores. {_sentence(record.reason)}"


def _candidates(verdict: Verdict | None) -> Iterator[str]:
    for item in verdict.candidates if verdict and len(verdict.candidates) > 1 else ():
        chosen = ", the best" if verdict and item.name == verdict.candidate and item.decision == "accepted" else ""
        yield f"{item.name}: {item.decision}{chosen}. {_sentence(item.reason)}"


def _checks(checks: Sequence[Check]) -> Iterator[str]:
    for check in checks:
        words = {"veto": ("passed", "VETO"), "vote": ("won", "not won"), "evidence": ("enough", "NOT ENOUGH")}[
            check.kind
        ]
        bound = f" (value {check.value:.4g}, bound {check.limit:.4g})" if _bounded(check) else ""
        meaning = MEANINGS.get(check.name, "")
        yield f"{words[0 if check.passed else 1]}: {check.name}: {check.detail}{bound}. {meaning}".rstrip()


def _bounded(check: Check) -> bool:
    return check.kind != "vote" and check.value is not None and check.limit is not None


def _elsewhere(spec: RoundSpec, verdict: Verdict | None) -> Iterator[str]:
    mine = [item for item in verdict.candidates if item.name == verdict.candidate] if verdict else []
    found = [cost for item in mine for cost in item.elsewhere]
    for cost in found:
        yield f"{cost.name}, against version {cost.version}: {_cost(cost)}. {_sentence(cost.detail)}"
    if found:
        allowed = _setting(spec, "gate", "forgetting", "recall")
        yield f"`gate.forgetting` is {allowed}: " + {
            "recall": "a cost is allowed while recall can serve the better version again.",
            "veto": "a clear cost rejects the candidate.",
            "allow": "a cost is allowed.",
        }.get(allowed, "")


def _cost(cost: ConditionCost) -> str:
    if cost.value is None:
        return "not known"
    return "clearly worse" if cost.worse else "clearly better" if cost.better else "no clear difference"


def _decision(facts: RoundFacts) -> Iterator[str]:
    verdict, policy = facts.verdict, _setting(facts.spec, "gate", "policy", "auto")
    if verdict is None:
        if facts.record.stage == "failed":
            yield f"There is no verdict: {_sentence(facts.record.reason)}"
        return
    yield f"`gate.policy` is {policy}. {POLICIES.get(policy, '')}"
    yield f"{_at(verdict.at)}: " + DECISIONS[verdict.decision].format(stays=f"version {facts.spec.incumbent} stays")
    yield _sentence(verdict.reason)
    if verdict.answer is not None:
        word = "approved" if verdict.answer.approved else "ended"
        who = f"{word} by {verdict.answer.by}: {_sentence(verdict.answer.reason)}"
        yield f"{_at(verdict.answer.at)}: the suggestion was {who}"


def _afterwards(facts: RoundFacts, version: int | None) -> Iterator[str]:
    if version is None:
        return
    for event in facts.history:
        ours = version in (event.version, event.previous if event.event in MOVES else None)
        if ours and event.event not in ("added", "rejected", "inconclusive"):
            yield _told(event)
    yield from _probation(facts.probation, version)


def _state(facts: VersionFacts) -> str:
    name = f"Version {facts.number}"
    served = any(event.event in MOVES and event.version == facts.number for event in facts.history)
    if facts.serving == facts.number:
        return f"{name} serves."
    if facts.waits:
        return f"{name} waits for a decision: `mfmd approve {facts.number}` or `mfmd reject {facts.number}`."
    now = f"version {facts.serving} serves" if facts.serving is not None else "no version serves"
    removed = "was removed; it " if facts.manifest is None and not facts.damage else ""
    return f"{name} {removed}{'served earlier' if served else 'never served'}; {now}."


def _origin(facts: VersionFacts) -> Iterator[str]:
    made = facts.manifest
    added = next((e for e in facts.history if e.event == "added" and e.version == facts.number), None)
    if facts.damage:
        yield f"Its manifest cannot be read: {_sentence(facts.damage)}"
    if made is None:
        yield from ([_told(added)] if added else [])
        return
    when, reason = _at(made.created), f" {_sentence(added.reason)}" if added and added.reason else ""
    match made.origin:
        case "pretrain":
            yield f"It was trained on labelled source images, {when}.{reason}"
        case "import":
            yield f"It was imported, {when}.{reason}"
        case "round":
            frames = f" on {made.frames} frames" if made.frames else ""
            yield f"Round {made.round} made it from version {made.parent}{frames}, {when}.{reason}"
            yield f"`mfmd explain {made.round} --round` explains that round."
    if made.scores:
        yield "Scores: " + ", ".join(f"{name} {value:.4f}" for name, value in made.scores.items()) + "."


def _served(facts: VersionFacts) -> Iterator[str]:
    moves = [event for event in facts.history if event.event in MOVES]
    for move, then in zip_longest(moves, moves[1:]):
        if move.version == facts.number:
            yield _told(move)
            yield _told(then) if then is not None else "It serves since then."


def _probation(probation: Probation | None, version: int) -> Iterator[str]:
    if probation is not None and probation.version == version:
        told = PROBATION[probation.stage].format(previous=probation.previous)
        frames = f"{len(probation.worse)} frames compared."
        yield f"Version {version} {told}. {frames} {_sentence(probation.reason)}".rstrip()


def _told(event: HistoryEvent) -> str:
    version, before = event.version, f" in place of version {event.previous}" if event.previous is not None else ""
    words = {
        "added": f"version {version} was added",
        "promoted": f"version {version} began to serve{before}",
        "recalled": f"version {version} was recalled: it served again{before}",
        "rolled_back": f"a rollback: version {version} served again{before}",
        "rejected": f"version {version} was rejected",
        "inconclusive": f"version {version} did not serve: inconclusive",
        "pruned": f"version {version} was removed",
        "shadow_started": f"version {version} began to run in the shadow",
        "shadow_ended": f"version {version} left the shadow",
    }
    what = words.get(event.event, f"version {version} was {event.event}")
    return f"{_at(event.at)}: {what} (by {event.by}{f': {event.reason}' if event.reason else ''})."


def _verdict_of(manifest: Manifest | None) -> Verdict | None:
    known = {
        name: value for name, value in ((manifest and manifest.verdict) or {}).items() if name in Verdict.model_fields
    }
    return Verdict.model_validate(known) if known else None


def _setting(spec: RoundSpec, section: str, name: str, default: Any) -> Any:
    """Return a setting of the round; the default for a round of an earlier mfmd."""
    return (spec.settings.get(section) or {}).get(name, default)


def _sentence(text: str) -> str:
    text = text.strip()
    return text if not text or text[-1] in ".!?" else f"{text}."


def _at(unix: float) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(unix))
    except (OverflowError, ValueError, OSError):  # a damaged record may hold any number
        return "at an impossible time"
