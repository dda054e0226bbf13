"""Damage to registry, rounds and source, and what kills leave: found, repaired, found clean again."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from storage import failpoints
from storage.buffer.frames import FrameBuffer
from storage.checking import check_state, repair_state
from storage.checking.problem import ERRORS, LEFTOVERS, Problem
from storage.durable.digest import digest_of
from storage.errors import AlreadyRunning
from storage.layout import StateLayout
from storage.registry.bases import KEY
from storage.registry.manifest import Ref
from storage.registry.registry import CheckpointRegistry
from storage.rounds.folder import RoundStore

PAGE = Path(__file__).parents[3] / "docs" / "how-to" / "check.md"


@pytest.fixture
def registry(whole: StateLayout) -> CheckpointRegistry:
    return CheckpointRegistry(whole.checkpoints)


def serving(registry: CheckpointRegistry) -> tuple[int | None, int | None]:
    refs = registry.serving(), registry.ref("previous")
    return (refs[0].version if refs[0] else None), (refs[1].version if refs[1] else None)


def spoil(path: Path, content: str = '{"version": ') -> None:
    path.write_text(content)


def test_a_damaged_serving_ref_is_written_again(registry, expect):
    spoil(registry.ref_path("serving"))
    expect("ref_damaged", naming=registry.ref_path("serving"))
    assert serving(registry) == (2, 1)
    assert registry.state().rolled_back == set()


def test_a_lost_serving_ref_is_written_again(registry, expect):
    registry.ref_path("serving").unlink()
    expect("serving_missing", naming=registry.ref_path("serving"))
    assert serving(registry) == (2, 1)


def test_a_registry_in_which_nothing_ever_served_is_no_problem(layout, weights, manifest):
    CheckpointRegistry(layout.checkpoints).add(weights("first"), manifest(), by="import")
    assert check_state(layout, read_data=True) == []


def test_a_serving_ref_that_points_nowhere(registry, expect):
    spoil(registry.ref_path("serving"), registry.serving().model_copy(update={"version": 9}).model_dump_json())
    expect("ref_dangling", naming=registry.ref_path("serving"))
    assert serving(registry) == (2, 1)


@pytest.mark.parametrize("content", ["{", '{"version": 9, "since": 1, "by": "x", "reason": ""}'])
def test_a_previous_ref_that_is_no_use(registry, expect, content):
    before = registry.serving()
    spoil(registry.ref_path("previous"), content)
    expect("ref_damaged" if content == "{" else "ref_dangling", naming=registry.ref_path("previous"))
    assert serving(registry) == (2, 1)
    assert registry.serving() == before, "what was good is not touched"


@pytest.mark.parametrize("content", ["{", "dangling"])
def test_a_shadow_of_nothing_is_removed(registry, expect, content):
    path = registry.ref_path("shadow")
    path.write_text(content if content == "{" else Ref(version=9, since=1.0, by="gate", reason="").model_dump_json())
    expect("ref_damaged" if content == "{" else "ref_dangling", naming=path)
    assert registry.ref("shadow") is None


def test_pins(registry, expect):
    spoil(registry.ref_path("pinned-000003"))
    shutil.copyfile(registry.ref_path("serving"), registry.ref_path("pinned-000007"))
    expect("ref_damaged", "ref_dangling")
    assert registry.pins() == [3]


@pytest.mark.parametrize("damage", ["shorter", "gone", "flipped", "manifest"])
def test_a_serving_version_that_is_damaged_gives_way_and_stays_on_the_disk(whole, registry, expect, damage):
    weights = registry.weights_path(2)
    match damage:
        case "shorter":
            weights.write_text("weights")
        case "gone":
            weights.unlink()
        case "flipped":
            weights.write_text("Weights 2")
            assert check_state(whole) == [], "only reading shows it"
        case "manifest":
            spoil(weights.with_name("manifest.json"))
    expect("serving_damaged", read_data=damage == "flipped", left=("version_damaged",))
    assert serving(registry) == (1, None)
    assert registry.versions() == [1, 2, 3] and registry.state().rolled_back == {2}
    registry.verify(1)


def test_no_version_that_served_is_whole(whole, registry):
    for version in (1, 2):
        registry.weights_path(version).unlink()
    left = sorted(problem.code for problem in repair_state(whole).left)
    assert left == ["serving_damaged", "version_damaged", "version_damaged"]
    assert serving(registry) == (2, 1), "version 3 never served: nobody may choose it but the gate or a person"


def test_a_kept_manifest_that_cannot_be_read(registry, expect):
    registry.unpin(3, by="operator")
    assert registry.prune(0) == [3]
    spoil(registry.root / "pruned" / "000003.json")
    expect(left=("pruned_damaged",))


def test_a_torn_line_of_the_history(registry, expect):
    path, events = registry.root / "history.jsonl", registry.history()
    with path.open("a") as file:
        file.write('{"at": 1.0, "event": "promo')
    expect("history_torn", naming=path)
    assert registry.history() == events
    assert (registry.root / "history.torn").read_text() == '{"at": 1.0, "event": "promo\n'


@pytest.mark.parametrize("name", ["spec.json", "scores.json", "verdict.json"])
def test_records_of_a_round_that_cannot_be_read(whole, expect, name):
    path = RoundStore(whole.rounds).folder(1).path / name
    spoil(path)
    expect(left=("round_damaged",), naming=path)


def test_records_of_another_round(whole, expect):
    folder = RoundStore(whole.rounds).folder(1)
    folder.spec_path.write_text(folder.spec().model_copy(update={"round": 5}).model_dump_json())
    expect(left=("round_damaged",), naming=folder.spec_path)


def test_a_version_that_nobody_knows(whole, expect):
    folder = RoundStore(whole.rounds).folder(1)
    folder.write_verdict(folder.verdict().model_copy(update={"version": 44}))
    expect(left=("round_version",))


def tensors(path: Path) -> None:
    header = json.dumps({"w": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"abcd")


@pytest.mark.parametrize("damage", ["empty", "json", "cut", "header", "nothing"])
def test_a_training_state_that_is_damaged(whole, expect, damage):
    states = RoundStore(whole.rounds).folder(2).states
    path = states.latest()
    weights = path / "state.safetensors"
    tensors(weights)
    assert check_state(whole) == []
    match damage:
        case "empty":
            weights.write_bytes(b"")
        case "json":
            spoil(path / "state.json")
        case "cut":
            weights.write_bytes(weights.read_bytes()[:-1])
        case "header":
            weights.write_bytes(b"\xff" * 40)
        case "nothing":
            weights.unlink()
            (path / "state.json").unlink()
    expect("training_state", naming=path)
    assert states.steps() == []


def test_a_training_state_that_the_system_cannot_read_stays(whole):
    """Permissions, the disk or a mount may be at fault: nothing says that the state is damaged."""
    states = RoundStore(whole.rounds).folder(2).states
    (states.latest() / "state.safetensors").symlink_to("/proc/self/mem")  # opens, and fails to be read, also for root
    done, steps = repair_state(whole), states.steps()
    assert [problem.code for problem in done.left] == ["unreadable"] and done.repaired == []
    assert steps


@pytest.mark.parametrize("damage", ["current", "index", "shard"])
def test_a_source_that_is_damaged(whole, expect, damage):
    folder = next(path for path in whole.source.iterdir() if path.is_dir())
    match damage:
        case "current":
            spoil(whole.source / "current.json")
        case "index":
            spoil(folder / "index.json")
        case "shard":
            next((folder / "labels").glob("c.*")).unlink()
    expect(left=("source_damaged",))


def test_pixels_of_the_source_are_read(whole, expect):
    path = next(whole.source.glob("*/images/c.*"))
    data = bytearray(path.read_bytes())
    data[30] ^= 1
    path.write_bytes(data)
    assert check_state(whole) == []
    expect(read_data=True, left=("source_damaged",))


def test_an_old_set_beside_the_source(whole, expect):
    (whole.source / ("01ab" * 8)).mkdir()
    (whole.source / "images").mkdir()  # with `state: .` it may be the user's
    expect("source_old", naming=whole.source / ("01ab" * 8))
    assert (whole.source / "images").is_dir()


def test_what_kills_leave(whole, expect):
    folders = [
        whole.buffer, whole.frames_zarr / "frames", whole.source, whole.rounds, whole.rounds / "000002" / "state",
        whole.rounds / "000001", whole.checkpoints / "versions", whole.checkpoints / "refs", whole.checkpoints,
    ]  # fmt: skip
    for folder in folders:
        (folder / ".thing.partial").mkdir()
        (folder / ".file.1234.partial").write_text("half")
    expect(*["unfinished"] * 2 * len(folders))
    assert not list(whole.root.rglob("*.partial"))


def test_an_import_during_a_check_leaves_nothing(whole, manifest, monkeypatch, tmp_path):
    """The import begins after the check did and ends before it: its base is no leftover before a version names it."""
    base, weights, unused = tmp_path / "base", tmp_path / "weights", CheckpointRegistry.unused_bases
    save_file({"vit": np.ones(4, np.float32)}, base)
    save_file({"token": np.ones(4, np.float32)}, weights, metadata={KEY: digest_of(base)})
    seen: list[Path] = []

    def during_an_import(registry: CheckpointRegistry) -> list[Path]:
        monkeypatch.undo()
        failpoints.watch(lambda _: seen.extend(unused(registry)))
        try:
            registry.add(weights, manifest(), by="import", base=base)
        finally:
            failpoints.watch(None)
        return seen

    monkeypatch.setattr(CheckpointRegistry, "unused_bases", during_an_import)
    assert check_state(whole) == []
    assert set(seen) == {CheckpointRegistry(whole.checkpoints).bases.path(digest_of(base))}, "the check came between"


def test_repair_waits_for_nobody(whole, small):
    with whole.lock(), pytest.raises(AlreadyRunning):
        repair_state(whole)
    with FrameBuffer.open(whole, small, writable=True), pytest.raises(AlreadyRunning):
        repair_state(whole)
    assert repair_state(whole).left == []


def test_much_damage_at_once(whole, registry, sql, expect):
    """Every part is repaired, also what shows only after something else was repaired."""
    (whole.frames_zarr / "frames" / "c.1.0.0.0").unlink()
    sql("INSERT INTO leases (round, frame) VALUES (9, 2)", "DELETE FROM digests WHERE frame = 3")
    spoil(registry.ref_path("previous"))
    (whole.rounds / ".000003.partial").mkdir()
    expect("frame_missing", "lease_stale", "digest_missing", "ref_damaged", "unfinished")


def test_every_code_is_documented_with_its_severity():
    rows = dict(re.findall(r"^\| `(\w+)` \| (error|leftover) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    assert {code for code, severity in rows.items() if severity == "error"} == ERRORS
    assert {code for code, severity in rows.items() if severity == "leftover"} == LEFTOVERS


def test_a_problem_has_a_code_that_is_documented():
    with pytest.raises(ValueError, match="made_up"):
        Problem("made_up", PAGE, "detail", "remedy")
