"""The typer application: every command, in the panels that `mfmd --help` shows."""

import os
from collections.abc import Callable
from typing import Annotated, Literal

import typer

from daemon.cli.adapt import adapt
from daemon.cli.backup import backup, restore
from daemon.cli.buffer import buffer_app
from daemon.cli.canary import canary_app
from daemon.cli.check import check, doctor
from daemon.cli.checkpoints import approve, checkpoints_app, promote, reject, rollback
from daemon.cli.conditions import conditions_app
from daemon.cli.configuration import config_app
from daemon.cli.errors import LEVEL_VARIABLE
from daemon.cli.explain import explain
from daemon.cli.frames import frames
from daemon.cli.init import demo, init
from daemon.cli.models import evaluate, export, predict
from daemon.cli.pause import pause, resume
from daemon.cli.planes import masks, observe, reload, run, serve
from daemon.cli.refused import refused_app
from daemon.cli.status import status
from daemon.cli.training import import_, pretrain

app = typer.Typer(
    name="mfmd",
    epilog="First look: mfmd demo. Your own folder: mfmd init FOLDER, mfmd pretrain, mfmd run.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"mfmd {version('mfmd')}")
        raise typer.Exit


@app.callback()
def common(
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"] | None,
        typer.Option("--log-level", help="Least severe level that is logged; debug shows tracebacks."),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Keep a semantic-segmentation model good while the world in front of the camera changes."""
    if log_level is not None:
        os.environ[LEVEL_VARIABLE] = log_level


_PANELS: dict[str, dict[str, Callable[..., None] | typer.Typer]] = {
    "Start": {
        "init /data/drop --classes cityscapes": init,
        "demo --keep --out demo-report": demo,
        "pretrain --config mfmd.yaml": pretrain,
        "import ./segformer-b0": import_,
        "doctor --json": doctor,
    },
    "Run": {
        "run --config mfmd.yaml": run,
        "reload --json": reload,
        "serve": serve,
        "masks": masks,
        "observe --config mfmd.yaml": observe,
        "adapt --json": adapt,
        "predict street.jpg --out masks": predict,
        "evaluate --images val/images --labels val/labels --checkpoint 3": evaluate,
        "export 3 --format onnx --out street-3": export,
        "frames clip.mp4 --into drop --every 0.5": frames,
    },
    "Inspect and control": {
        "status --json": status,
        "checkpoints list --json": checkpoints_app,
        'promote 4 --reason "trained on the new camera"': promote,
        'rollback --to 3 --reason "poles vanish at night"': rollback,
        'pause --reason "the camera is being moved"': pause,
        "resume": resume,
        "explain 4 --round": explain,
        "conditions list --json": conditions_app,
        'approve 4 --reason "checked on the night frames"': approve,
        'reject 4 --reason "poles vanish at night"': reject,
        "canary suggest 10 --out canary": canary_app,
        "refused list --json": refused_app,
        "buffer info --json": buffer_app,
        "check --read-data --repair": check,
        "backup /backup/mfmd.tar": backup,
        "restore /backup/mfmd.tar": restore,
        "config show": config_app,
    },
}
"""Commands of each panel by an example, which begins with the command's name."""
_VARIABLES = {"serve": "MFMD_SERVING__PORT=9000 ", "masks": "MFMD_MASKS__FOLDER=/data/masks "}

for panel, commands in _PANELS.items():
    for example, command in commands.items():
        name, epilog = example.split()[0], f"Example: {_VARIABLES.get(example, '')}mfmd {example}"
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name, rich_help_panel=panel, epilog=epilog)
        else:
            app.command(name, rich_help_panel=panel, epilog=epilog, hidden=name == "observe")(command)
