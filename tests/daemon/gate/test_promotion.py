"""Stages of a round after its scores, `release`, `promote` and `roll_back` on a real registry and real folders."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from configs.settings import Settings
from daemon.gate import moves, promotion
from daemon.gate.moves import release, roll_back
from daemon.gate.promotion import advance_round
from storage.errors import CorruptCheckpoint, StorageError, UnknownVersion
from storage.registry.registry import CheckpointRegistry
from storage.rounds.folder import RoundFolder
from storage.rounds.verdict import Verdict
from tests.daemon.gate.round_state import BETTER, State, make_state


def judge(registry: CheckpointRegistry, folder: RoundFolder, settings: Settings) -> Verdict:
    """Take a round from its scores to its end."""
    stage = advance_round(registry, folder, settings)
    verdict = folder.verdict()
    assert verdict is not None and folder.record().reason == verdict.reason
    assert (stage, folder.record().stage) == ("promoted" if verdict.decision == "accepted" else "rejected",) * 2
    return verdict


@pytest.fixture
def state(tmp_path: Path) -> State:
    return make_state(tmp_path)


@pytest.fixture
def finished(state: State, a_round: Any, model: Any) -> Callable[..., RoundFolder]:
    """The folder of a finished round on version 2."""

    def make(number: int = 1, weights: Path | None = None, **candidate: Any) -> RoundFolder:
        return state.finished(a_round(model(**(candidate or BETTER)), number=number), weights)

    return make


def test_accepted_candidate_becomes_a_version_and_serves(state: State, finished: Callable[..., RoundFolder]) -> None:
    folder = finished()
    verdict = judge(state.registry, folder, state.settings)
    assert (verdict.decision, verdict.version) == ("accepted", 3)
    assert folder.verdict() == verdict
    assert state.serving == 3
    assert state.registry.ref("previous").version == 2
    assert state.registry.serving().by == "gate"
    assert state.events()[-2:] == [("added", 3, 1), ("promoted", 3, 1)]
    state.registry.verify(3)
    assert state.registry.weights_path(3).read_bytes() == folder.candidate.read_bytes()


def test_manifest_of_the_new_version_explains_it(state: State, finished: Callable[..., RoundFolder]) -> None:
    folder = finished()
    judge(state.registry, folder, state.settings)
    manifest, parent = state.registry.manifest(3), state.registry.manifest(2)
    assert (manifest.parent, manifest.origin, manifest.round, manifest.seed) == (2, "round", 1, 4)
    assert (manifest.network, manifest.classes) == (parent.network, parent.classes)
    assert manifest.network_code == "c" * 64
    assert (manifest.input_height, manifest.input_width) == (48, 64)
    assert (manifest.input_fit, manifest.input_resample) == ("squash", "bicubic")
    assert manifest.frames == 48 + 12
    assert Verdict.model_validate(manifest.verdict).decision == "accepted"
    assert manifest.scores.keys() == {"source_miou", "styled_source_miou", "flip_consistency", "agreement"}
    assert all(0.0 < value <= 1.0 for value in manifest.scores.values())
    assert {"mfmd", "python", "torch"} <= manifest.libraries.keys()
    assert len(manifest.config_hash) == len(manifest.code) == 64
    assert manifest.settings == folder.spec().settings
    assert manifest.snapshot == folder.spec().snapshot


@pytest.mark.parametrize(
    ("candidate", "decision"), [({"seed": 2}, "inconclusive"), ({"source": 0.5}, "rejected")], ids=["copy", "forgot"]
)
def test_other_verdicts_keep_the_incumbent(
    state: State, finished: Callable[..., RoundFolder], candidate: dict[str, Any], decision: str
) -> None:
    folder = finished(**candidate)
    verdict = judge(state.registry, folder, state.settings)
    assert verdict.decision == decision
    assert folder.verdict() == verdict
    assert state.serving == 2
    assert state.registry.versions() == [1, 2]
    event = state.registry.history()[-1]
    assert (event.event, event.version, event.previous, event.round) == (decision, None, 2, 1)
    assert event.reason == verdict.reason


def test_rollback_during_the_round_stands(state: State, finished: Callable[..., RoundFolder]) -> None:
    folder = finished()
    roll_back(state.registry, to=None, by="operator", reason="poles vanish")
    verdict = judge(state.registry, folder, state.settings)
    assert verdict.decision == "inconclusive"
    assert "serving changed during the round: version 1 serves (operator: poles vanish)" in verdict.reason
    assert state.serving == 1
    assert state.registry.versions() == [1, 2]
    assert state.events()[-1] == ("inconclusive", None, 1)


def test_rollback_in_the_last_moment_stands(
    state: State, finished: Callable[..., RoundFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The operator's rollback lands after the gate has decided and before the candidate is promoted."""
    folder, decide = finished(), promotion.decide

    def slow_decision(*args: Any, **more: Any) -> Verdict:
        verdict = decide(*args, **more)
        roll_back(state.registry, to=1, by="operator", reason="now")
        return verdict

    monkeypatch.setattr(promotion, "decide", slow_decision)
    verdict = judge(state.registry, folder, state.settings)
    assert verdict.decision == "inconclusive"
    assert verdict.reason.startswith("serving changed")
    assert folder.verdict() == verdict
    assert state.serving == 1
    assert state.events()[-1] == ("inconclusive", 3, 1)


