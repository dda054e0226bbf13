"""`mfmd doctor` and `mfmd check`: examine machine and configuration, and the state directory."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from daemon.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption, layout_of, running_settings
from daemon.cli.output import print_json
from daemon.exit_codes import ExitCode

if TYPE_CHECKING:
    from storage.checking import Problem

ReadDataOption = Annotated[bool, typer.Option("--read-data", help="Also read every pixel and hash every weight.")]
RepairOption = Annotated[
    bool, typer.Option("--repair", help="Repair what can be repaired; the daemon must be stopped.")
]
COLORS = {"error": typer.colors.RED, "leftover": typer.colors.YELLOW}


def add_to(app: typer.Typer, panel: str) -> None:
    """Register `check`."""
    app.command(rich_help_panel=panel, epilog="Example: mfmd check --read-data --repair")(check)


def add_to_start(app: typer.Typer, panel: str) -> None:
    """Register `doctor`, which is listed in another panel."""
    app.command(rich_help_panel=panel, epilog="Example: mfmd doctor --json")(doctor)


def check(
    read_data: ReadDataOption = False,
    repair: RepairOption = False,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Verify buffer, registry, rounds and source; exit 1 if an error is found (with --repair: if one remains)."""
    layout = layout_of(running_settings(config))
    from storage.checking import check_state, repair_state

    repaired: list[Problem] = []
    if repair:
        done = repair_state(layout, read_data=read_data)
        repaired, problems = done.repaired, done.left
    else:
        problems = check_state(layout, read_data=read_data)
    errors = [problem for problem in problems if problem.severity == "error"]
    if as_json:
        print_json({"ok": not errors, "problems": _rows(problems), "repaired": _rows(repaired)})
    else:
        _print(problems, repaired)
        typer.echo(_summary(len(errors), len(problems) - len(errors), len(repaired)))
    if errors:
        raise typer.Exit(ExitCode.FAILURE)


def _rows(problems: "list[Problem]") -> list[dict[str, Any]]:
    return [
        {
            "code": problem.code,
            "severity": problem.severity,
            "path": str(problem.path),
            "detail": problem.detail,
            "remedy": problem.remedy,
            "repairable": problem.repairable,
        }
        for problem in problems
    ]


def _print(problems: "list[Problem]", repaired: "list[Problem]") -> None:
    for problem in repaired:
        typer.echo(
            f"{typer.style('repaired', fg=typer.colors.GREEN)}  {problem.code}: {problem.path}: {problem.detail}"
        )
    for problem in problems:
        mark = typer.style(f"{problem.severity:<8}", fg=COLORS[problem.severity])
        typer.echo(f"{mark}  {problem.code}: {problem.path}: {problem.detail}")
        typer.echo(f"{'':<8}  -> {problem.remedy}")


def _summary(errors: int, leftovers: int, repaired: int) -> str:
    counts = ((repaired, "repaired"), (errors, "errors"), (leftovers, "leftovers"))
    return ", ".join(f"{count} {name}" for count, name in counts if count) or "No problem found."


MARKS = {"ok": ("ok  ", typer.colors.GREEN), "warn": ("warn", typer.colors.YELLOW), "fail": ("FAIL", typer.colors.RED)}


def doctor(config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Check machine, folders, disk, ports, checkpoint and source; exit 1 if a check fails."""
    from daemon.doctor import Level, examine

    findings = examine(config)
    failed = [finding for finding in findings if finding.level == Level.FAIL]
    if as_json:
        checks = [
            {"name": item.name, "level": item.level.value, "detail": item.detail, "remedy": item.remedy}
            for item in findings
        ]
        print_json({"ok": not failed, "checks": checks})
    else:
        for finding in findings:
            mark, color = MARKS[finding.level.value]
            typer.echo(f"{typer.style(mark, fg=color)}  {finding.name:<18} {finding.detail}")
            if finding.remedy:
                typer.echo(f"{'':<24} -> {finding.remedy}")
        typer.echo(f"\n{len(failed)} of {len(findings)} checks failed." if failed else "\nNothing failed.")
    if failed:
        raise typer.Exit(ExitCode.FAILURE)
