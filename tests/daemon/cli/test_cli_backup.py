"""A state directory of a newer mfmd is refused by every command."""

from pathlib import Path

import pytest

from storage.layout import StateLayout

NEWER = '{"format": 9, "mfmd": "7.1.0", "new": 1}'
COMMANDS = (
    "pretrain", "import model", "doctor", "run", "reload", "serve", "masks", "observe", "adapt",
    "predict mfmd.yaml --out out", "evaluate --images a --labels b",
    "export --format onnx --out out", "frames", "status", "check", "check --repair",
    "checkpoints list", "checkpoints verify", "promote 1", "rollback", "explain 1", "conditions list", "approve 1",
    "reject 1", "canary list", "refused list", "buffer info", "buffer compact", "config show",
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
