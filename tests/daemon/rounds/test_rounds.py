"""A round from outside: whatever its process does, frames are released, the end is recorded, the incumbent serves."""

import re
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from daemon.cli.adapt import _outcome
from daemon.errors import NotEnoughFrames, RoundRunning, Stopping
from daemon.gate.frame_facts import COLUMNS, ROWS, FrameFacts
from daemon.metrics import Metrics
from daemon.rounds import runner as rounds
from daemon.rounds.environment import MEMORY_KEPT, round_environment
from daemon.rounds.history import schedule_state, summaries
from daemon.rounds.launch import launch_command
from daemon.rounds.loop import RoundLoop
from daemon.rounds.recovery import finish_round, recover
from daemon.rounds.runner import RoundContext, RoundFailed, launch_round
from daemon.rounds.schedule import due
from daemon.runtime.process_group import children_of, group_alive
from daemon.status.collect import collect_status
from storage.buffer.observations import Observation, Observations
from storage.errors import NoCheckpoint
from storage.gate.drift import Drift
from storage.rounds.folder import RoundStore
from storage.rounds.records import Progress, RoundScores, RoundSpec
from tests.sections import changed


def _run(world, registry, stop=None, on_progress=None, trigger="manual"):
    show = on_progress or (lambda progress: None)
    stop = stop or threading.Event()
    return launch_round(RoundContext(world.settings, world.buffer, registry, stop, show), trigger)


def test_the_spec_says_what_to_work_on_and_frames_are_held_meanwhile(world, registry, store, program):
    program("print(len(folder.spec().train_frames)); scores('failed', 'non-finite loss at step 3')")
    held = []
    world.buffer.lease, real = lambda number: held.append(real(number)) or held[-1], world.buffer.lease
    with pytest.raises(RoundFailed, match="non-finite loss at step 3"):
        _run(world, registry)
    spec = store.latest().spec()
    assert (spec.round, spec.incumbent, spec.released, spec.trigger) == (1, 1, 1, "manual")
    assert sorted(spec.train_frames + spec.holdout_frames) == [record.id for record in held[0]]
    assert {record.id for record in held[0] if record.holdout} == set(spec.holdout_frames)
    assert spec.settings["round"]["steps"] == 2
    assert world.buffer.leases() == []


def test_canary_images_are_neither_trained_on_nor_held_out(world, registry, store, program, drop, tmp_path):
    """A frame with the content of a canary image is left out, whatever file it came from."""
    program("scores('failed', 'enough')")
    folders = {name: tmp_path / "canary" / name for name in ("images", "labels")}
    for folder in folders.values():
        folder.mkdir(parents=True)
    for number in (1, 5):
        pixels = Image.open(drop / f"{number}.png")
        pixels.save(folders["images"] / f"own {number}.tif")
        Image.new("L", pixels.size, 1).save(folders["labels"] / f"own {number}.png")
    world.settings = changed(world.settings, canary=folders)
    with pytest.raises(RoundFailed):
        _run(world, registry)
    spec = store.latest().spec()
    names = {record.name for record in world.buffer.records(ids=spec.train_frames + spec.holdout_frames)}
    assert names == {f"{number}.png" for number in range(8)} - {"1.png", "5.png"}
    (folders["labels"] / "own 1.png").write_bytes(b"broken")
    with pytest.raises(RoundFailed):
        _run(world, registry)
    again = store.latest().spec()
    assert (again.train_frames, again.holdout_frames) == (spec.train_frames, spec.holdout_frames)


def test_a_failed_round_is_rejected_recorded_and_the_incumbent_stays(world, registry, store, program):
    program("scores('failed', 'non-finite loss at step 3')")
    with pytest.raises(RoundFailed) as error:
        _run(world, registry)
    assert error.value.verdict.decision == "rejected"
    assert store.latest().verdict() == error.value.verdict
    assert registry.serving().version == 1
    assert registry.history()[-1].event == "rejected"
    assert summaries(store, 5, alive=False)[0].result == "failed"


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("print('before'); raise RuntimeError('cuda out of memory')", "status 1 .*cuda out of memory"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "killed by SIGKILL"),
        ("pass", "ended with status 0 before it could write its scores"),
        ("progress(4); sys.exit(7)", "status 7"),
    ],
)
def test_a_crash_is_recorded_with_its_cause(world, registry, store, program, code, reason):
    program(code)
    with pytest.raises(RoundFailed, match=reason):
        _run(world, registry)
    scores = store.latest().scores()
    assert scores.status == "failed"
    assert scores.steps == (4 if "progress(4)" in code else 0)
    assert world.buffer.leases() == []


