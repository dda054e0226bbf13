"""`mfmd config validate|show|schema`: check a configuration, see what is in force, get the schema."""

from pathlib import Path
from typing import Annotated

import typer

from daemon.cli.options import DEFAULT_CONFIG, PATH, ConfigOption, JsonOption, read_settings
from daemon.cli.output import answer, print_json

config_app = typer.Typer(
    no_args_is_help=True, help="Check a configuration, show the settings in force, print the schema."
)

FileArgument = Annotated[Path | None, typer.Argument(help="File to check.", show_default="the one of --config", **PATH)]


@config_app.command(epilog="Example: mfmd config validate mfmd.yaml")
def validate(file: FileArgument = None, config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Check a configuration; exit 2 and one line naming file and field when it is wrong."""
    path = config if file is None else file
    read_settings(path)
    answer(as_json, {"file": str(path), "valid": True}, f"{path}: valid")


@config_app.command(epilog="Example: mfmd config show --config mfmd.yaml")
def show(config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Print the settings in force: defaults, file and environment together; secrets are masked."""
    import yaml

    values = read_settings(config).model_dump(mode="json")
    answer(
        as_json, values, yaml.safe_dump(values, sort_keys=False, allow_unicode=True, default_flow_style=None).rstrip()
    )


@config_app.command(epilog="Example: mfmd config schema > mfmd.schema.json")
def schema(
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the reference page instead.")] = False,
) -> None:
    """Print the JSON Schema of the configuration, for editors and checks."""
    if markdown:
        from daemon.cli.settings.page import render

        typer.echo(render(), nl=False)
        return
    from configs.settings import Settings

    print_json(Settings.model_json_schema())
