"""`mfmd export`: give a version back in a format of others."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from daemon.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption, read_settings, registry_of
from daemon.cli.output import print_json


class Format(StrEnum):
    """Values of `--format`."""

    HUGGINGFACE = "huggingface"
    ONNX = "onnx"
    TORCH_EXPORT = "torch-export"


VersionArgument = Annotated[
    int | None, typer.Argument(min=1, help="Version to export.", show_default="the serving version")
]
FormatOption = Annotated[Format, typer.Option("--format", "-f", help="What the folder shall hold.")]
OutOption = Annotated[Path, typer.Option("--out", "-o", help="New or empty folder for the files.")]


def add_to(app: typer.Typer, panel: str) -> None:
    """Register the command."""
    app.command(rich_help_panel=panel, epilog="Example: mfmd export 3 --format onnx --out street-3")(export)


def export(
    format: FormatOption,
    out: OutOption,
    version: VersionArgument = None,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Write a version's network for use without mfmd: a Hugging Face directory, ONNX, or a torch.export program."""
    settings = read_settings(config)
    from adapters.checkpoints.exporting.export import export_version

    registry = registry_of(settings)
    number = registry.serving_version() if version is None else version
    files = export_version(registry, number, format.value, out)
    if as_json:
        print_json({"version": number, "format": format.value, "out": str(out), "files": files})
    else:
        typer.echo(f"Version {number} -> {out}: {', '.join(files)}")