def test_a_hanging_round_is_ended_with_everything_it_started(world, registry, program, monkeypatch, layout):
    program(
        "import subprocess; subprocess.Popen(['sleep', '600'], start_new_session=True); progress(1); time.sleep(600)"
    )
    monkeypatch.setattr(rounds, "SCORING_SECONDS", 1.5 - world.settings.round.max_seconds)
    monkeypatch.setattr(rounds, "GRACE_SECONDS", 0.5)
    with pytest.raises(RoundFailed, match="time limit of"):
        _run(world, registry)
    assert not any(children_of(layout))


def test_a_round_without_progress_has_failed_whatever_it_says_at_its_end(world, registry, program):
    """Long before its time limit. Progress of an earlier start is none."""
    program("signal.signal(15, lambda *_: (scores('stopped', 'SIGTERM'), os._exit(0))); progress(1); time.sleep(600)")
    world.settings = world.settings.model_copy(update={"round": changed(world.settings.round, stall_seconds=0.3)})
    with pytest.raises(RoundFailed, match=r"made no progress for 0\.3 s \(round\.advanced\.stall_seconds\)"):
        _run(world, registry)


def test_a_round_whose_processes_never_meet_is_ended_long_before_its_budget(world, registry, program, monkeypatch):
    program("time.sleep(600)")
    monkeypatch.setattr(rounds, "START_SECONDS", 0.5)
    with pytest.raises(RoundFailed, match="had not met"):
        _run(world, registry)


def test_stop_ends_it_cleanly(world, registry, store, program):
    program("signal.signal(15, lambda *_: (scores('stopped', 'SIGTERM'), os._exit(0))); progress(1); time.sleep(600)")
    stop = threading.Event()
    verdict = _run(world, registry, stop, on_progress=lambda progress: stop.set())
    assert verdict.decision == "inconclusive"
    assert store.latest().scores().status == "stopped"
    assert summaries(store, 5, alive=False)[0].result == "stopped"


def test_a_round_that_does_not_stop_is_killed_and_counts_as_stopped(world, registry, store, program, monkeypatch):
    program("signal.signal(15, signal.SIG_IGN); progress(2); time.sleep(600)")
    monkeypatch.setattr(rounds, "GRACE_SECONDS", 0.3)
    stop = threading.Event()
    verdict = _run(world, registry, stop, on_progress=lambda progress: stop.set())
    assert verdict.decision == "inconclusive"
    assert (store.latest().scores().status, store.latest().scores().steps) == ("stopped", 2)


def test_progress_is_handed_on_and_the_process_is_known_as_ours_meanwhile(world, registry, program, layout):
    program("progress(1); time.sleep(0.5); progress(2); time.sleep(0.5); scores('failed', 'enough')")
    seen, commands = [], []

    def show(progress: Progress) -> None:
        seen.append(progress.step)
        commands.extend(child.cmdline()[-1] for child in children_of(layout))

    with pytest.raises(RoundFailed):
        _run(world, registry, on_progress=show)
    assert seen[-1] == 2
    assert set(commands) == {str(RoundStore(layout.rounds).folder(1).spec_path)}
    assert not any(children_of(layout))


def test_nothing_starts_without_version_or_frames(bench, registry, add_version, drop, write_image, store):
    world = bench(buffer={"holdout_fraction": 1.0})
    with pytest.raises(NoCheckpoint, match="mfmd pretrain"):
        _run(world, registry)
    add_version()
    with pytest.raises(NotEnoughFrames, match="0 frames in the buffer"):
        _run(world, registry)
    for number in range(4):
        write_image(drop / f"{number}.png", number)
    world.until(lambda: world.counts.frames == 4)
    with pytest.raises(NotEnoughFrames, match="every frame is held out"):
        _run(world, registry)
    assert world.buffer.leases() == []
    assert store.numbers() == []


def test_old_round_folders_are_pruned(world, registry, store, program):
    program("scores('failed', 'no')")
    world.settings = world.settings.model_copy(update={"round": changed(world.settings.round, keep_folders=2)})
    for _ in range(3):
        with pytest.raises(RoundFailed):
            _run(world, registry)
    assert store.numbers() == [2, 3]


