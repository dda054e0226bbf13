"""Promotions and rollbacks that die at every durable step: history first, the ref last, and what comes after."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from storage import failpoints
from storage.errors import ServingChanged, StorageError, UnknownVersion
from storage.registry.manifest import Manifest
from storage.registry.registry import CheckpointRegistry

Move = Callable[[CheckpointRegistry], object]
MOVES: dict[str, Move] = {
    "promote": lambda registry: registry.promote(4, by="gate", reason="better"),
    "by hand": lambda registry: registry.promote(4, by="operator", reason="look"),
    "roll_back": lambda registry: registry.roll_back(to=None, by="operator", reason="worse"),
}


class Died(BaseException):
    """The process ends here."""


@pytest.fixture
def chain(
    tmp_path: Path, weights: Callable[[str], Path], manifest: Callable[..., Manifest]
) -> Iterator[CheckpointRegistry]:
    """Versions 1 to 4; 1, 2 and 3 were promoted in turn."""
    registry = CheckpointRegistry(tmp_path / "checkpoints")
    for number in range(1, 5):
        registry.add(weights(f"weights {number}"), manifest(parent=number - 1 or None), by="round")
    for number in range(1, 4):
        registry.promote(number, by="gate", reason="")
    yield registry
    failpoints.watch(None)


def serving(registry: CheckpointRegistry) -> int:
    ref = registry.serving()
    assert ref is not None
    registry.verify(ref.version)
    return ref.version


def dies(registry: CheckpointRegistry, move: Move, step: int) -> bool:
    """Whether the move died at its `step`-th durable step; false when it has fewer."""
    left = step

    def count(_: str) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise Died

    failpoints.watch(count)
    try:
        move(registry)
    except Died:
        return True
    finally:
        failpoints.watch(None)
    return False


@pytest.mark.parametrize("name", MOVES)
def test_the_history_line_is_on_the_disk_before_a_ref_changes(chain: CheckpointRegistry, name: str):
    seen: list[tuple[str, int, int]] = []
    before = len(chain.history())
    failpoints.watch(lambda place: seen.append((place, len(chain.history()) - before, serving(chain))))
    MOVES[name](chain)
    failpoints.watch(None)
    places = [place for place, _, _ in seen]
    synced, first_ref = places.index("line.synced"), places.index("file.written")
    assert synced < first_ref, "a ref is written only after the line is fsynced"
    moved = next(index for index, (_, _, version) in enumerate(seen) if version != 3)
    assert first_ref < moved and seen[moved][0] == "file.renamed"
    assert all(lines == 1 for place, lines, _ in seen[places.index("line.written") :])
    assert len(chain.history()) == before + 1


@pytest.mark.parametrize("name", MOVES)
def test_at_every_step_a_whole_version_serves_and_a_rollback_leads_to_the_one_before(
    chain: CheckpointRegistry, name: str, tmp_path: Path
):
    """The second rollback is the operator's answer to one that was killed: it must not lead one version further."""
    outcomes = set()
    for step in range(1, 100):
        copy = CheckpointRegistry(tmp_path / f"{step}")
        shutil.copytree(chain.root, copy.root)
        if not dies(copy, MOVES[name], step):
            break
        now = serving(copy)
        outcomes.add(now)
        copy.prune(0)  # must spare what a rollback needs
        assert copy.roll_back(to=None, by="operator", reason="again").version == now - 1
        assert serving(copy) == now - 1
        assert now in copy.state().rolled_back
    assert step > 8
    assert outcomes == {3, 2 if name == "roll_back" else 4}


def test_a_rollback_that_was_decided_about_another_version_does_not_happen(chain: CheckpointRegistry):
    before = chain.history()
    with pytest.raises(ServingChanged, match="version 3 serves, not version 2; nothing was rolled back"):
        chain.roll_back(to=None, by="operator", reason="", expected=2)
    assert (serving(chain), chain.history()) == (3, before)
    assert chain.roll_back(to=None, by="operator", reason="", expected=3).version == 2


