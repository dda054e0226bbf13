"""A round from outside: whatever its process does, frames are released, the end is recorded, the incumbent serves."""

import sys
import threading
import time

import pytest
from PIL import Image

from daemon.errors import FitMismatch, NotEnoughFrames
from daemon.rounds import runner as rounds
from daemon.rounds.history import schedule_state, summaries
from daemon.rounds.recovery import finish_round, recover
from daemon.rounds.runner import RoundContext, RoundFailed, launch_round
from daemon.rounds.schedule import due
from daemon.runtime.process_group import children_of, group_alive
from daemon.status.collect import collect_status
from storage.errors import NoCheckpoint
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
    usual, world.settings = world.settings, changed(world.settings, schedule={"min_frames": 8})
    with pytest.raises(NotEnoughFrames, match=r"6 frames in the buffer.* is 8; 2 more are canary images; drop more"):
        _run(world, registry)
    world.settings = usual
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


def test_no_round_starts_with_fewer_images_than_its_recipe_needs(world, registry, store, drop):
    trained = sum(not record.holdout for record in world.buffer.records())
    source = {"images": drop, "labels": drop}
    world.settings = changed(
        world.settings, recipe={"name": "mfm_da", "advanced": {"translation": {"enabled": True}}}, source=source
    )
    with pytest.raises(NotEnoughFrames, match=rf"{trained} frames to train on.* needs 10 .*target_images\); drop more"):
        _run(world, registry)
    held = len(world.buffer.records()) - trained
    world.settings = changed(world.settings, buffer={"capacity_frames": 10})
    with pytest.raises(NotEnoughFrames, match=rf"set buffer.capacity_frames \(10\) to {held + 10} or more, and drop"):
        _run(world, registry)
    assert world.buffer.leases() == [] and store.numbers() == []


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


def round_spec(number: int, settings, frames: tuple[int, ...] = (1, 2)) -> RoundSpec:
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
    folder = store.create(round_spec(1, world.settings))
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
    folder = store.create(round_spec(1, world.settings))
    folder.write_scores(RoundScores(status="stopped", reason="SIGTERM", steps=1, seconds=2.0))
    recover(world.settings, world.buffer, registry)
    assert folder.verdict().decision == "inconclusive"
    before = folder.verdict()
    recover(world.settings, world.buffer, registry)
    assert folder.verdict() == before, "what is decided stays decided"


def test_recovery_survives_a_damaged_folder(world, registry, store):
    damaged, whole = store.create(round_spec(1, world.settings)), store.create(round_spec(2, world.settings))
    damaged.spec_path.write_text("{")
    recover(world.settings, world.buffer, registry)
    assert whole.verdict() is not None
    assert summaries(store, 5, alive=False)[1].result == "failed"


def test_damage_is_reported_of_an_ended_round_too(world, registry, store):
    folder = store.create(round_spec(1, world.settings))
    folder.write_scores(RoundScores(status="stopped", reason="SIGTERM", steps=1, seconds=2.0))
    recover(world.settings, world.buffer, registry)
    assert finish_round(folder, registry, world.settings) == ""
    folder.spec_path.write_text("{")
    assert str(folder.spec_path) in finish_round(folder, registry, world.settings)


def test_after_failures_the_schedule_backs_off_and_counts_frames_from_the_last_judged_round(world, registry, store):
    settings = world.settings.model_copy(
        update={"schedule": world.settings.schedule.model_copy(update={"enabled": True, "new_frames": 5})}
    )
    judged = store.create(round_spec(1, settings, frames=(1, 2)))
    judged.write_scores(RoundScores(status="completed", reason="step budget", steps=2, seconds=1.0))
    recover(settings, world.buffer, registry)
    assert summaries(store, 1, alive=False)[0].result == "inconclusive"
    state = schedule_state(world.buffer.catalog, store, registry)
    assert (state.new_frames, state.failures) == (5, 0), "eight frames, the newest that round 1 saw is number 3"
    assert due(time.time(), state, settings)[0] == "new_frames"
    for number in (2, 3):
        folder = store.create(round_spec(number, settings, frames=(4, 5)))
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
    judged = store.create(round_spec(1, world.settings, frames=tuple(kept)))
    judged.write_scores(RoundScores(status="completed", reason="step budget", steps=2, seconds=1.0))
    recover(world.settings, world.buffer, registry)
    assert max(kept) < 30
    assert schedule_state(world.buffer.catalog, store, registry).new_frames == 0


def test_frames_of_another_fit_stay_out_and_another_fit_than_the_serving_ones_starts_nothing(
    bench, registry, add_version, drop, write_image, store, program
):
    program("scores('failed', 'enough')")
    add_version()

    def filled(numbers: range, **advanced: str):
        made = bench(buffer={"advanced": advanced})
        for number in numbers:
            write_image(drop / f"{number}.png", number)
        made.until(lambda: made.counts.frames == numbers[-1] + 1)
        return made

    world = filled(range(4), fit="squash")
    with pytest.raises(FitMismatch, match=r"version 1 serves with \{fit: aspect, resample: bilinear\}"):
        _run(world, registry)
    due_now = changed(world.settings, schedule={"enabled": True, "new_frames": 4})
    assert collect_status(due_now).next_round.waiting_for.startswith("other settings: buffer.advanced is {fit: squash")
    world.close()
    filled(range(4, 6), resample="box").close()
    world = filled(range(6, 14))
    usual, world.settings = world.settings, changed(world.settings, buffer={"advanced": {"resample": "lanczos"}})
    with pytest.raises(FitMismatch, match=r"is \{fit: aspect, resample: lanczos\}, and version 1"):
        _run(world, registry)
    world.settings = usual
    with pytest.raises(RoundFailed):
        _run(world, registry)
    spec = store.latest().spec()
    others = {it.id for it in world.buffer.records() if it.valid_height == 32 or it.resample == "box"}
    assert len(others) == 6 and spec.left_out == {"fit": tuple(sorted(others))}
    assert sorted((*spec.train_frames, *spec.holdout_frames)) == sorted(
        {it.id for it in world.buffer.records()} - others
    )
    assert summaries(store, 5, alive=False)[0].left_out == {"fit": 6}
    world.settings = changed(world.settings, schedule={"min_frames": 9})
    with pytest.raises(NotEnoughFrames, match=r"8 frames may be used.*; left out: 6 fit \(.*mfmd doctor"):
        _run(world, registry)
