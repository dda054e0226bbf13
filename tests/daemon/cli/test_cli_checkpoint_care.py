"""`mfmd checkpoints diff|verify|prune` on a real registry."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from configs.settings import Settings
from daemon.exit_codes import ExitCode
from storage.layout import StateLayout
from storage.registry.manifest import Manifest
from storage.registry.registry import CheckpointRegistry


def version(registry: CheckpointRegistry, under: Settings, folder: Path, parent: int | None, **more: object) -> int:
    """Add a version whose decoder is `decoder`, made with the settings `made`."""
    path, decoder = folder / "weights.safetensors", float(str(more.pop("decoder", 1.0)))
    save_file({"encoder.w": np.ones((2, 3), np.float32), "decoder.w": np.full(4, decoder, np.float32)}, path)
    manifest = Manifest(
        origin="round" if parent else "pretrain",
        parent=parent,
        created=time.time(),
        network=under.network.model_dump(mode="json"),
        classes=tuple(item.model_dump(mode="json") for item in under.classes),
        input_height=48,
        input_width=64,
        scores={"source_miou": 0.5 + decoder / 100},
    )
    return registry.add(path, manifest.model_copy(update=more), by="test").version


@pytest.fixture
def two(settings: Settings, tmp_path: Path) -> CheckpointRegistry:
    """Versions 1 and 2 with tensors."""
    registry, values = CheckpointRegistry(StateLayout(settings.state).checkpoints), settings.model_dump(mode="json")
    changed = values | {"round": values["round"] | {"steps": 7}}
    version(registry, settings, tmp_path, None, settings=values, seed=1)
    version(registry, settings, tmp_path, 1, settings=changed, decoder=3.0, seed=4)
    registry.promote(1, by="pretrain", reason="first")
    return registry


def test_diff_tells_settings_manifest_scores_and_each_tensor(mfmd, two: CheckpointRegistry) -> None:
    found = json.loads(mfmd("checkpoints", "diff", "1", "2", "--json").out)
    assert found["settings"].keys() == {"round.steps"} and found["settings"]["round.steps"]["after"] == 7
    assert found["manifest"]["seed"] == {"before": 1, "after": 4}
    assert found["manifest"]["parent"] == {"before": None, "after": 1}
    assert found["scores"] == {"source_miou": {"before": 0.51, "after": 0.53}}
    assert found["changed"] == [{"name": "decoder.w", "shape": [4], "relative": 2.0, "note": ""}]
    assert found["tensors"] == 2 and found["relative"] == pytest.approx(2.0 / 2**0.5)
    text = mfmd("checkpoints", "diff", "1", "2").out
    assert "round.steps" in text and "decoder.w" in text and "1 of 2 differ" in text and "encoder.w" not in text


def test_a_version_does_not_differ_from_itself(mfmd, two: CheckpointRegistry) -> None:
    found = json.loads(mfmd("checkpoints", "diff", "2", "2", "--json").out)
    assert (found["settings"], found["manifest"], found["scores"], found["changed"]) == ({}, {}, {}, [])
    assert "settings: no difference" in mfmd("checkpoints", "diff", "2", "2").out


def test_diff_of_versions_without_settings_says_so(mfmd, two: CheckpointRegistry, settings, tmp_path: Path) -> None:
    version(two, settings, tmp_path, 2, decoder=3.0)
    answer = mfmd("checkpoints", "diff", "2", "3")
    assert answer.code == ExitCode.OK
    assert "settings: not recorded in both manifests" in answer.out and "0 of 2 differ" in answer.out


def test_diff_shows_as_many_tensors_as_are_asked_for(mfmd, two: CheckpointRegistry, settings, tmp_path: Path) -> None:
    path = tmp_path / "more.safetensors"
    save_file({f"layer.{number}": np.ones(2, np.float32) for number in range(30)}, path)
    two.add(path, two.manifest(1), by="test")
    assert "and 12 more: --tensors 0 shows all" in mfmd("checkpoints", "diff", "1", "3").out
    assert mfmd("checkpoints", "diff", "1", "3", "--tensors", "0").out.count("only in the second") == 30


def test_diff_names_what_is_not_there_or_damaged(mfmd, two: CheckpointRegistry) -> None:
    assert mfmd("checkpoints", "diff", "1", "9").code == ExitCode.NO_CHECKPOINT
    two.weights_path(2).write_bytes(b"damaged")
    answer = mfmd("checkpoints", "diff", "1", "2")
    assert answer.code == ExitCode.FAILURE and "error[checkpoint_corrupt]" in answer.err


def test_verify_hashes_every_version_and_fails_on_damage(mfmd, registry: CheckpointRegistry) -> None:
    answer = mfmd("checkpoints", "verify")
    assert answer.code == ExitCode.OK
    assert answer.out == "Version 1: ok\nVersion 2: ok\nVersion 3: ok\n"
    path = registry.weights_path(2)
    path.write_bytes(path.read_bytes().replace(b"w", b"v"))
    answer = mfmd("checkpoints", "verify", "--json")
    assert answer.code == ExitCode.FAILURE
    assert [row["ok"] for row in json.loads(answer.out)] == [True, False, True]
    assert "SHA-256" in json.loads(answer.out)[1]["damage"]
    assert mfmd("checkpoints", "verify", "1", "3").code == ExitCode.OK
    assert mfmd("checkpoints", "verify", "9").code == ExitCode.NO_CHECKPOINT


def test_prune_spares_what_is_needed_and_says_before_what_it_would_do(mfmd, registry: CheckpointRegistry) -> None:
    for number in (4, 5):
        registry.add(registry.weights_path(1), registry.manifest(3), by="test")
        assert registry.versions()[-1] == number
    registry.pin(4, by="operator")
    answer = json.loads(mfmd("checkpoints", "prune", "--keep", "0", "--dry-run", "--json").out)
    assert answer == {"removed": [3, 5], "dry_run": True, "versions": [1, 2, 3, 4, 5]}
    assert mfmd("checkpoints", "prune", "--keep", "1").out == "Removed versions: 3.\n"
    assert registry.versions() == [1, 2, 4, 5]
    assert (registry.history()[-1].event, registry.history()[-1].by) == ("pruned", "operator")
    assert mfmd("checkpoints", "prune").out == "Removed versions: none.\n", (
        "registry.keep_versions is more than there are"
    )


def test_prune_takes_rejected_candidates_before_what_served(mfmd, registry: CheckpointRegistry) -> None:
    registry.promote(3, by="gate", reason="better")
    for number in range(4, 9):
        candidate = registry.manifest(3).model_copy(update={"parent": 3, "round": number})
        registry.add(registry.weights_path(3), candidate, by="gate")
    registry.promote(8, by="gate", reason="better")
    assert mfmd("checkpoints", "prune", "--keep", "2").out == "Removed versions: 4, 5.\n"
    assert mfmd("checkpoints", "prune", "--keep", "1").out == "Removed versions: 6.\n"
    assert registry.versions() == [1, 2, 3, 7, 8], "1 is the released model, 2 served, 3 is previous"


def test_pins_are_told_to_programs(mfmd, registry: CheckpointRegistry) -> None:
    assert json.loads(mfmd("checkpoints", "pin", "3", "--json").out) == {"pinned": [3]}
    assert json.loads(mfmd("checkpoints", "unpin", "3", "--json").out) == {"pinned": []}
