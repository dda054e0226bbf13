"""Daemons and commands around a candidate in the shadow: they wait, report, stop, are killed and go on."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from daemon.cli.adapt import _outcome
from daemon.cli.status import _running
from daemon.errors import RoundRunning
from daemon.gate.shadow import progress_of
from daemon.metrics import Metrics
from daemon.rounds import runner as rounds
from daemon.rounds.history import summarise
from daemon.rounds.loop import RoundLoop
from daemon.rounds.recovery import recover
from daemon.rounds.runner import RoundContext, RoundSuspended, continue_round
from daemon.status.collect import collect_status
from storage.buffer.frames import FrameBuffer
from storage.layout import StateLayout
from storage.rounds.folder import RoundFolder
from storage.rounds.records import Progress
from tests.daemon.gate.round_state import BETTER
from tests.daemon.gate.shadow_state import BY_HAND, WANTED, Trial, make_trial


@pytest.fixture
def state(tmp_path: Path) -> Trial:
    return make_trial(tmp_path)


@pytest.fixture
def folder(state: Trial, a_round: Any, model: Any) -> RoundFolder:
    """A round whose candidate the scores accept; its daemon was killed before it was judged."""
    return state.finished(a_round(model(**BETTER), number=1))


@pytest.fixture
def buffer(state: Trial) -> Iterator[FrameBuffer]:
    """An empty one: a candidate in the shadow needs no frames."""
    with closing(FrameBuffer.open(StateLayout(state.settings.state), state.settings.buffer, writable=True)) as opened:
        yield opened


@pytest.fixture(autouse=True)
def _quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "POLL_SHADOW_SECONDS", 0.01)


def go_on(
    state: Trial, buffer: FrameBuffer, seen: Callable[[Progress], None], stop: threading.Event, *, suspends: bool
) -> Any:
    """What a daemon (`suspends`) or `mfmd adapt` does with round 1."""
    assert recover(state.settings, buffer, state.registry) == 1
    context = RoundContext(state.settings, buffer, state.registry, stop, seen, suspends=suspends)
    return continue_round(context, 1)


def test_a_daemon_waits_reports_and_promotes(state: Trial, folder: RoundFolder, buffer: FrameBuffer) -> None:
    seen, reasons = [], []

    def images_come(progress: Progress) -> None:
        seen.append((progress.phase, progress.step, progress.steps, progress.agreement))
        reasons.append(summarise(folder, alive=True).reason)
        state.compare(min(WANTED, progress.step + 10))

    verdict = go_on(state, buffer, images_come, threading.Event(), suspends=True)
    assert (verdict.decision, state.serving) == ("accepted", 3)
    assert seen == [("shadow", 0, WANTED, None), ("shadow", 10, WANTED, 0.9), ("shadow", WANTED, WANTED, 0.9)]
    assert reasons[1] == "in the shadow: 10 of 20 live images compared, 90.0% of their pixels as served"
    assert [item.step for item in folder.progress()] == [0, 10, WANTED]
    assert summarise(folder).result == "promoted"


def test_a_candidate_that_only_fails_agrees_with_nothing_yet(
    state: Trial, folder: RoundFolder, buffer: FrameBuffer
) -> None:
    recover(state.settings, buffer, state.registry)
    state.compare(0, failed=1)
    folder.append_progress(progress_of(folder, state.records))
    assert summarise(folder, alive=True).reason == "in the shadow: 0 of 20 live images compared"


def test_a_stopped_daemon_leaves_the_shadow_to_the_next_one(
    state: Trial, folder: RoundFolder, buffer: FrameBuffer
) -> None:
    stop = threading.Event()
    with pytest.raises(RoundSuspended, match="continues in the shadow"):
        go_on(state, buffer, lambda _: stop.set(), stop, suspends=True)
    trial = folder.record().trial
    assert trial is not None and 0 < trial.waited < 30, "its time limit goes on, too"
    assert (folder.verdict(), state.shadow) == (None, (3, "gate"))
    state.compare(WANTED)
    assert recover(state.settings, buffer, state.registry) is None
    assert (state.serving, state.shadow) == (3, None)


def test_who_asked_for_the_round_learns_that_its_candidate_goes_on_later(
    state: Trial, folder: RoundFolder, buffer: FrameBuffer
) -> None:
    """`mfmd adapt` followed a daemon that ended."""
    recover(state.settings, buffer, state.registry)
    with pytest.raises(RoundSuspended, match="the candidate of round 1 ran in the shadow; the next `mfmd run`"):
        _outcome(StateLayout(state.settings.state), folder, 1, stopping=True)


def test_the_status_line_tells_how_far_it_is(state: Trial, folder: RoundFolder, buffer: FrameBuffer) -> None:
    recover(state.settings, buffer, state.registry)
    state.compare(5, 0.75)
    folder.append_progress(progress_of(folder, state.records))
    with StateLayout(state.settings.state).lock():
        status = collect_status(state.settings)
    assert status.round is not None and status.round.progress is not None
    assert (status.round.round, status.round.progress.agreement) == (1, 0.75)
    assert "1 shadow 5/20, agreement 0.750" in _running(status)


def test_time_is_noted_while_it_waits_so_that_a_kill_loses_little(
    state: Trial, folder: RoundFolder, buffer: FrameBuffer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounds, "NOTE_SECONDS", 0.02)

    def dies(progress: Progress) -> None:
        trial = folder.record().trial
        if trial is not None and trial.waited > 0.05:
            raise KeyboardInterrupt

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        go_on(state, buffer, dies, threading.Event(), suspends=True)
    trial = folder.record().trial
    assert trial is not None and trial.waited <= time.monotonic() - started


def test_who_stops_a_round_of_their_own_ends_its_shadow(state: Trial, folder: RoundFolder, buffer: FrameBuffer) -> None:
    """Ctrl-C of `mfmd adapt`: nobody goes on with it."""
    stop = threading.Event()
    verdict = go_on(state, buffer, lambda _: stop.set(), stop, suspends=False)
    assert verdict.decision == "inconclusive" and "stopped in the shadow" in verdict.reason
    assert (state.serving, state.shadow) == (2, None)


def test_frames_are_free_while_a_candidate_is_in_the_shadow(
    state: Trial, folder: RoundFolder, buffer: FrameBuffer
) -> None:
    buffer.lease(1)  # killed between its scores and the release
    assert recover(state.settings, buffer, state.registry) == 1
    assert buffer.leases() == []


def test_a_shadow_that_no_round_waits_for_ends_when_a_daemon_starts(state: Trial, buffer: FrameBuffer) -> None:
    state.registry.set_shadow(1, by="gate", reason="killed before it was removed")
    recover(state.settings, buffer, state.registry)
    assert state.shadow is None
    state.registry.set_shadow(1, **BY_HAND)
    recover(state.settings, buffer, state.registry)
    assert state.shadow == (1, "operator")


@pytest.fixture
def metrics(state: Trial) -> Metrics:
    return Metrics(state.settings)


@pytest.fixture
def loop(state: Trial, buffer: FrameBuffer, metrics: Metrics) -> Iterator[RoundLoop]:
    made = RoundLoop(state.settings, buffer, state.registry, metrics.rounds)
    yield made
    made.stop()


@contextmanager
def stepping(loop: RoundLoop, folder: RoundFolder) -> Iterator[None]:
    """A step of the loop in a thread of its own, from when it waits for a candidate in the shadow to its end."""
    step = threading.Thread(target=loop.step)
    step.start()
    deadline = time.monotonic() + 20
    try:
        while folder.last_progress() is None:
            assert time.monotonic() < deadline, "the loop does not wait for the shadow"
            time.sleep(0.01)
        yield
        step.join(20)
        assert not step.is_alive(), "the loop still waits"
    finally:
        loop.stop()
        step.join(20)


def test_the_loop_takes_up_a_shadow_and_refuses_rounds_meanwhile(
    state: Trial, folder: RoundFolder, loop: RoundLoop, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A judgement that failed once, on a full disk for example, is made up for by the loop."""
    monkeypatch.setattr("daemon.rounds.loop.check_frames", lambda *_: None)
    with stepping(loop, folder):
        with pytest.raises(RoundRunning, match="round 1 is running"):
            loop.request()
        assert state.serving == 2
        state.compare(WANTED, 0.2)
    assert (state.serving, state.shadow, loop.running) == (2, None, None)
    value = metrics.registry.get_sample_value
    assert value("mfmd_gate_verdicts_total", {"decision": "rejected"}) == 1
    assert value("mfmd_gate_failures_total", {"gate": "shadow_agreement"}) == 1
    assert value("mfmd_gate_failures_total", {"gate": "shadow_images"}) == 0
    assert value("mfmd_round_shadow_images") == WANTED
    assert value("mfmd_round_shadow_agreement") == 0.2
    assert value("mfmd_round_step") == 0


def test_a_request_from_before_the_shadow_was_found_is_kept(
    state: Trial, folder: RoundFolder, loop: RoundLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("daemon.rounds.loop.check_frames", lambda *_: None)
    assert loop.request() == 2
    with stepping(loop, folder):
        state.compare(WANTED, 0.2)
    assert (state.serving, loop.running) == (2, 2), "the next step meets it"
