"""The gate's error rates on a bank of real candidates (`gate_bank.py`); the truth stays hidden from the gate.

Candidates are judged one by one by the real `decide`. Accepted although truly more than one point worse is a false
accept; not accepted although more than one point better is a false reject. The baseline of the same run accepts
everything. Rules were chosen on four worlds and are reported on the fifth, which was scored afterwards, too.

    python benchmarks/gate.py --root out/bank
"""

import argparse
import json
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from gate_bank import WORLDS, Banked, read

from configs.gate import GateSettings
from daemon.gate.decide import decide
from daemon.gate.votes import cast_votes
from storage.rounds.records import ConditionScores, ModelScores, RoundScores, RoundSpec
from storage.rounds.verdict import Verdict

Mode = Literal["source", "free"]
POINT = 1.0
"""Difference in true mIoU that counts (points)."""
FAR = 10.0
"""A candidate this much worse (points) must never be accepted."""
UNSEEN = ("fog",)
"""Worlds that were scored after rules and margins were chosen."""
FREE = ("free", "free_long", "free_fast", "wrong_free", "noise_free", "swapped_free", "copies_free")
"""Rounds of `gate_makers` without source."""
EITHER = ("tent", "tent_fast", "statistics", "altered")
"""Those that train on the target alone whether there is source or not."""
Floats = np.ndarray[Any, np.dtype[np.float64]]


class Case(NamedTuple):
    """A candidate against the incumbent that it comes from, as a round would report it."""

    world: str
    origin: str
    name: str
    kind: str
    gain: float
    """Truth: mIoU of the candidate minus that of the incumbent (points)."""
    scores: RoundScores
    """As with labelled source."""
    free_reference: list[float]
    """Reference class shares without labelled source."""

    @property
    def round(self) -> str:
        """The round of `gate_makers` that made it."""
        return self.name.split("~")[1].split(".")[0]

    def of(self, mode: Mode) -> bool:
        """Whether a daemon with labelled source, or without, could have made it."""
        return self.round in EITHER or (self.round in FREE) == (mode == "free")


def cases(root: Path) -> Iterator[Case]:
    """Yield every candidate of the bank."""
    for world in WORLDS:
        folder = root / "bank" / world
        if not (folder / "references.json").exists():
            continue
        references = json.loads((folder / "references.json").read_text(encoding="utf-8"))
        models = list(read(folder))
        incumbents = {model.origin: model for model in models if model.kind == "incumbent"}
        for model in models:
            if model.kind != "incumbent":
                yield _case(model, incumbents[model.origin], incumbents["released"], references)


def _case(model: Banked, incumbent: Banked, released: Banked, references: dict[str, list[float]]) -> Case:
    agreement = [float(np.mean(own == other)) for own, other in zip(model.maps, incumbent.maps, strict=True)]
    scores = RoundScores(
        status="completed",
        reason="step budget",
        steps=1,
        seconds=1.0,
        reference_marginal=references["source"],
        released=released.scores,
        incumbent=incumbent.scores,
        candidate=model.scores.model_copy(update={"agreement": agreement}),
    )
    gain = 100.0 * (model.miou - incumbent.miou)
    return Case(model.world, model.origin, model.name, model.kind, gain, scores, references["free"])


def judge(case: Case, mode: Mode, settings: GateSettings, number: int, *, memory: bool = True) -> Verdict:
    """Return the gate's verdict on a candidate; `memory`: the version that is best on source is known and kept."""
    scores = case.scores if mode == "source" else _without_source(case)
    if mode == "source" and memory:
        best = ConditionScores(number=1, name="source", labelled=True, version=1, best=scores.released)
        scores = scores.model_copy(update={"elsewhere": (best,)})
    spec = RoundSpec(
        round=number,
        incumbent=2,
        released=1,
        train_frames=(),
        holdout_frames=(),
        settings={"source": {} if mode == "source" else None},
        created=0.0,
        trigger="manual",
    )
    classes = len(case.free_reference)
    return decide(spec, scores, settings, [f"class {number}" for number in range(classes)], at=0.0)


def _without_source(case: Case) -> RoundScores:
    blind = {"source": None, "styled": None}
    incumbent, candidate = case.scores.incumbent, case.scores.candidate
    assert incumbent is not None and candidate is not None
    models = {"incumbent": incumbent.model_copy(update=blind), "candidate": candidate.model_copy(update=blind)}
    return case.scores.model_copy(update={"reference_marginal": case.free_reference, "released": None, **models})


class Policy(NamedTuple):
    """A way to decide, for the table."""

    title: str
    mode: Mode
    accepts: Callable[[Case, int], bool]


def policies() -> list[Policy]:
    """Return the policies of the table; the last of each mode is the baseline."""

    def gate(mode: Mode, *, memory: bool = True, **advanced: Any) -> Callable[[Case, int], bool]:
        default = GateSettings()
        settings = default.model_copy(update={"advanced": default.advanced.model_copy(update=advanced)})
        return lambda case, number: judge(case, mode, settings, number, memory=memory).decision == "accepted"

    return [
        Policy("with source", "source", gate("source")),
        Policy("with source, three votes", "source", gate("source", votes_with_source=3)),
        Policy("with source, without memory", "source", gate("source", memory=False)),
        Policy("always", "source", lambda case, number: True),
        Policy("without source", "free", gate("free")),
        Policy("without source, no margin", "free", gate("free", margin_without_labels=0.0)),
        Policy("always", "free", lambda case, number: True),
    ]


