"""`mfmd config`, global options, exit codes and the one-line errors."""

import json
import re
from pathlib import Path

import pytest
import yaml

from configs.class_list import shipped
from configs.load import load_settings
from daemon.cli import in_order, main
from daemon.cli.settings.page import render, sections
from daemon.exit_codes import ExitCode

DOCS = Path(__file__).parents[3] / "docs"


def test_valid_configuration(mfmd, config: Path) -> None:
    assert mfmd("config", "validate").out.strip() == "mfmd.yaml: valid"
    answer = mfmd("config", "validate", config, "--json")
    assert json.loads(answer.out) == {"file": str(config), "valid": True}


def test_wrong_configuration_is_one_line_and_exit_2_for_every_command(mfmd, config: Path) -> None:
    config.write_text("classes: demo\nwatch: {folder: drop, rescan: 3}\n", encoding="utf-8")
    line = "mfmd.yaml: watch.rescan: unknown key; did you mean 'rescan_seconds'?"
    commands = ["config validate", "config show", "status", "rollback", "checkpoints list", "adapt", "run", "serve"]
    commands += ["pretrain", "import x", "predict x.png --out o", "evaluate --images a --labels b", "observe"]
    for command in commands:
        answer = mfmd(*command.split())
        assert answer.code == ExitCode.USAGE, command
        assert answer.err == f"error[config_invalid]: {line}\n"
        assert answer.out == ""


def test_show_prints_what_is_in_force_and_masks_secrets(mfmd, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MFMD_CONTROL__TOKEN", "hunter2")
    monkeypatch.setenv("MFMD_ROUND__STEPS", "7")
    answer = mfmd("config", "show")
    shown = yaml.safe_load(answer.out)
    assert shown["round"]["steps"] == 7 and shown["buffer"]["height"] == 48
    assert shown == json.loads(mfmd("config", "show", "--json").out)
    assert "hunter2" not in answer.out and shown["control"]["token"]


def test_schema_knows_the_fields_their_limits_and_class_list_names(mfmd) -> None:
    schema = json.loads(mfmd("config", "schema").out)
    assert {"type": "string", "enum": [*shipped("class_lists")]} in schema["properties"]["classes"]["anyOf"]
    assert schema["additionalProperties"] is False
    steps = schema["$defs"]["RoundSettings"]["properties"]["steps"]
    assert steps["minimum"] == 1 and "budget" in steps["description"]


def test_configuration_page_is_in_step(mfmd) -> None:
    page = (DOCS / "reference" / "configuration.md").read_text(encoding="utf-8")
    assert page == mfmd("config", "schema", "--markdown").out == render(), (
        "docs/reference/configuration.md is old: mfmd config schema --markdown > docs/reference/configuration.md"
    )


def test_an_operator_sees_at_most_120_settings_and_each_is_explained() -> None:
    settings = [setting for section in sections() for setting in section.settings]
    assert len({setting.path for setting in settings}) == len(settings), "each setting stands in the page once"
    assert all(setting.description for setting in settings)
    assert sum(setting.visible for setting in settings) <= 120


def test_the_page_marks_what_a_reload_changes() -> None:
    marked = {line.split("`")[1] for line in render().splitlines() if " (live) |" in line}
    assert {"stability_seconds", "rescan_seconds", "confidence", "new_frames", "level"} <= marked
    assert not {"folder", "state", "port", "token"} & marked


def test_the_least_configuration_in_the_page_works(tmp_path: Path) -> None:
    [block] = re.findall(r"```yaml\n(.*?)```", render(), flags=re.DOTALL)
    path = tmp_path / "mfmd.yaml"
    path.write_text(block, encoding="utf-8")
    assert len(block.splitlines()) <= 10
    assert load_settings(path).source is not None


def test_log_level_may_stand_anywhere_and_shows_tracebacks(mfmd) -> None:
    for arguments in (
        ["--log-level", "debug", "checkpoints", "show", "9"],
        ["checkpoints", "show", "9", "--log-level=debug"],
    ):
        answer = mfmd(*arguments)
        assert answer.code == ExitCode.NO_CHECKPOINT and "Traceback" in answer.err, arguments
        assert "error[version_unknown]" in answer.err.splitlines()[-1]
    assert mfmd("--log-level", "loud", "status").code == ExitCode.USAGE


@pytest.mark.parametrize(
    "words",
    [
        ["-c", "FILE", "checkpoints", "list", "--json"],
        ["--json", "--config=FILE", "checkpoints", "list"],
        ["checkpoints", "-cFILE", "--json", "list"],
        ["--config", "FILE", "--json", "--log-level", "error", "checkpoints", "list"],
    ],
)
def test_the_options_of_every_command_may_stand_before_its_name(
    config: Path, words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MFMD_LOG__LEVEL", "error")
    assert main([word.replace("FILE", str(config)) for word in words]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_only_options_of_every_command_are_moved() -> None:
    assert in_order(["promote", "4", "--reason", "-c"]) == ["promote", "4", "--reason", "-c"]
    assert in_order(["-c", "a", "predict", "--", "--json"]) == ["predict", "-c", "a", "--", "--json"]
    assert in_order(["-c"]) == ["-c"]
    assert in_order(["--help"]) == ["--help"]


def test_errors_are_one_line_without_traceback(mfmd, config: Path) -> None:
    answer = mfmd("checkpoints", "show", "9")
    assert answer.code == ExitCode.NO_CHECKPOINT
    assert len(answer.err.splitlines()) == 1 and answer.err.startswith("error[version_unknown]: no version 9")


def test_unusable_state_directory_is_one_line(mfmd, config: Path) -> None:
    (config.parent / "state").write_text("a file, not a folder", encoding="utf-8")
    answer = mfmd("checkpoints", "pin", "1")
    assert answer.code == ExitCode.USAGE
    assert len(answer.err.splitlines()) == 1 and "state" in answer.err and "Traceback" not in answer.err


def test_config_comes_from_the_environment_too(mfmd, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    assert mfmd("config", "validate").code == ExitCode.USAGE
    monkeypatch.setenv("MFMD_CONFIG", str(config))
    assert mfmd("config", "validate").code == ExitCode.OK


def test_version_and_usage(mfmd) -> None:
    assert re.fullmatch(r"mfmd \d+\.\d+\.\d+\S*\n", mfmd("--version").out)
    assert mfmd("nonsense").code == ExitCode.USAGE
    assert mfmd("evaluate").code == ExitCode.USAGE
