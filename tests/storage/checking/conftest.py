"""A state directory with something of everything, and what tests of damage share."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from configs.buffer import BufferSettings
from storage.buffer.frames import FrameBuffer, NewFrame
from storage.buffer.observations import Observation, Observations
from storage.checking import check_state, repair_state
from storage.layout import StateLayout
from storage.registry.registry import CheckpointRegistry
from storage.rounds.folder import RoundFolder, RoundStore
from storage.rounds.records import RoundScores, RoundSpec
from storage.rounds.verdict import Verdict
from storage.source.labelled_import import import_labelled

Sql = Callable[..., None]
Expect = Callable[..., None]


def make_round(layout: StateLayout, number: int, *, ended: bool) -> RoundFolder:
    spec = RoundSpec(
        round=number,
        incumbent=1,
        released=1,
        train_frames=(1, 2),
        holdout_frames=(3,),
        settings={},
        created=1.0,
        trigger="manual",
    )
    folder = RoundStore(layout.rounds).create(spec)
    if ended:
        folder.write_scores(RoundScores(status="completed", reason="step budget", steps=4, seconds=1.0))
        folder.write_verdict(Verdict(round=number, decision="accepted", reason="better", checks=[], at=2.0, version=2))
        folder.enter("promoted")
    return folder


@pytest.fixture
def whole(
    layout: StateLayout, small: BufferSettings, new_frame: Callable[..., NewFrame], weights, manifest, source
) -> StateLayout:
    """Five frames, observed; three versions, of which 2 serves, 1 served before and 3 is pinned; two rounds; source.

    Round 1 has ended, round 2 was interrupted and holds its frames.
    """
    with FrameBuffer.open(layout, small, writable=True) as buffer:
        buffer.append([new_frame(number) for number in range(5)])
        buffer.catalog.note(new_frame(9).file, "refused", "truncated", "too short")
        buffer.catalog.note(new_frame(8).file, "duplicate", digest=new_frame(1).digest)
        buffer.lease(2)
        with Observations.open(layout.observations, writable=True) as observations:
            row = np.ones(2, np.float32)
            observations.add([Observation(item.id, 1, 1, 1.0, 0.5, 0.5, row, row, row) for item in buffer.records()])
    registry = CheckpointRegistry(layout.checkpoints)
    for number in (1, 2, 3):
        registry.add(weights(f"weights {number}"), manifest(parent=number - 1 or None), by="test")
    registry.promote(1, by="pretrain", reason="first")
    registry.promote(2, by="gate", reason="better")
    registry.pin(3, by="operator")
    make_round(layout, 1, ended=True)
    states = make_round(layout, 2, ended=False).states
    states.begin(4).joinpath("state.json").write_text("{}")
    states.publish(4)
    import_labelled(source(3), layout)
    return layout


@pytest.fixture
def sql(whole: StateLayout) -> Sql:
    """Change the catalog behind everybody's back."""

    def run(*statements: str) -> None:
        with closing(sqlite3.connect(whole.catalog, isolation_level=None)) as connection:
            for statement in statements:
                connection.execute(statement)

    return run


@pytest.fixture
def expect(whole: StateLayout) -> Expect:
    """The damage is found, by these codes and no other; repair fixes it (but for those `left`) for good."""

    def run(*codes: str, read_data: bool = False, left: tuple[str, ...] = (), naming: Path | None = None) -> None:
        found = check_state(whole, read_data=read_data)
        assert sorted(problem.code for problem in found) == sorted((*codes, *left)), found
        assert {problem.code for problem in found if problem.repairable} == set(codes)
        assert all(problem.detail and problem.remedy for problem in found)
        for problem in found:
            assert "check --repair" not in problem.remedy or "stop mfmd run, then mfmd check --repair" in problem.remedy
        assert naming is None or naming in {problem.path for problem in found}
        done = repair_state(whole, read_data=read_data)
        assert {problem.code for problem in done.repaired} >= set(codes)
        assert sorted(problem.code for problem in done.left) == sorted(left)
        assert sorted(problem.code for problem in check_state(whole, read_data=True)) == sorted(left)

    return run
