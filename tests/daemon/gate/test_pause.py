"""A pause of the daemon's own changes: what waits, what goes on, and what a kill or damage means."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from configs.settings import LogSettings
from daemon.gate.loop import GateLoop
from daemon.gate.promotion import advance_round
from daemon.gate.suggestion import answer_suggestion, waiting_version
from daemon.runtime.logs import configure_logs
from storage.buffer.frames import FrameBuffer
from storage.errors import InvalidReason, StorageError
from storage.gate.pause import Pause, pause, read_pause, resume
from storage.layout import StateLayout
from storage.rounds.folder import RoundFolder
from storage.rounds.verdict import Answer
from tests.daemon.gate.round_state import BETTER, State, make_state


@pytest.fixture
def state(tmp_path: Path) -> State:
    return make_state(tmp_path)


@pytest.fixture
def layout(state: State) -> StateLayout:
    return StateLayout(state.settings.state)


def begin(layout: StateLayout) -> Pause:
    return pause(layout, by="operator", reason="the camera is moved")


def finished(state: State, made: Any, trigger: str) -> RoundFolder:
    return state.finished(replace(made, spec=made.spec.model_copy(update={"trigger": trigger})))


@pytest.mark.parametrize(
    ("trigger", "paused", "stage", "serving"),
    [
        ("new_frames", False, "promoted", 3),
        ("new_frames", True, "suggested", 2),
        ("drift", True, "suggested", 2),
        ("manual", True, "promoted", 3),
    ],
)
def test_only_a_candidate_that_somebody_asked_for_serves_in_a_pause(
    state: State, layout: StateLayout, a_round: Any, model: Any, trigger: str, paused: bool, stage: str, serving: int
) -> None:
    folder = finished(state, a_round(model(**BETTER)), trigger)
    if paused:
        begin(layout)
    assert (advance_round(state.registry, folder, state.settings), state.serving) == (stage, serving)
    if stage == "suggested":
        resume(layout, by="operator", reason="it stands")
        assert waiting_version(state.rounds) == 3, "the end of the pause decides about nothing"
        yes = Answer(approved=True, by="operator", reason="looked at it", at=9.0)
        assert answer_suggestion(state.registry, state.settings, 3, yes).decision == "accepted"
        assert state.serving == 3


@pytest.mark.parametrize("promoted", [False, True], ids=["before its promotion", "after it"])
def test_a_kill_and_then_a_pause(
    state: State, layout: StateLayout, a_round: Any, model: Any, monkeypatch: pytest.MonkeyPatch, promoted: bool
) -> None:
    """The daemon is killed when the verdict is final; somebody pauses; the next daemon finishes the round."""
    folder = finished(state, a_round(model(**BETTER)), "new_frames")
    monkeypatch.setattr(type(state.registry), "promote", promote_then_die(type(state.registry).promote, promoted))
    with pytest.raises(KeyboardInterrupt):
        advance_round(state.registry, folder, state.settings)
    monkeypatch.undo()
    begin(layout)
    end = ("promoted", 3) if promoted else ("suggested", 2)
    assert (advance_round(state.registry, folder, state.settings), state.serving) == end


def promote_then_die(promote: Any, promoted: bool) -> Any:
    def die(*arguments: Any, **options: Any) -> None:
        if promoted:
            promote(*arguments, **options)
        raise KeyboardInterrupt

    return die


@pytest.mark.parametrize("content", ["", "{", "[]", '{"at": 1.0}', '{"at": 1.0, "by": "a", "reason": "b", "new": 1}'])
def test_a_damaged_record_is_a_pause_until_somebody_ends_it(layout: StateLayout, content: str) -> None:
    layout.pause.write_text(content)
    found = read_pause(layout)
    assert (
        found is not None and found.at is None and str(layout.pause) in found.reason and "mfmd resume" in found.reason
    )
    assert resume(layout, by="operator", reason="looked at it") is True
    assert read_pause(layout) is None and resume(layout, by="operator", reason="again") is False


def test_what_is_no_reason_and_no_place_pauses_nothing(layout: StateLayout, tmp_path: Path) -> None:
    with pytest.raises(InvalidReason):
        pause(layout, by="operator", reason="\0")
    with pytest.raises(StorageError, match="no state directory is there yet"):
        begin(StateLayout(tmp_path / "none"))
    assert read_pause(layout) is None
    begin(layout)
    other = pause(layout, by="operator", reason="still moved")
    assert read_pause(layout) == other == Pause(**json.loads(layout.pause.read_text()))


@pytest.fixture
def gate(state: State, layout: StateLayout) -> Iterator[GateLoop]:
    with FrameBuffer.open(layout, state.settings.buffer, writable=True) as buffer:
        yield GateLoop(state.settings, buffer, state.registry, [])


def test_each_change_is_logged_once_whoever_made_it(
    layout: StateLayout, gate: GateLoop, caplog: pytest.LogCaptureFixture
) -> None:
    def steps() -> list[str]:
        caplog.clear()
        gate.step()
        gate.step()
        return [f"{line.msg['event']}: {line.msg['reason']}"[:30] for line in caplog.records]  # type: ignore[index]

    configure_logs(LogSettings())
    caplog.set_level("INFO")

    assert steps() == []
    begin(layout)
    assert steps() == ["paused: the camera is moved"]
    layout.pause.write_text("{")
    assert steps() == [f"paused: {layout.pause}"[:30]]
    layout.pause.unlink()
    assert len(steps()) == 1 and steps() == []
