"""`mfmd doctor`: what is wrong with this machine or configuration, and what to do about it."""

import typer

from daemon.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption
from daemon.cli.output import print_json
from daemon.exit_codes import ExitCode

MARKS = {"ok": ("ok  ", typer.colors.GREEN), "warn": ("warn", typer.colors.YELLOW), "fail": ("FAIL", typer.colors.RED)}


def add_to(app: typer.Typer, panel: str) -> None:
    """Register the command."""
    app.command(rich_help_panel=panel, epilog="Example: mfmd doctor --json")(doctor)


def doctor(config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Check machine, folders, disk, ports, checkpoint and source; exit 1 when something will not work."""
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
