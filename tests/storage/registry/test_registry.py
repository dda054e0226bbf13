import json
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from storage import durable
from storage.errors import CorruptCheckpoint, DurabilityLost, NotEarlier, ServingChanged, StorageError, UnknownVersion
from storage.registry.manifest import HistoryEvent, Manifest
from storage.registry.registry import CheckpointRegistry

Weights, Manifests = Callable[[str], Path], Callable[..., Manifest]


@pytest.fixture
def registry(tmp_path: Path) -> CheckpointRegistry:
    return CheckpointRegistry(tmp_path / "checkpoints")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, manifest: Manifests) -> Path:
    """A registry made once, for each test to copy."""
    folder = tmp_path_factory.mktemp("template")
    registry, path = CheckpointRegistry(folder / "checkpoints"), folder / "candidate.safetensors"
    for number in range(1, 5):
        path.write_text(f"weights {number}")
        registry.add(path, manifest(parent=number - 1 or None), by="round")
    for number in range(1, 4):
        registry.promote(number, by="gate", reason=f"better {number}", round=number)
    return registry.root


@pytest.fixture
def chain(template: Path, registry: CheckpointRegistry) -> CheckpointRegistry:
    """Versions 1 to 4, each the child of the one before; 1, 2 and 3 were promoted in turn."""
    shutil.copytree(template, registry.root)
    return registry


def served(registry: CheckpointRegistry) -> tuple[int | None, int | None]:
    serving, previous = registry.serving(), registry.ref("previous")
    return serving.version if serving else None, previous.version if previous else None


def events(registry: CheckpointRegistry) -> list[tuple[str, int | None]]:
    return [(event.event, event.version) for event in registry.history()]


def test_an_empty_registry_says_so_and_makes_nothing(registry: CheckpointRegistry):
    assert registry.versions() == [] and registry.pins() == [] and registry.history() == []
    assert served(registry) == (None, None)
    assert registry.state().rolled_back == set()
    with pytest.raises(UnknownVersion, match=r"no version 1 in .*; versions: none"):
        registry.manifest(1)
    assert not registry.root.exists()


def test_versions_are_numbered_hashed_and_complete(registry: CheckpointRegistry, weights: Weights, manifest: Manifests):
    first = registry.add(weights("one"), manifest(), by="pretrain", reason="source training")
    second = registry.add(weights("two"), manifest(parent=1, round=9), by="gate")
    assert (first.version, second.version, registry.versions()) == (1, 2, [1, 2])
    assert registry.manifest(2) == second and second.parent == 1
    assert registry.weights_path(2).read_text() == "two"
    assert first.files["model.safetensors"].size == 3
    registry.verify(1)
    assert sorted(path.name for path in registry.weights_path(1).parent.iterdir()) == [
        "manifest.json",
        "model.safetensors",
    ]
    assert events(registry) == [("added", 1), ("added", 2)]
    assert registry.history()[0].reason == "source training" and registry.history()[1].round == 9


def test_promoting_moves_serving_and_previous(chain: CheckpointRegistry):
    assert served(chain) == (3, 2)
    ref = chain.serving()
    assert ref is not None and (ref.by, ref.reason) == ("gate", "better 3")
    last = chain.history()[-1]
    assert (last.event, last.version, last.previous, last.round) == ("promoted", 3, 2, 3)
    with pytest.raises(StorageError, match="version 3 serves already"):
        chain.promote(3, by="gate", reason="")


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_text("weights 4".replace("4", "5")),
        lambda path: path.write_text("longer than before"),
        lambda path: path.unlink(),
        lambda path: (path.parent / "manifest.json").unlink(),
        lambda path: (path.parent / "manifest.json").write_text("{"),
        lambda path: (path.parent / "manifest.json").write_text((path.parents[1] / "000003/manifest.json").read_text()),
    ],
)
def test_a_damaged_version_never_serves(chain: CheckpointRegistry, damage: Callable[[Path], object]):
    damage(chain.weights_path(4))
    before = chain.history()
    with pytest.raises(CorruptCheckpoint, match="000004"):
        chain.verify(4)
    with pytest.raises(CorruptCheckpoint):
        chain.promote(4, by="gate", reason="")
    with pytest.raises(CorruptCheckpoint):
        chain.roll_back(to=4, by="operator", reason="")
    assert served(chain) == (3, 2) and chain.history() == before


