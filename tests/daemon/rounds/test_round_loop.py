"""The thread of rounds: requests, alarms, refusals; each round is a small program."""

import re
import threading

import numpy as np
import pytest
from safetensors.numpy import save_file

from daemon.cli.adapt import _outcome
from daemon.errors import NotEnoughFrames, RoundRunning, Stopping
from daemon.gate.frame_facts import COLUMNS, ROWS, FrameFacts
from daemon.metrics import Metrics
from daemon.rounds.loop import RoundLoop
from daemon.rounds.recovery import recover
from daemon.status.collect import collect_status
from storage.buffer.observations import Observation, Observations
from storage.gate.drift import Drift
from storage.gate.pause import pause
from storage.rounds.records import RoundScores
from tests.daemon.rounds.test_rounds import round_spec
from tests.sections import changed


def test_a_damaged_folder_does_not_keep_later_rounds_from_running(loop, world, store, program):
    program("scores('failed', 'no')")
    store.create(round_spec(1, world.settings)).spec_path.write_text("{")
    assert loop.request() == 2
    loop.step()
    assert store.folder(2).verdict() is not None


def test_a_verdict_that_could_not_be_acted_on_is_made_up_for(loop, world, store, program, monkeypatch):
    program("scores('failed', 'no')")
    folder = store.create(round_spec(1, world.settings))
    folder.write_scores(RoundScores(status="stopped", reason="SIGTERM", steps=1, seconds=2.0))
    loop.step()
    assert folder.verdict().decision == "inconclusive"


@pytest.fixture
def loop(world, registry, layout):
    metrics = Metrics(world.settings)
    woken = threading.Event()
    made = RoundLoop(world.settings, world.buffer, registry, metrics.rounds, wake=woken.set)
    made.metrics, made.woken = metrics, woken
    yield made
    made.stop()


def test_a_request_runs_once_and_a_second_one_is_refused(loop, program, store, wait_until):
    program("progress(5); time.sleep(0.4); scores('failed', 'no')")
    loop.step()
    assert store.numbers() == []
    assert loop.request() == 1
    assert loop.woken.is_set()
    with pytest.raises(RoundRunning, match="round 1 is running"):
        loop.request()
    sample, phase = loop.metrics.registry.get_sample_value, ("mfmd_round_phase_info", {"phase": "training"})
    thread = threading.Thread(target=loop.step)
    thread.start()
    wait_until(lambda: sample("mfmd_round_memory_bytes", {"kind": "device"}) == 5)
    assert sample(*phase) == 1
    assert sample("mfmd_round_step_target") == 9
    assert sample("mfmd_round_memory_bytes", {"kind": "resident"}) == 7
    thread.join()
    assert sample(*phase) == 0
    loop.step()
    assert store.numbers() == [1]
    assert loop.running is None
    assert sample("mfmd_round_runs_total", {"result": "failed"}) == 1
    assert sample("mfmd_gate_verdicts_total", {"decision": "rejected"}) == 1
    assert sample("mfmd_round_step") == 5
    assert sample("mfmd_round_pseudo_label_kept_ratio") == 0.25
    assert sample("mfmd_round_loss", {"part": "mix"}) == 0.5
    assert sample("mfmd_round_in_progress") == 0
    assert loop.request() == 2


@pytest.mark.parametrize("content", ["", "damaged"])
def test_in_a_pause_only_a_request_starts_a_round(loop, program, store, layout, content):
    program("scores('failed', 'no')")
    loop.settings = changed(loop.settings, schedule={"enabled": True, "new_frames": 8, "min_frames": 8})
    pause(layout, by="operator", reason="the camera is moved")
    if content:
        layout.pause.write_text(content)
    loop.step()
    assert store.numbers() == [] and collect_status(loop.settings).next_round.held == "paused"
    assert loop.request() == 1
    loop.step()
    assert store.folder(1).spec().trigger == "manual"


def test_after_an_alarm_the_loop_starts_a_round_of_statistics_first(loop, program, store, layout, registry):
    program("scores('failed', 'no')")
    weights = layout.root / "norm.safetensors"
    save_file({"bn.running_mean": np.zeros(2, np.float32)}, weights)
    registry.promote(registry.add(weights, registry.manifest(1), by="import").version, by="operator", reason="test")
    layout.drift.write_text(Drift(version=2, since=1.0, foreign=(8,), size=0.0).model_dump_json())
    loop.settings = changed(loop.settings, schedule={"enabled": True, "new_frames": 100, "min_frames": 8})
    loop.step()
    spec = store.folder(1).spec()
    assert (spec.trigger, spec.effort, spec.settings["recipe"]["name"]) == ("drift", "statistics", "bn_statistics")
    assert spec.settings["round"]["steps"] == 16 and spec.restarts is False
    loop.step()
    assert store.numbers() == [1], "it failed: the next one waits"


