"""`mfmd backup` and `mfmd restore`, and the refusal of a state directory of a newer mfmd by every command."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from daemon.doctor.disk import examine_state
from storage.layout import StateLayout

OLD = Path(__file__).parents[2] / "storage" / "directory" / "format_1.tar.xz"
OLD_CONFIG = """\
classes: [ground, sky, thing]
watch: {folder: drop}
buffer: {height: 32, width: 32, capacity_frames: 16, reserve_bytes: 0, advanced: {tile: 32}}
serving: {device: cpu, threads: 1}
"""
"""What the state directory in `OLD` was made with."""

NEWER = '{"format": 9, "mfmd": "7.1.0", "new": 1}'
COMMANDS = (
    "pretrain", "import model", "doctor", "run", "reload", "serve", "masks", "observe", "adapt",
    "predict mfmd.yaml --out out", "evaluate --images a --labels b",
    "export --format onnx --out out", "frames", "status", "check", "check --repair",
    "checkpoints list", "checkpoints verify", "promote 1", "rollback", "explain 1", "conditions list", "approve 1",
    "reject 1", "canary list", "refused list", "buffer info", "buffer compact", "config show",
    "backup b.tar", "restore b.tar",
)  # fmt: skip


def _content(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_newer_state_directory_is_refused_and_nothing_is_touched(mfmd, registry, settings, command: str) -> None:
    layout = StateLayout(settings.state)
    layout.format_file.write_text(NEWER)
    before = _content(layout.root)
    answer = mfmd(*command.split())
    assert (answer.code, answer.out) == (1, "")
    assert answer.err.startswith(f"error[format_newer]: {layout.format_file}: format 9 of mfmd 7.1.0; this is mfmd ")
    assert "use mfmd 7.1.0 or later" in answer.err
    assert _content(layout.root) == before


def test_a_damaged_format_ends_the_start_and_doctor_says_so(mfmd, registry, settings) -> None:
    StateLayout(settings.state).format_file.write_text("{")
    answer = mfmd("run")
    assert answer.code == 1 and "format.json: not the format of a state directory; `mfmd check --repair`" in answer.err
    (found,) = [item for item in examine_state(settings) if item.name == "format"]
    assert "check --repair" in found.remedy
    assert mfmd("check", "--repair").code == 0
    assert not [item for item in examine_state(settings) if item.name == "format"]


def test_a_backup_is_written_beside_a_daemon_and_restored_without_one(mfmd, registry, settings, tmp_path: Path) -> None:
    layout, out = StateLayout(settings.state), tmp_path / "b.tar"
    with layout.lock():
        answer = mfmd("backup", out, "--json")
        assert (answer.code, json.loads(answer.out)["file"]) == (0, str(out)) and "writing" in answer.err
        refused = mfmd("restore", out)
        assert refused.code == 4 and "already_running" in refused.err
    assert out.stat().st_mode & 0o777 == 0o640, "frames are private images"
    again = mfmd("backup", out)
    assert again.code == 1 and again.err.endswith(f"error[backup_refused]: {out} exists; name a new file\n")
    nowhere = mfmd("backup", tmp_path / "nowhere" / "b.tar")
    assert "nowhere: no such folder; make it, or mount its disk" in nowhere.err
    inside = mfmd("backup", settings.watch.folder / "b.tar")
    assert inside.code == 1 and "error[export_refused]" in inside.err
    refused = mfmd("restore", out)
    assert refused.code == 1 and "error[backup_refused]" in refused.err and "not empty (checkpoints" in refused.err
    layout.root.rename(tmp_path / "lost")
    answer = mfmd("restore", out)
    assert answer.code == 0 and answer.out.endswith("files restored. Next: mfmd check, then mfmd run\n")
    assert mfmd("check", "--read-data").out == "No problem found.\n"
    assert registry.serving_version() == 2


def test_a_state_directory_of_an_earlier_mfmd_is_backed_up_restored_and_predicts(mfmd, config: Path) -> None:
    config.write_text(OLD_CONFIG)
    with tarfile.open(OLD) as tar:
        tar.extractall(config.parent, filter="data")
    Image.fromarray(np.arange(32 * 32 * 3, dtype=np.uint8).reshape(32, 32, 3)).save("street.png")
    assert mfmd("predict", "street.png", "--out", "before").code == 0
    assert mfmd("backup", "b.tar").code == 0
    Path("state").rename("old")
    assert mfmd("restore", "b.tar").code == 0
    assert mfmd("predict", "street.png", "--out", "after").code == 0
    assert Path("after/street.png").read_bytes() == Path("before/street.png").read_bytes()
    assert [row["version"] for row in json.loads(mfmd("checkpoints", "list", "--json").out)] == [1, 2]
