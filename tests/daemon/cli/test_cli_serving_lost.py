"""With refs/serving gone or damaged, every command says so and names the repair; none names `mfmd pretrain`."""

import shutil
from pathlib import Path

import pytest

from daemon.exit_codes import ExitCode
from storage.layout import StateLayout
from storage.registry.registry import CheckpointRegistry

COMMANDS = (
    "adapt",
    "doctor",
    "predict image.png --out masks",
    "evaluate --images drop --labels drop",
    "export --format torch-export --out exported",
    "status",
    "status --json",
    "checkpoints list",
    "checkpoints show 2",
    "checkpoints prune",
    "rollback",
    "rollback --expected 2",
    "check",
)
SHOWS_ALL_THE_SAME = ("checkpoints list", "checkpoints show 2", "status", "status --json")
"""Commands that show all the same what there is."""
SLOW_AGAIN = pytest.mark.nightly
"""`doctor` tries out the whole machine every time; once in `make test`."""


@pytest.mark.parametrize(
    ("command", "damage"),
    [
        pytest.param(command, damage, marks=SLOW_AGAIN if (command, damage) == ("doctor", "garbage") else ())
        for command in COMMANDS
        for damage in ("gone", "garbage")
    ],
)
def test_every_command_names_the_repair(mfmd, registry: CheckpointRegistry, command: str, damage: str) -> None:
    path = registry.ref_path("serving")
    path.unlink() if damage == "gone" else path.write_text("garbage")
    answer = mfmd(*command.split())
    told = answer.out + answer.err
    assert "refs/serving" in told and "mfmd check --repair" in told
    assert "mfmd pretrain" not in told and "no version serves" not in told
    assert (answer.code == ExitCode.OK) == (command in SHOWS_ALL_THE_SAME)


def test_after_the_repair_the_same_version_serves(mfmd, registry: CheckpointRegistry, config: Path) -> None:
    before = registry.serving()
    registry.ref_path("serving").unlink()
    StateLayout(registry.root.parent).create()
    assert mfmd("check", "--repair").code == ExitCode.OK
    after = registry.serving()
    assert before is not None and after is not None and after.version == before.version


@pytest.mark.parametrize(
    "command",
    [
        "adapt",
        pytest.param("doctor", marks=SLOW_AGAIN),
        *COMMANDS[3:7],
        "checkpoints list",
    ],  # `run` starts: it may be promoted
)
def test_every_command_names_what_to_do_when_the_serving_version_is_gone(
    mfmd, registry: CheckpointRegistry, command: str
) -> None:
    shutil.rmtree(registry.folder(2))
    answer = mfmd(*command.split())
    told = answer.out + answer.err
    assert (
        f"version 2 should serve, but its folder {registry.folder(2)} is missing" in told and "mfmd promote N" in told
    )
    assert "mfmd pretrain" not in told


def test_reload_without_a_daemon_says_so(mfmd, registry: CheckpointRegistry) -> None:
    answer = mfmd("reload")
    assert answer.code == ExitCode.FAILURE
    assert "error[no_daemon]" in answer.err and "mfmd run" in answer.err and "try again" not in answer.err