@pytest.mark.parametrize(
    ("likeness", "used", "said"),
    [
        (0.1, (), "no new frame to train on; round.advanced.leave_out leaves out of 8 new ones: 8 noise; drop"),
        (0.9, (), "leaves out: 6 copies (the picture does not change, and round.advanced.most_copies of one are used)"),
        (
            0.1,
            (1, 2, 3, 4, 5),
            "no new frame to train on; round.advanced.leave_out leaves out of 3 new ones: 3 noise; drop",
        ),
    ],
    ids=["noise", "a fixed camera", "only known frames"],
)
def test_status_says_why_no_round_can_begin_until_one_can(
    loop, world, store, layout, registry, program, likeness, used, said
):
    program("scores('failed', 'no')")
    facts = FrameFacts(np.random.default_rng(0).random((ROWS, COLUMNS, 3)), detail=0.1, likeness=likeness, lines=1.0)
    with Observations.open(layout.observations, writable=True) as observations:
        observations.add_facts(dict.fromkeys(range(1, 9), facts.numbers()))
    if used:
        judged = store.create(round_spec(1, world.settings, frames=used))
        judged.write_scores(RoundScores(status="completed", reason="step budget", steps=2, seconds=1.0))
        recover(world.settings, world.buffer, registry)
    leaves = {"leave_out": ("noise", "copies"), "most_copies": 1 if not used else 8}
    called = {"enabled": True, "new_frames": 3, "min_frames": 4}
    loop.settings = changed(loop.settings, schedule=called, round={"advanced": leaves})
    before = store.numbers()
    for _ in range(2):  # it is tried again
        loop.step()
        shown = collect_status(loop.settings).next_round
        assert shown.held == "refused" and shown.waiting_for.startswith("other frames: ") and said in shown.waiting_for
    with pytest.raises(NotEnoughFrames, match=re.escape(said)):
        _outcome(layout, None, 1, stopping=False)
    assert store.numbers() == before
    loop.settings = changed(loop.settings, round={"advanced": {"leave_out": ()}})
    loop.step()
    assert len(store.numbers()) == len(before) + 1
    assert collect_status(loop.settings).next_round.held != "refused" and not layout.refusal.exists()


def test_a_request_waits_until_new_frames_are_observed(loop, program, store, layout):
    program("scores('failed', 'no')")
    loop.settings = changed(loop.settings, schedule={"new_frames": 20})
    row = np.ones(3, np.float32)
    loop.request()
    for frames in ((7, 8), range(3, 7)):
        assert store.numbers() == []
        with Observations.open(layout.observations, writable=True) as observations:
            observations.add([Observation(frame, 1, 1, 0.0, 0.1, 0.9, row, row, row) for frame in frames])
        loop.step()
    assert store.numbers() == [1]


def test_a_request_that_comes_while_nothing_is_due_is_not_lost(loop, program, store, monkeypatch):
    program("scores('failed', 'no')")
    claim = loop._claim

    def late():
        found = claim()
        monkeypatch.setattr(loop, "_claim", claim)
        loop.request()
        return found

    monkeypatch.setattr(loop, "_claim", late)
    loop.step()
    loop.step()
    assert store.numbers() == [1]


def test_a_stopping_daemon_starts_no_round(loop, store):
    loop.stop()
    with pytest.raises(Stopping):
        loop.request()
    loop.step()
    assert store.numbers() == []


def test_every_line_of_a_rounds_thread_names_the_round(loop, world, program, caplog):
    caplog.set_level("INFO")
    program("scores('failed', 'no')")
    loop.request()
    loop.step()
    loop.request()
    loop.settings = changed(world.settings, schedule={"min_frames": 60})
    loop.step()
    lines = [
        (record.msg["event"], record.msg.get("round")) for record in caplog.records if isinstance(record.msg, dict)
    ]
    assert ("round_ended", 1) in lines and ("round_not_started", 2) in lines
    assert all(number in (1, 2) for _, number in lines), lines