def test_the_gate_never_promotes_what_was_rolled_back_from_and_an_operator_may(chain: CheckpointRegistry):
    chain.roll_back(to=None, by="operator", reason="worse")
    with pytest.raises(ServingChanged, match="version 3 was rolled back; it was not promoted again"):
        chain.promote(3, by="gate", reason="", expected=2, refuse_rolled_back=True)
    assert serving(chain) == 2
    chain.promote(3, by="operator", reason="it was the camera", expected=2)
    assert serving(chain) == 3 and not chain.state().rolled_back


def test_a_repair_does_not_bring_back_what_was_rolled_back_from(chain: CheckpointRegistry):
    chain.promote(4, by="gate", reason="")
    chain.roll_back(to=3, by="operator", reason="4 is bad")
    chain.weights_path(3).write_text("damaged")
    assert chain.restore(by="repair", reason="").version == 2
    for version in (1, 2):
        chain.weights_path(version).write_text("damaged")
    with pytest.raises(UnknownVersion, match="was not rolled back is intact; `mfmd promote N`"):
        chain.restore(by="repair", reason="")


@pytest.mark.parametrize("damage", ["garbage", "gone"])
def test_a_rollback_to_a_version_needs_no_serving_ref(chain: CheckpointRegistry, damage: str):
    if damage == "gone":
        chain.ref_path("serving").unlink()
    else:
        chain.ref_path("serving").write_text(damage)
    assert chain.roll_back(to=2, by="operator", reason="3 is bad").version == 2
    assert serving(chain) == 2 and chain.state().rolled_back == {3}, "what served by the history was rolled back from"
    previous = chain.ref("previous")
    assert previous is not None and previous.version == 1


def test_a_rollback_that_depends_on_what_serves_wants_the_ref(chain: CheckpointRegistry):
    chain.ref_path("serving").write_text("garbage")
    for to, expected in ((None, None), (2, 3)):
        with pytest.raises(StorageError, match="`mfmd check --repair` rewrites it"):
            chain.roll_back(to=to, by="operator", reason="", expected=expected)
    assert chain.state().rolled_back == set()


def test_a_lost_history_leaves_the_ref_to_say_where_a_rollback_leads(chain: CheckpointRegistry):
    (chain.root / "history.jsonl").unlink()
    assert chain.roll_back(to=None, by="operator", reason="").version == 2


def test_a_shadow_is_taken_over_only_from_who_may(chain: CheckpointRegistry):
    assert chain.set_shadow(4, by="gate", reason="candidate", over="gate")
    ref = chain.ref("shadow")
    assert ref and (ref.version, ref.by, ref.reason) == (4, "gate", "candidate")
    assert chain.set_shadow(1, by="operator", reason="look")
    before = chain.history()
    assert not chain.set_shadow(4, by="gate", reason="", over="gate")
    assert not chain.set_shadow(None, by="gate", reason="", over="gate")
    ref = chain.ref("shadow")
    assert ref and (ref.version, chain.history()) == (1, before)
    assert chain.set_shadow(None, by="operator", reason="seen")
    assert chain.ref("shadow") is None
    events = [(item.event, item.version, item.by) for item in chain.history()[-3:]]
    assert events == [
        ("shadow_started", 4, "gate"),
        ("shadow_started", 1, "operator"),
        ("shadow_ended", 1, "operator"),
    ]
    assert chain.set_shadow(None, by="operator", reason="again") and len(chain.history()) == len(before) + 1
    assert (serving(chain), chain.state().rolled_back) == (3, set()), (
        "what serves and where a rollback leads did not move"
    )


def test_a_verdict_that_comes_later_is_all_that_changes_in_a_version(chain: CheckpointRegistry):
    before = chain.manifest(4)
    (chain.weights_path(4).parent / ".manifest.json.1234.partial").write_text("killed")
    chain.judged(4, {"decision": "rejected"})
    assert chain.manifest(4) == before.model_copy(update={"verdict": {"decision": "rejected"}})
    assert sorted(path.name for path in chain.weights_path(4).parent.iterdir()) == [
        "manifest.json",
        "model.safetensors",
    ]
    chain.verify(4)
    with pytest.raises(UnknownVersion):
        chain.judged(9, {})
