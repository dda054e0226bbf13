"""`mfmd demo`: the whole job on drawn street scenes."""

from pathlib import Path
from typing import Annotated

import typer


def add_to(app: typer.Typer, panel: str) -> None:
    """Register the command."""
    app.command(rich_help_panel=panel, epilog="Example: mfmd demo --keep --out demo-report")(demo)


def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Leave the state directory and the daemon running.")] = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for the report and the picture.")] = None,
) -> None:
    """Show the whole job on drawn street scenes: nothing to download or configure, about five minutes on two cores."""
    from daemon.demo import run_demo

    raise typer.Exit(run_demo(keep=keep, out=out))