def _spec(number: int, settings, frames: tuple[int, ...] = (1, 2)) -> RoundSpec:
    return RoundSpec(
        round=number,
        incumbent=1,
        released=1,
        train_frames=frames,
        holdout_frames=(3,),
        settings=settings.model_dump(mode="json"),
        created=time.time() - 60,
        trigger="manual",
    )


def test_recovery_ends_what_a_killed_daemon_left(world, registry, store, layout, tmp_path):
    folder = store.create(_spec(1, world.settings))
    folder.append_progress(Progress(at=time.time(), phase="training", step=11, steps=20))
    world.buffer.lease(1)
    child = rounds.ProcessGroup(layout, [sys.executable, "-S", "-c", "import time; time.sleep(600)"])
    recover(world.settings, world.buffer, registry)
    assert not group_alive(child.pid)
    child.finish(1.0)
    assert world.buffer.leases() == []
    assert (folder.scores().status, folder.scores().steps) == ("failed", 11)
    assert "the daemon ended while the round ran" in folder.verdict().reason
    assert schedule_state(None, store, registry).failures == 1


def test_recovery_judges_a_round_that_was_complete(world, registry, store):
    folder = store.create(_spec(1, world.settings))
    folder.write_scores(RoundScores(status="stopped", reason="SIGTERM", steps=1, seconds=2.0))
    recover(world.settings, world.buffer, registry)
    assert folder.verdict().decision == "inconclusive"
    before = folder.verdict()
    recover(world.settings, world.buffer, registry)
    assert folder.verdict() == before, "what is decided stays decided"


def test_recovery_survives_a_damaged_folder(world, registry, store):
    damaged, whole = store.create(_spec(1, world.settings)), store.create(_spec(2, world.settings))
    damaged.spec_path.write_text("{")
    recover(world.settings, world.buffer, registry)
    assert whole.verdict() is not None
    assert summaries(store, 5, alive=False)[1].result == "failed"


def test_damage_is_reported_of_an_ended_round_too(world, registry, store):
    folder = store.create(_spec(1, world.settings))
    folder.write_scores(RoundScores(status="stopped", reason="SIGTERM", steps=1, seconds=2.0))
    recover(world.settings, world.buffer, registry)
    assert finish_round(folder, registry, world.settings) == ""
    folder.spec_path.write_text("{")
    assert str(folder.spec_path) in finish_round(folder, registry, world.settings)


def test_after_failures_the_schedule_backs_off_and_counts_frames_from_the_last_judged_round(world, registry, store):
    settings = world.settings.model_copy(
        update={"schedule": world.settings.schedule.model_copy(update={"enabled": True, "new_frames": 5})}
    )
    judged = store.create(_spec(1, settings, frames=(1, 2)))
    judged.write_scores(RoundScores(status="completed", reason="step budget", steps=2, seconds=1.0))
    recover(settings, world.buffer, registry)
    assert summaries(store, 1, alive=False)[0].result == "inconclusive"
    state = schedule_state(world.buffer.catalog, store, registry)
    assert (state.new_frames, state.failures) == (5, 0), "eight frames, the newest that round 1 saw is number 3"
    assert due(time.time(), state, settings)[0] == "new_frames"
    for number in (2, 3):
        folder = store.create(_spec(number, settings, frames=(4, 5)))
        rounds.record_failure(folder, "failed", "crashed")
        recover(settings, world.buffer, registry)
    state = schedule_state(world.buffer.catalog, store, registry)
    assert (state.new_frames, state.failures) == (5, 2), "a failed round does not use frames up"
    trigger, decision = due(time.time(), state, settings)
    assert trigger is None
    assert decision.not_before == pytest.approx(time.time() + 60, abs=5)


def test_frames_that_a_reservoir_did_not_keep_start_no_round(bench, drop, write_image, registry, store, add_version):
    add_version()
    world = bench(buffer={"capacity_frames": 4, "eviction": "reservoir"})
    for number in range(30):
        write_image(drop / f"{number}.png", number)
    world.until(lambda: world.counts.committed_total == 30)
    kept = [record.id for record in world.buffer.records()]
    assert schedule_state(world.buffer.catalog, store, registry).new_frames == 30, "all that is there is new"
    judged = store.create(_spec(1, world.settings, frames=tuple(kept)))
    judged.write_scores(RoundScores(status="completed", reason="step budget", steps=2, seconds=1.0))
    recover(world.settings, world.buffer, registry)
    assert max(kept) < 30
    assert schedule_state(world.buffer.catalog, store, registry).new_frames == 0


