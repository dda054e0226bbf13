from pathlib import Path
from typing import Literal

import psutil
import pytest

from storage.errors import StorageError, UnknownRound
from storage.rounds.folder import RoundStore
from storage.rounds.records import Progress, RoundScores, RoundSpec
from storage.rounds.verdict import RoundStart, Verdict


def spec(number: int) -> RoundSpec:
    return RoundSpec(
        round=number,
        incumbent=1,
        released=1,
        train_frames=(1, 2),
        holdout_frames=(3,),
        settings={},
        created=1.0,
        trigger="manual",
    )


def progress(step: int) -> Progress:
    return Progress(at=float(step), phase="training", step=step, steps=1000, losses={"source": 0.5})


@pytest.fixture
def store(tmp_path: Path) -> RoundStore:
    return RoundStore(tmp_path / "rounds")


def test_an_empty_store(store: RoundStore):
    assert (store.numbers(), store.next_number(), store.latest()) == ([], 1, None)
    with pytest.raises(UnknownRound, match=r"no round 3 in .*; rounds: none"):
        store.folder(3)


def test_a_folder_has_its_spec_from_the_first_moment(store: RoundStore):
    folder = store.create(spec(store.next_number()))
    assert folder.path == store.root / "000001" and folder.number == 1
    assert folder.spec() == spec(1)
    assert folder.states.latest() is None and folder.record().stage == "planned" and folder.record().starts == ()
    assert (folder.scores(), folder.verdict(), folder.progress(), folder.last_progress()) == (None, None, [], None)
    assert store.next_number() == 2
    with pytest.raises(FileExistsError):
        store.create(spec(1))
    assert store.numbers() == [1]


def test_what_a_killed_create_left_is_no_round(store: RoundStore):
    (store.root / ".000001.partial" / "state").mkdir(parents=True)
    assert store.numbers() == [] and store.next_number() == 1
    store.create(spec(1))
    assert [path.name for path in store.root.iterdir()] == ["000001"]


def test_progress_is_readable_while_a_line_is_written(store: RoundStore):
    folder = store.create(spec(1))
    for step in range(500):
        folder.append_progress(progress(step))
    with (folder.path / "progress.jsonl").open("a") as file:
        file.write('{"at": 501.0, "pha')
    assert [item.step for item in folder.progress()] == list(range(500))
    assert folder.last_progress() == progress(499)


def test_the_newest_progress_of_a_long_round_costs_no_more_than_that_of_a_short_one(store: RoundStore):
    folder = store.create(spec(1))
    path = folder.path / "progress.jsonl"
    path.write_text((progress(1).model_dump_json() + "\n") * 20_000)
    folder.append_progress(progress(2))
    before = psutil.Process().io_counters().read_chars
    assert folder.last_progress() == progress(2)
    assert psutil.Process().io_counters().read_chars - before < path.stat().st_size / 10  # the daemon asks every 0.2 s


def test_scores_and_verdict_come_back(store: RoundStore):
    folder = store.create(spec(1))
    scores = RoundScores(status="completed", reason="step budget", steps=10, seconds=2.5, reference_marginal=[0.5, 0.5])
    verdict = Verdict(round=1, decision="rejected", reason="sky vanished", checks=[], at=3.0)
    folder.write_scores(scores)
    folder.write_verdict(verdict)
    assert store.folder(1).scores() == scores
    assert store.folder(1).verdict() == verdict
    (folder.path / "scores.json").write_text("{}")
    with pytest.raises(StorageError, match=r"scores\.json: not a RoundScores"):
        folder.scores()


def test_the_record_says_where_the_round_stands(store: RoundStore):
    folder = store.create(spec(1))
    start = RoundStart(at=1.0, step=0)
    assert folder.enter("training", starts=(start,)) == "training"
    entered = folder.record()
    folder.change(stopped=True)
    assert (folder.record().stage, folder.record().since, folder.record().starts) == (
        "training",
        entered.since,
        (start,),
    )
    folder.enter("rejected", reason="stopped")
    assert store.folder(1).record().stopped and store.folder(1).record().reason == "stopped"
    (folder.path / "round.json").write_text("{}")
    with pytest.raises(StorageError, match=r"round\.json: not a RoundRecord"):
        folder.record()


def test_a_folder_of_an_older_mfmd_is_said_to_be_one(store: RoundStore):
    folder = store.create(spec(1))
    (folder.path / "round.json").unlink()
    with pytest.raises(StorageError, match=r"round\.json: missing; .* older than mfmd 0\.1\.0: remove it"):
        folder.record()


def test_a_folder_without_its_spec_is_an_error(store: RoundStore):
    folder = store.create(spec(1))
    folder.spec_path.unlink()
    with pytest.raises(StorageError, match=r"spec\.json: missing"):
        folder.spec()


def test_the_oldest_folders_are_pruned_and_numbers_go_on(store: RoundStore):
    for number in range(1, 6):
        store.create(spec(number)).candidate.write_bytes(b"weights")
    assert store.prune(3) == [1, 2]
    assert store.numbers() == [3, 4, 5]
    assert store.prune(0) == [3, 4]
    latest = store.latest()
    assert latest is not None and latest.number == 5
    assert store.next_number() == 6
    assert [path.name for path in store.root.iterdir()] == ["000005"]


def test_a_create_that_failed_leaves_no_half_round_in_the_way(store: RoundStore):
    store.create(spec(1))
    with pytest.raises(FileExistsError):
        store.create(spec(1))
    store.create(spec(2))
    assert sorted(path.name for path in store.root.iterdir()) == ["000001", "000002"]


def test_time_left_follows_from_the_pace_since_the_newest_start(store: RoundStore) -> None:
    folder = store.create(spec(1))
    lines: list[tuple[float, Literal["training", "loading"], int]] = [
        (10.0, "training", 50),
        (100.0, "loading", 0),
        (110.0, "training", 40),
        (120.0, "training", 60),
    ]
    folder.change(starts=(RoundStart(at=5.0, step=0), RoundStart(at=99.0, step=40)))
    seen = []
    for at, phase, step in lines:
        folder.append_progress(Progress(at=at, phase=phase, step=step, steps=100))
        seen.append(folder.seconds_left())
    assert seen == [None, None, None, 20.0]
    folder.append_progress(Progress(at=130.0, phase="scoring", step=100, steps=100))
    assert folder.seconds_left() is None