def test_a_promotion_decided_against_another_version_does_not_happen(chain: CheckpointRegistry):
    before = chain.history()
    with pytest.raises(ServingChanged, match="version 3 serves, not version 2; version 4 was not promoted"):
        chain.promote(4, by="gate", reason="", expected=2)
    assert served(chain) == (3, 2) and chain.history() == before
    assert chain.promote(4, by="gate", reason="", expected=3).version == 4


def test_unknown_versions_are_named_with_those_that_exist(chain: CheckpointRegistry):
    for call in (
        lambda: chain.promote(9, by="gate", reason=""),
        lambda: chain.roll_back(to=9, by="operator", reason=""),
        lambda: chain.verify(9),
        lambda: chain.weights_path(9),
        lambda: chain.pin(9, "operator"),
        lambda: chain.released(9),
    ):
        with pytest.raises(UnknownVersion, match=r"no version 9 in .*; versions: 1, 2, 3, 4"):
            call()
    assert served(chain) == (3, 2)


def test_rolling_back_goes_one_back_each_time_and_never_forward(chain: CheckpointRegistry):
    ref = chain.roll_back(to=None, by="operator", reason="people vanish")
    assert (ref.version, ref.by, ref.reason) == (2, "operator", "people vanish")
    assert served(chain) == (2, 1)
    assert chain.state().rolled_back == {3}
    chain.roll_back(to=None, by="operator", reason="")
    assert served(chain) == (1, None)
    assert chain.state().rolled_back == {2, 3}
    with pytest.raises(
        UnknownVersion,
        match="no version served before 1 that was not rolled back; `mfmd promote N` serves any version of 2, 3, 4",
    ):
        chain.roll_back(to=None, by="operator", reason="")
    assert events(chain)[-2:] == [("rolled_back", 2), ("rolled_back", 1)]
    assert chain.history()[-1].previous == 2


def test_rolling_back_to_any_version(chain: CheckpointRegistry):
    chain.roll_back(to=1, by="operator", reason="")
    assert served(chain) == (1, None)
    chain.promote(4, by="gate", reason="")
    assert served(chain) == (4, 1)
    chain.promote(2, by="operator", reason="it was good")
    chain.promote(4, by="operator", reason="or was it?")
    assert served(chain) == (4, 2)
    chain.roll_back(to=1, by="operator", reason="no")
    assert served(chain) == (1, None)
    assert chain.state().rolled_back == {3, 4}
    with pytest.raises(StorageError, match="version 1 serves already"):
        chain.roll_back(to=1, by="operator", reason="")


def test_a_rollback_goes_back_and_names_promote_for_anywhere_else(chain: CheckpointRegistry):
    chain.roll_back(to=1, by="operator", reason="")
    before = chain.history()
    for version, why in ((4, "never served"), (3, "was rolled back from"), (2, "served, but not before version 1")):
        with pytest.raises(
            NotEarlier, match=f"version {version} did not serve before version 1; .*`mfmd promote {version}`"
        ):
            chain.roll_back(to=version, by="operator", reason=why)
    assert served(chain) == (1, None) and chain.history() == before


def test_a_promotion_by_hand_is_no_rollback(chain: CheckpointRegistry):
    """A new version served by hand leaves a good one; the next plain rollback leads back to it."""
    chain.promote(4, by="operator", reason="trained on the new camera")
    assert served(chain) == (4, 3) and not chain.state().rolled_back
    assert chain.roll_back(to=None, by="operator", reason="worse").version == 3
    assert served(chain) == (3, 2) and chain.state().rolled_back == {4}
    chain.promote(4, by="operator", reason="it was the lens")
    assert served(chain) == (4, 3) and not chain.state().rolled_back, "named by hand, it counts as good again"
    chain.promote(1, by="operator", reason="an old one")
    assert served(chain) == (1, 4)
    assert [chain.roll_back(to=None, by="operator", reason="").version for _ in range(3)] == [4, 3, 2]
    assert chain.state().rolled_back == {1, 3, 4} and served(chain) == (2, None), "1 was rolled back from"


@pytest.mark.parametrize("damage", ["garbage", None])
def test_a_promotion_by_hand_needs_no_serving_ref(chain: CheckpointRegistry, damage: str | None):
    path = chain.ref_path("serving")
    path.unlink() if damage is None else path.write_text(damage)
    with pytest.raises(StorageError, match="check --repair"):
        chain.promote(4, by="gate", reason="", expected=3)
    chain.promote(4, by="operator", reason="")
    assert served(chain) == (4, 3) and chain.history()[-1].previous == 3