def test_a_damaged_folder_does_not_keep_later_rounds_from_running(loop, world, store, program):
    program("scores('failed', 'no')")
    store.create(_spec(1, world.settings)).spec_path.write_text("{")
    assert loop.request() == 2
    loop.step()
    assert store.folder(2).verdict() is not None


def test_a_verdict_that_could_not_be_acted_on_is_made_up_for(loop, world, store, program, monkeypatch):
    program("scores('failed', 'no')")
    folder = store.create(_spec(1, world.settings))
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


def test_a_request_runs_once_and_a_second_one_is_refused(loop, program, store):
    program("progress(5); time.sleep(0.4); scores('failed', 'no')")
    loop.step()
    assert store.numbers() == []
    assert loop.request() == 1
    assert loop.woken.is_set()
    with pytest.raises(RoundRunning, match="round 1 is running"):
        loop.request()
    loop.step()
    loop.step()
    assert store.numbers() == [1]
    assert loop.running is None
    sample = loop.metrics.registry.get_sample_value
    assert sample("mfmd_round_runs_total", {"result": "failed"}) == 1
    assert sample("mfmd_gate_verdicts_total", {"decision": "rejected"}) == 1
    assert sample("mfmd_round_step") == 5
    assert sample("mfmd_round_pseudo_label_kept_ratio") == 0.25
    assert sample("mfmd_round_loss", {"part": "mix"}) == 0.5
    assert sample("mfmd_round_in_progress") == 0
    assert loop.request() == 2


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
        judged = store.create(_spec(1, world.settings, frames=used))
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


def test_the_command_hands_the_spec_to_accelerate(make_settings, tmp_path, monkeypatch):
    spec = tmp_path / "spec.json"
    command = launch_command(make_settings().round, spec)
    assert command[:5] == [sys.executable, "-P", "-m", "accelerate.commands.accelerate_cli", "launch"]
    assert command[-3:] == ["-m", "adapters.round", str(spec)]
    assert "--cpu" in command
    assert Path(command[command.index("--config_file") + 1]).parent.name == "configs", "not the user's own"
    assert command[command.index("--num_cpu_threads_per_process") + 1] == "1"
    many = launch_command(
        make_settings(round={"processes": 2, "device": "auto", "mixed_precision": "bf16"}).round, spec
    )
    assert "--multi_gpu" in many
    assert many[many.index("--num_processes") + 1] == "2"
    assert many[many.index("--mixed_precision") + 1] == "bf16"
    own = launch_command(make_settings(round={"advanced": {"accelerate_config": tmp_path / "a.yaml"}}).round, spec)
    assert own[own.index("--config_file") + 1] == str(tmp_path / "a.yaml")
    assert "--num_processes" not in own


def test_a_round_is_given_the_variables_that_it_needs_and_no_others(make_settings):
    given = {"PATH": "/bin", "LC_ALL": "C", "CUDA_VISIBLE_DEVICES": "", "NCCL_DEBUG": "INFO", "HF_HOME": "/hf",
             "https_proxy": "p", "PYTHONPATH": "/own", "LD_LIBRARY_PATH": "/cuda", "_MFMD_UMASK": "22"}  # fmt: skip
    foreign = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "a", "MASTER_PORT": "1",
               "OMP_NUM_THREADS": "7", "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "TORCHELASTIC_RUN_ID": "x",
               "OMPI_COMM_WORLD_SIZE": "4", "SLURM_NTASKS": "4", "PYTHONWARNINGS": "error", "DS_KEY": "k"}  # fmt: skip
    settings = make_settings().round
    assert round_environment(settings, {**given, **foreign}).items() >= given.items()
    assert not round_environment(settings, {**given, **foreign}).keys() & foreign.keys()
    named = make_settings(round={"advanced": {"environment": ["DS_*"]}}).round
    assert round_environment(named, foreign)["DS_KEY"] == "k"


def test_a_round_keeps_the_memory_that_it_frees_unless_the_user_says_otherwise(make_settings, monkeypatch):
    for name in MEMORY_KEPT:
        monkeypatch.delenv(name, raising=False)
    assert round_environment(make_settings().round).items() >= MEMORY_KEPT.items()
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")
    assert round_environment(make_settings().round)["MALLOC_TRIM_THRESHOLD_"] == "131072"