def test_candidate_file_with_other_tensors_is_rejected(state: State, finished: Callable[..., RoundFolder]) -> None:
    weights = state.weights(7.0, **{"rebuilder.w": np.ones(3, np.float32), "encoder.w": np.ones((3, 2), np.float32)})
    verdict = judge(state.registry, finished(weights=weights), state.settings)
    assert verdict.decision == "rejected"
    assert "encoder.w, rebuilder.w" in verdict.reason


@pytest.mark.parametrize("damage", ["cut", "gone", "empty"])
def test_candidate_file_that_cannot_be_read_is_rejected(
    state: State, finished: Callable[..., RoundFolder], damage: str
) -> None:
    folder = finished()
    if damage == "gone":
        folder.candidate.unlink()
    else:
        data = folder.candidate.read_bytes()
        folder.candidate.write_bytes(data[: len(data) // 2] if damage == "cut" else b"")
    verdict = judge(state.registry, folder, state.settings)
    assert verdict.decision == "rejected"
    assert "candidate.safetensors cannot be read" in verdict.reason
    assert state.serving == 2


def test_round_without_scores(state: State, finished: Callable[..., RoundFolder]) -> None:
    folder = finished()
    (folder.path / "scores.json").unlink()
    with pytest.raises(StorageError, match=r"round 1 has no scores\.json"):
        judge(state.registry, folder, state.settings)
    assert state.serving == 2


@pytest.mark.parametrize("candidate", [BETTER, {"seed": 2}], ids=["accepted", "inconclusive"])
def test_judging_again_changes_nothing(
    state: State, finished: Callable[..., RoundFolder], candidate: dict[str, Any]
) -> None:
    folder = finished(**candidate)
    first = judge(state.registry, folder, state.settings)
    events = state.events()
    assert judge(state.registry, folder, state.settings) == first
    assert state.events() == events


@pytest.mark.parametrize("done", ["verdict", "added", "promoted"])
def test_promotion_cut_by_a_crash_is_finished(
    state: State, finished: Callable[..., RoundFolder], done: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon dies after the verdict is written, after the version is added, or after the ref has moved."""
    folder = finished()

    def dies(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    real_promote = state.registry.promote
    if done == "verdict":
        monkeypatch.setattr(state.registry, "add", dies)
    elif done == "added":
        monkeypatch.setattr(state.registry, "promote", dies)
    else:
        monkeypatch.setattr(state.registry, "promote", lambda *args, **more: (real_promote(*args, **more), dies()))
    with pytest.raises(KeyboardInterrupt):
        judge(state.registry, folder, state.settings)
    monkeypatch.undo()
    verdict = judge(state.registry, folder, state.settings)
    assert (verdict.decision, verdict.version) == ("accepted", 3)
    assert state.registry.versions() == [1, 2, 3]
    assert state.serving == 3
    assert [event for event, _, number in state.events() if number == 1] == ["added", "promoted"]


@pytest.mark.parametrize("dies_in", ["add", "promote", "verdict", "weights", "stage", None])
def test_another_candidate_serves_and_a_kill_at_any_step_changes_nothing(
    state: State, a_round: Any, model: Any, dies_in: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The student is chosen: its weights become the version, and those of the others go when the round is judged."""
    made = a_round(model(source=0.5), number=1)
    better = a_round(model(**BETTER), number=1).scores.candidate
    scores = made.scores.model_copy(update={"name": "teacher", "others": {"student": better, "average_50": better}})
    folder = state.finished(replace(made, scores=scores))
    for name, value in (("student", 8.0), ("average_50", 9.0)):
        shutil.copy(state.weights(value), folder.other(name))
    student = folder.other("student").read_bytes()

    def dies(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    steps = {
        "add": (state.registry, "add"),
        "promote": (state.registry, "promote"),
        "verdict": (RoundFolder, "write_verdict"),
        "weights": (RoundFolder, "remove_others"),
        "stage": (promotion, "_prune"),
    }
    if dies_in is not None:
        monkeypatch.setattr(*steps[dies_in], dies)
        with pytest.raises(KeyboardInterrupt):
            judge(state.registry, folder, state.settings)
        monkeypatch.undo()
    verdict = judge(state.registry, folder, state.settings)
    assert (verdict.decision, verdict.candidate, verdict.version) == ("accepted", "student", 3)
    assert state.registry.weights_path(3).read_bytes() == student
    assert Verdict.model_validate(state.registry.manifest(3).verdict).candidate == "student"
    assert state.registry.history()[-2].reason == "candidate of round 1: student"
    assert [path.name for path in folder.path.glob("candidate*")] == ["candidate.safetensors"]
    assert state.serving == 3


@pytest.mark.parametrize("stage", ["scoring", "judged"])
def test_a_round_of_the_version_before_goes_on(state: State, finished: Callable[..., RoundFolder], stage: str) -> None:
    """Its files know neither names of candidates nor `holdout_bursts`."""
    folder = finished()
    if stage == "judged":
        promotion._judge_scores(state.registry, folder, state.settings)
    new = {"name", "others"}
    for name, gone in (("scores.json", new), ("verdict.json", {"candidate", "candidates"})):
        path = folder.path / name
        if path.exists():
            path.write_text(
                json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key not in gone})
            )
    verdict = judge(state.registry, folder, state.settings)
    assert (verdict.decision, state.serving) == ("accepted", 3)
    assert state.registry.weights_path(3).read_bytes() == folder.candidate.read_bytes()


def test_rollback_before_a_cut_promotion_is_finished_stands(
    state: State, finished: Callable[..., RoundFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon died after the ref moved and before the verdict said so; the operator rolled back; then it started."""
    folder, promote = finished(), state.registry.promote

    def dies_after(*args: Any, **more: Any) -> None:
        promote(*args, **more)
        raise KeyboardInterrupt

    monkeypatch.setattr(state.registry, "promote", dies_after)
    with pytest.raises(KeyboardInterrupt):
        judge(state.registry, folder, state.settings)
    monkeypatch.undo()
    roll_back(state.registry, to=None, by="operator", reason="poles vanish")
    assert judge(state.registry, folder, state.settings).version == 3
    assert state.serving == 2


def test_weights_that_were_rolled_back_from_do_not_come_back_under_another_number(
    state: State, finished: Callable[..., RoundFolder]
) -> None:
    judge(state.registry, finished(), state.settings)
    roll_back(state.registry, to=None, by="operator", reason="poles vanish")
    verdict = judge(state.registry, finished(number=2), state.settings)
    assert verdict.decision == "rejected"
    assert verdict.reason == "the candidate's weights are those of version 3, which was rolled back"
    assert (state.serving, state.registry.versions()) == (2, [1, 2, 3])
    assert state.events()[-1] == ("rejected", None, 2)
    other = judge(state.registry, finished(number=3, weights=state.weights(8.0)), state.settings)
    assert (other.decision, state.serving) == ("accepted", 4)


def test_the_next_best_candidate_serves_instead_of_rolled_back_weights(
    state: State, finished: Callable[..., RoundFolder]
) -> None:
    judge(state.registry, finished(), state.settings)
    roll_back(state.registry, to=None, by="operator", reason="poles vanish")
    folder = finished(number=2)  # the recipe's own candidate is a twin of version 3
    scores = folder.scores()
    assert scores is not None and scores.candidate is not None
    folder.write_scores(scores.model_copy(update={"others": {"student": scores.candidate}}))
    shutil.copy(state.weights(8.0), folder.other("student"))
    verdict = judge(state.registry, folder, state.settings)
    assert (verdict.decision, verdict.candidate, verdict.version, state.serving) == ("accepted", "student", 4, 4)
    assert "version 3, which was rolled back" in verdict.candidates[0].reason


def test_a_rollback_that_nobody_explained_says_so(state: State) -> None:
    assert roll_back(state.registry, to=1, by="operator", reason="  ").reason == moves.NO_REASON
    assert state.registry.history()[-1].reason == moves.NO_REASON


def test_damaged_incumbent_is_said(state: State, finished: Callable[..., RoundFolder]) -> None:
    folder = finished()
    state.registry.weights_path(2).write_bytes(b"nothing")
    with pytest.raises(CorruptCheckpoint, match="roll back"):
        judge(state.registry, folder, state.settings)
    assert state.serving == 2


@pytest.mark.parametrize("ancestor", [True, False])
def test_a_damaged_version_keeps_no_other_from_serving(
    state: State, finished: Callable[..., RoundFolder], ancestor: bool
) -> None:
    damaged, keep = 1, 1
    own = state.registry.root / "versions" / "000002" / "manifest.json"
    if ancestor:  # version 1 is the released one: what may be pruned cannot be told any more
        own.write_text(own.read_text().replace('"parent": null', '"parent": 1'))
    else:
        damaged = state.registry.add(state.weights(6.0), state.registry.manifest(1), by="import").version
    served = state.registry.add(state.weights(8.0), state.registry.manifest(1), by="import").version
    for version in (served, 2):
        state.registry.promote(version, by="operator", reason="one more that served: version 1 is beyond the limit")
    (state.registry.root / "versions" / f"{damaged:06d}" / "manifest.json").write_text("{")
    settings = state.settings.model_copy(
        update={"registry": state.settings.registry.model_copy(update={"keep_versions": keep})}
    )
    verdict = judge(state.registry, finished(), settings)
    assert (verdict.decision, state.serving) == ("accepted", verdict.version)
    assert (1 in state.registry.versions()) is ancestor, "nothing goes while the released one cannot be told"


def test_old_versions_are_pruned_after_a_verdict(state: State, finished: Callable[..., RoundFolder]) -> None:
    settings = state.settings.model_copy(
        update={"registry": state.settings.registry.model_copy(update={"keep_versions": 1})}
    )
    for value in (3.0, 4.0, 5.0):
        state.registry.add(state.weights(value), state.registry.manifest(1), by="import")
    judge(state.registry, finished(seed=2), settings)
    assert state.registry.versions() == [1, 2, 5]


def test_a_damaged_ref_keeps_all_versions_and_no_verdict_from_its_end(
    state: State, finished: Callable[..., RoundFolder]
) -> None:
    settings = state.settings.model_copy(
        update={"registry": state.settings.registry.model_copy(update={"keep_versions": 0})}
    )
    others = [
        state.registry.add(state.weights(value), state.registry.manifest(1), by="import").version
        for value in (3.0, 4.0)
    ]
    state.registry.ref_path("shadow").write_text("{")
    verdict = judge(state.registry, finished(), settings)
    assert (verdict.decision, state.serving) == ("accepted", verdict.version)
    assert set(others) <= set(state.registry.versions()), "one of them may be what the damaged ref named"


def test_release_serves_only_the_first(state: State, tmp_path: Path) -> None:
    registry = CheckpointRegistry(tmp_path / "fresh")
    for value in (1.0, 2.0):
        registry.add(state.weights(value), state.registry.manifest(1), by="pretrain")
    ref = release(registry, 1, "pretrain", "trained on source images")
    assert ref is not None
    assert (ref.version, ref.by) == (1, "pretrain")
    assert release(registry, 2, "import", "later") is None
    assert registry.serving().version == 1


def test_release_lets_nothing_serve_while_the_ref_of_what_serves_is_gone(state: State) -> None:
    moves = state.events()
    state.registry.ref_path("serving").unlink()
    with pytest.raises(StorageError, match=r"missing, but version 2 .*`mfmd check --repair`"):
        release(state.registry, 1, "import", "imported")
    assert not state.registry.ref_path("serving").exists(), "planes go on with version 2"
    assert state.events() == moves


def test_release_of_an_unknown_version(tmp_path: Path) -> None:
    with pytest.raises(UnknownVersion):
        release(CheckpointRegistry(tmp_path / "fresh"), 1, "pretrain", "x")


def test_roll_back_after_a_promotion(state: State, finished: Callable[..., RoundFolder]) -> None:
    judge(state.registry, finished(), state.settings)
    ref = roll_back(state.registry, to=None, by="operator", reason="poles vanish")
    assert (ref.version, ref.by, ref.reason) == (2, "operator", "poles vanish")
    assert state.registry.state().rolled_back == {3}
    with pytest.raises(StorageError):
        roll_back(state.registry, to=2, by="operator", reason="again")
    assert state.serving == 2