def test_nothing_serves_nothing_to_roll_back(registry: CheckpointRegistry, weights: Weights, manifest: Manifests):
    registry.add(weights("one"), manifest(), by="pretrain")
    with pytest.raises(UnknownVersion, match="nothing to roll back to: no version serves yet; `mfmd promote N`"):
        registry.roll_back(to=None, by="operator", reason="")
    registry.promote(1, by="pretrain", reason="first")
    with pytest.raises(UnknownVersion, match="no version served before 1"):
        registry.roll_back(to=None, by="operator", reason="")
    assert events(registry) == [("added", 1), ("promoted", 1)]


@pytest.mark.parametrize("move", ["promote", "roll_back"])
def test_the_history_line_is_durable_before_any_ref_moves(
    chain: CheckpointRegistry, monkeypatch: pytest.MonkeyPatch, move: str
):
    def fail(path: Path, _: object) -> None:
        raise DurabilityLost(f"{path}")

    monkeypatch.setattr("storage.durable.spares.write_record", fail)
    with pytest.raises(DurabilityLost, match="previous"):
        chain.promote(4, by="gate", reason="") if move == "promote" else chain.roll_back(to=None, by="me", reason="")
    assert events(chain)[-1] == (("promoted", 4) if move == "promote" else ("rolled_back", 2))
    assert served(chain) == (3, 2), "the ref is the truth"