def errors(found: Sequence[tuple[Case, bool]]) -> list[str]:
    """Return the cells of a policy: false accepts, accepts of far worse candidates, false rejects."""
    worse = [accepted for case, accepted in found if case.gain < -POINT]
    far = [accepted for case, accepted in found if case.gain < -FAR]
    missed = [not accepted for case, accepted in found if case.gain > POINT]
    return [str(len(found)), _share(worse), f"{sum(far)} of {len(far)}", _share(missed)]


def _share(hits: Sequence[bool]) -> str:
    """Return hits of how many, the share, and its upper bound at 95 % (Wilson score interval)."""
    count, total, z = sum(hits), len(hits), 1.645
    if not total:
        return "0 of 0"
    share = count / total
    middle, spread = share + z * z / (2 * total), z * math.sqrt(share * (1 - share) / total + z * z / (4 * total**2))
    return f"{count} of {total}: {100 * share:.1f} % (below {100 * (middle + spread) / (1 + z * z / total):.1f} %)"


def error_table(found: Sequence[Case]) -> Iterator[str]:
    """Yield the table of policies, and every false accept of the gate's defaults."""
    columns = ("policy", "worlds", "candidates", "worse by over 1, accepted", "by over 10", "better by over 1, missed")
    yield "| " + " | ".join(columns) + " |"
    yield "|---|---|---|---|---|---|"
    wrong = []
    for policy in policies():
        ruled = [(case, policy.accepts(case, number)) for number, case in enumerate(found) if case.of(policy.mode)]
        for title, unseen in (("chosen on", False), ("unseen", True)):
            part = [(case, accepted) for case, accepted in ruled if (case.world in UNSEEN) is unseen]
            if part:
                yield "| " + " | ".join([policy.title, title, *errors(part)]) + " |"
        if policy.title in ("with source", "without source"):
            wrong += [(policy, case) for case, accepted in ruled if accepted and case.gain < -POINT]
    yield ""
    for policy, case in wrong:
        yield f"{policy.title}, accepted: {case.world} {case.name} ({case.kind}), {case.gain:+.1f}"


def score_table(found: Sequence[Case]) -> Iterator[str]:
    """Yield how each score orders the candidates of one incumbent: mean rank correlation with the truth."""
    groups = sorted({(case.world, case.origin) for case in found})
    table: dict[str, list[tuple[float, float]]] = {}
    for group in groups:
        mine = [case for case in found if (case.world, case.origin) == group]
        near = [case for case in mine if abs(case.gain) < 5 * POINT]
        for name in _advantages(mine[0]):
            pair = [_correlation(part, name) for part in (mine, near)]
            table.setdefault(name, []).append((pair[0], pair[1]))
    yield "| score | all candidates | within 5 points of the incumbent |"
    yield "|---|---|---|"
    for name, pairs in table.items():
        columns = zip(*pairs, strict=True)
        cells = [f"{statistics.mean(each):+.2f} ({min(each):+.2f} to {max(each):+.2f})" for each in columns]
        yield "| " + " | ".join([name, *cells]) + " |"


def _advantages(case: Case) -> Mapping[str, float]:
    """Return how much better the candidate is by each score; the votes, and scores that never vote."""
    incumbent, candidate = case.scores.incumbent, case.scores.candidate
    assert incumbent is not None and candidate is not None
    settings = GateSettings()
    quick = settings.model_copy(update={"advanced": settings.advanced.model_copy(update={"bootstrap": 2})})
    votes = cast_votes(candidate, incumbent, case.scores.reference_marginal, quick, seed=0)
    found = {vote.name: vote.advantage.value for vote in votes}
    found["mean entropy"] = (incumbent.entropy or 0.0) - (candidate.entropy or 0.0)
    found["agreement"] = float(np.mean(candidate.agreement))
    found["classes as the incumbent's"] = -_divergence(_area(candidate), _area(incumbent))
    return found


def _area(model: ModelScores) -> Floats:
    return np.asarray(model.area, np.float64).mean(axis=0)


def _divergence(shares: Floats, reference: Floats) -> float:
    """Return the Kullback-Leibler divergence (nats)."""
    one, other = (np.clip(each, 1e-6, 1.0) for each in (shares, reference))
    return float((one * np.log(one / other)).sum())


def _correlation(found: Sequence[Case], name: str) -> float:
    """Return Spearman's rank correlation of a score with the truth; 0 for fewer than 8 candidates."""
    if len(found) < 8:
        return 0.0
    columns = ([case.gain for case in found], [_advantages(case)[name] for case in found])
    ranks = [np.argsort(np.argsort(column)) for column in columns]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, required=True, help="folder of the bank")
    parser.add_argument("--parts", nargs="+", choices=("errors", "scores"), default=["errors", "scores"])
    options = parser.parse_args()
    found = list(cases(options.root))
    print(f"{len(found)} candidates of {len({(case.world, case.origin) for case in found})} incumbents")
    if "errors" in options.parts:
        print("\n".join(error_table(found)))
    if "scores" in options.parts:
        print("\n".join(score_table([case for case in found if case.scores.candidate])))


if __name__ == "__main__":
    main()
