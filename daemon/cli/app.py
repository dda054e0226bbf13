"""The typer application: every command, in the panels that `mfmd --help` shows."""

import os
from enum import StrEnum
from typing import Annotated

import typer

from daemon.cli import (
    adapt,
    buffer,
    check,
    checkpoints,
    configuration,
    frames,
    init,
    models,
    planes,
    refused,
    status,
    training,
)
from daemon.cli.errors import LEVEL_VARIABLE

START, RUN, WATCH = "Start", "Run", "Inspect and control"

app = typer.Typer(
    name="mfmd",
    help="Keep a semantic-segmentation model good while the world in front of the camera changes.",
    epilog="First look: mfmd demo. Your own folder: mfmd init FOLDER, mfmd pretrain, mfmd run.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


class LogLevel(StrEnum):
    """Levels of `--log-level`."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"mfmd {version('mfmd')}")
        raise typer.Exit


@app.callback()
def common(
    log_level: Annotated[
        LogLevel | None, typer.Option("--log-level", help="Least severe level that is logged; debug shows tracebacks.")
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Keep a semantic-segmentation model good while the world in front of the camera changes."""
    if log_level is not None:
        os.environ[LEVEL_VARIABLE] = log_level.value


init.add_to(app, START)
training.add_to(app, START)
check.add_to_start(app, START)
planes.add_to(app, RUN)
adapt.add_to(app, RUN)
models.add_to(app, RUN)
frames.add_to(app, RUN)
status.add_to(app, WATCH)
checkpoints.add_to(app, WATCH)
refused.add_to(app, WATCH)
buffer.add_to(app, WATCH)
check.add_to(app, WATCH)
configuration.add_to(app, WATCH)