def test_a_history_that_cannot_be_written_moves_nothing(chain: CheckpointRegistry, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(durable, "append_line", full)
    with pytest.raises(OSError, match="No space"):
        chain.promote(4, by="gate", reason="")
    assert served(chain) == (3, 2)


@pytest.mark.parametrize("move", ["promote", "roll_back", "pin", "shadow"])
def test_a_ref_that_cannot_be_written_leaves_no_line_that_says_it_moved(
    chain: CheckpointRegistry, monkeypatch: pytest.MonkeyPatch, move: str
):
    def full(path: Path, _: object) -> None:
        raise OSError(28, "No space left on device", str(path))

    moves = {
        "promote": lambda: chain.promote(4, by="gate", reason=""),
        "roll_back": lambda: chain.roll_back(to=None, by="me", reason=""),
        "pin": lambda: chain.pin(1, by="me"),
        "shadow": lambda: chain.set_shadow(4, by="me", reason=""),
    }
    before = (chain.root / "history.jsonl").read_bytes()
    monkeypatch.setattr("storage.durable.spares.write_record", full)
    with pytest.raises(OSError, match="No space"):
        moves[move]()
    assert (chain.root / "history.jsonl").read_bytes() == before
    assert served(chain) == (3, 2) and chain.state().rolled_back == set()
    monkeypatch.undo()
    moves[move]()
    assert len(chain.history()) == len(before.splitlines()) + 1


def test_a_torn_history_line_is_tolerated(chain: CheckpointRegistry):
    history = chain.root / "history.jsonl"
    history.write_text(history.read_text() + '{"at": 12.5, "event": "promo')
    count = len(chain.history())
    chain.roll_back(to=None, by="operator", reason="")
    assert len(chain.history()) == count + 1
    assert chain.state().rolled_back == {3} and served(chain) == (2, 1)


def test_events_of_the_gate_are_recorded(registry: CheckpointRegistry):
    event = HistoryEvent(at=5.0, event="rejected", version=None, round=3, by="gate", reason="sky vanished\nwholly")
    registry.record(event)
    assert registry.history() == [event]
    assert len((registry.root / "history.jsonl").read_text().splitlines()) == 1


def test_refs_are_json_for_people_and_a_broken_one_is_named(chain: CheckpointRegistry):
    path = chain.root / "refs" / "serving"
    assert json.loads(path.read_text())["version"] == 3
    path.write_text("3")
    with pytest.raises(StorageError, match="refs/serving: not a ref"):
        chain.serving()
    path.unlink()
    assert chain.roll_back(to=3, by="operator", reason="ref was broken").version == 3


def test_pins(chain: CheckpointRegistry):
    chain.pin(4, "operator", "for the audit")
    chain.pin(2, "operator")
    chain.pin(2, "operator")
    assert chain.pins() == [2, 4]
    chain.unpin(2, "operator")
    assert chain.pins() == [4]
    with pytest.raises(UnknownVersion, match="version 2 is not pinned; pinned: 4"):
        chain.unpin(2, "operator")
    assert ("pinned", 4) in events(chain) and events(chain)[-1] == ("unpinned", 2)


def test_retention_spares_serving_previous_pinned_and_released(
    registry: CheckpointRegistry, weights: Weights, manifest: Manifests
):
    for number in range(1, 9):
        registry.add(weights(f"weights {number}"), manifest(parent=number - 1 or None), by="round")
    registry.promote(5, by="gate", reason="")
    registry.promote(6, by="gate", reason="")
    registry.pin(3, "operator")
    assert registry.prune(1) == [2, 4, 7]
    assert registry.versions() == [1, 3, 5, 6, 8]
    assert registry.prune(1) == []
    assert registry.prune(0) == [8]
    for version in registry.versions():
        registry.verify(version)
    assert events(registry)[-1] == ("pruned", 8)
    assert sorted(path.name for path in (registry.root / "versions").iterdir()) == [
        "000001",
        "000003",
        "000005",
        "000006",
    ]


def test_lineage_and_numbers_survive_pruning(registry: CheckpointRegistry, weights: Weights, manifest: Manifests):
    for number in range(1, 7):
        registry.add(weights(f"{number}"), manifest(parent=number - 1 or None), by="round")
    registry.promote(5, by="gate", reason="")
    assert registry.released(5) == 1
    assert registry.prune(0) == [2, 3, 4, 6]
    assert registry.released(5) == 1, "the manifests of 2, 3 and 4 are kept"
    assert registry.released(1) == 1
    (registry.root / "history.jsonl").unlink()
    assert registry.add(weights("7"), manifest(parent=5), by="round").version == 7, "6 is not used twice"


def test_an_import_is_its_own_released_model(chain: CheckpointRegistry, weights: Weights, manifest: Manifests):
    chain.add(weights("imported"), manifest(), by="import")
    assert chain.released(5) == 5


def test_what_a_killed_add_left_is_removed(chain: CheckpointRegistry, weights: Weights, manifest: Manifests):
    left = chain.root / "versions" / ".000005.partial"
    left.mkdir()
    (left / "model.safetensors").write_text("half")
    assert chain.versions() == [1, 2, 3, 4]
    assert chain.add(weights("five"), manifest(parent=4), by="round").version == 5
    assert not left.exists()


def test_writers_take_turns(registry: CheckpointRegistry, weights: Weights, manifest: Manifests):
    path = weights("shared")
    threads = [threading.Thread(target=registry.add, args=(path, manifest(), "round")) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert registry.versions() == list(range(1, 9))


MOVES = """
import sys
from pathlib import Path
from storage.registry.manifest import Manifest
from storage.registry.registry import CheckpointRegistry
registry = CheckpointRegistry(Path(sys.argv[1]))
weights, manifest = Path(sys.argv[2]), Manifest.model_validate_json(sys.argv[3])
while True:
    version = registry.add(weights, manifest, by="round").version
    registry.promote(version, by="gate", reason="")
    if version % 3 == 0:
        registry.roll_back(to=None, by="operator", reason="")
    registry.prune(2)
    print(registry.serving().version, flush=True)
"""


def test_killed_at_any_moment_the_serving_ref_names_a_whole_version(
    registry: CheckpointRegistry, weights: Weights, manifest: Manifests
):
    moments, path, served_last = random.Random(1), weights("x" * 200_000), 0
    for _ in range(3):
        command = [sys.executable, "-c", MOVES, str(registry.root), str(path), manifest().model_dump_json()]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            answers = [writer.stdout.readline() for _ in range(3)]
            killer = threading.Timer(moments.uniform(0.0, 0.05), writer.kill)
            killer.start()
            answers += writer.stdout.readlines()
            killer.join()
        serving = registry.serving()
        assert serving is not None
        registry.verify(serving.version)
        whole = [int(line) for line in answers if line.endswith("\n")]
        assert serving.version >= max(served_last, whole[-1]) - 1
        for version in registry.versions():
            registry.verify(version)
        served_last = serving.version
    registry.add(path, manifest(), by="round")
    assert not list((registry.root / "versions").glob(".*"))
