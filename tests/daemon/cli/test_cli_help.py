"""Help, documentation of every command, and how little of the project the quick ones load."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from daemon.cli.app import app
from daemon.exit_codes import ExitCode
from storage.registry.registry import CheckpointRegistry

DOCS = Path(__file__).parents[3] / "docs"
EVERYWHERE = {"--config", "--json", "--help", "--log-level", "--version", "--install-completion", "--show-completion"}
"""Options explained once, at the top of docs/reference/commands.md."""
SLOW_TO_LOAD = {"torch", "accelerate", "zarr", "fastapi", "uvicorn", "httpx", "watchdog", "PIL"}


def _commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command below `command` with the words that name it."""
    for name, inner in getattr(command, "commands", {}).items():
        yield (*path, name), inner
        yield from _commands(inner, (*path, name))


COMMANDS = dict(_commands(typer.main.get_command(app)))
VISIBLE = {path: command for path, command in COMMANDS.items() if not command.hidden}


def test_the_commands_of_the_issue_are_there() -> None:
    top = {path[0] for path in VISIBLE}
    assert top == {
        "init", "pretrain", "import", "export", "frames", "run", "reload", "serve", "masks", "adapt", "predict",
        "evaluate", "status", "check", "checkpoints", "promote", "rollback", "refused", "buffer", "config", "doctor",
        "demo", "conditions", "approve", "reject", "explain", "pause", "resume",
        "canary", "backup", "restore",
    }  # fmt: skip
    assert {path[1] for path in VISIBLE if path[0] == "checkpoints" and len(path) > 1} == {
        "shadow",
        "unshadow",
        "list",
        "show",
        "diff",
        "verify",
        "prune",
        "pin",
        "unpin",
    }
    assert {path[1] for path in VISIBLE if path[0] == "buffer" and len(path) > 1} == {
        "info",
        "export",
        "resize",
        "compact",
    }
    assert {path[1] for path in VISIBLE if path[0] == "config" and len(path) > 1} == {"validate", "show", "schema"}
    assert ("observe",) in COMMANDS and ("observe",) not in VISIBLE


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_help_shows_an_example(mfmd, path: tuple[str, ...]) -> None:
    answer = mfmd(*path, "--help")
    assert answer.code == ExitCode.OK
    assert "Example: " in answer.out and f"mfmd {' '.join(path)}" in answer.out


@pytest.mark.parametrize("path", VISIBLE, ids=" ".join)
def test_command_and_its_options_are_documented(path: tuple[str, ...]) -> None:
    page = (DOCS / "reference" / "commands.md").read_text(encoding="utf-8")
    assert f"mfmd {' '.join(path)}" in page
    options = {name for param in VISIBLE[path].params for name in param.opts if name.startswith("--")}
    assert all(option in page for option in options | EVERYWHERE)


def test_every_exit_code_is_documented() -> None:
    page = (DOCS / "reference" / "commands.md").read_text(encoding="utf-8")
    for code in ExitCode:
        assert f"\n| {code.value} | " in page


def _loaded(*arguments: str, cwd: Path) -> tuple[set[str], str]:
    """Top-level modules that a whole command has loaded when it ends, and what it printed."""
    code = (
        "import atexit, sys\n"
        "atexit.register(lambda: print(*{name.split('.')[0] for name in sys.modules}, file=sys.stderr))\n"
        "from daemon.cli import main\nsys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=cwd, capture_output=True, text=True, check=True)
    return set(done.stderr.split()), done.stdout


def test_help_loads_little(tmp_path: Path) -> None:
    """That is what makes it quick; how quick, `benchmarks/cli_start.py` says."""
    loaded, output = _loaded("--help", cwd=tmp_path)
    assert "Usage" in output and "typer" in loaded
    assert not loaded & {*SLOW_TO_LOAD, "pydantic", "numpy", "yaml"}


def test_status_loads_little(config: Path, registry: CheckpointRegistry) -> None:
    loaded, output = _loaded("status", "--json", cwd=config.parent)
    assert json.loads(output)["serving"]["version"] == 2 and "pydantic" in loaded
    assert not loaded & SLOW_TO_LOAD
