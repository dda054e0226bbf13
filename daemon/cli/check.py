"""`mfmd doctor` and `mfmd check`: examine machine and configuration, and the state directory."""

from dataclasses import asdict
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


def check(
    read_data: ReadDataOption = False,
    repair: RepairOption = False,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Verify buffer, registry, rounds and source; exit 1 if an error is found (with --repair: if one remains)."""
    layout = layout_of(running_settings(config))
    from storage.checking import check_state, repair_state

    if repair:
        done = repair_state(layout, read_data=read_data)
        repaired, problems = done.repaired, done.left
    else:
        repaired, problems = [], check_state(layout, read_data=read_data)
    errors = [problem for problem in problems if problem.severity == "error"]
    if as_json:
        print_json({"ok": not errors, "problems": _rows(problems), "repaired": _rows(repaired)})
    else:
        _print(problems, repaired)
        typer.echo(_summary(len(errors), len(problems) - len(errors), len(repaired)))
    if errors:
        raise typer.Exit(ExitCode.FAILURE)


def _rows(problems: "list[Problem]") -> list[dict[str, Any]]:
    names = ("code", "severity", "path", "detail", "remedy", "repairable")
    return [{name: getattr(problem, name) for name in names} | {"path": str(problem.path)} for problem in problems]


def _print(problems: "list[Problem]", repaired: "list[Problem]") -> None:
    for problem in repaired:
        mark = typer.style("repaired", fg=typer.colors.GREEN)
        typer.echo(f"{mark}  {problem.code}: {problem.path}: {problem.detail}")
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
        print_json({"ok": not failed, "checks": [asdict(finding) for finding in findings]})
    else:
        for finding in findings:
            mark, color = MARKS[finding.level]
            typer.echo(
                f"{typer.style(mark, fg=color)}  {finding.name:<18} {finding.detail}".replace("\n", f"\n{'':<27}")
            )
            if finding.remedy:
                typer.echo(f"{'':<24} -> {finding.remedy}")
        typer.echo(f"\n{len(failed)} of {len(findings)} checks failed." if failed else "\nNothing failed.")
    if failed:
        raise typer.Exit(ExitCode.FAILURE)
