"""Options that several commands share, and the settings, layout and registry that they name."""

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from configs.settings import Settings
    from storage.layout import StateLayout
    from storage.registry.registry import CheckpointRegistry

DEFAULT_CONFIG = Path("mfmd.yaml")


def user_path(text: str) -> Path:
    """Return a path in which a leading `~` is the home directory: a shell leaves `--out=~/masks` as it is."""
    from configs.section import expanded

    try:
        return expanded(Path(text))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


PATH: dict[str, Any] = {"parser": user_path, "metavar": "PATH"}
"""What every option and argument that is a path has."""
ConfigOption = Annotated[Path, typer.Option("--config", "-c", envvar="MFMD_CONFIG", help="Configuration file.", **PATH)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
ReasonOption = Annotated[str, typer.Option("--reason", help="Reason, recorded in the history.")]
VersionOption = Annotated[
    int | None, typer.Option("--checkpoint", min=1, help="Version to use.", show_default="the serving version")
]


def config_option(config: Path) -> str:
    """Return what a suggested command needs to read the same configuration, ready to follow its name."""
    return "" if config == DEFAULT_CONFIG else f" --config {config}"


def read_settings(config: Path) -> "Settings":
    """Return the settings in `config` and the environment; raise ConfigError."""
    from configs.load import load_settings

    return _ready(load_settings(config))


def running_settings(config: Path) -> "Settings":
    """Return the settings of the running daemon; without one those in `config`. Raises ConfigError."""
    from daemon.runtime.in_force import running_settings as running

    return _ready(running(config))


def _ready(settings: "Settings") -> "Settings":
    """Refuse a state directory of a newer mfmd. Let temporary files go there where no other folder takes them.

    Torch needs one. So it is in a read-only container, and while the system's disk is full. Children inherit the place.
    """
    import tempfile

    from storage.directory.format import refuse_newer

    refuse_newer(layout_of(settings))

    try:
        tempfile.gettempdir()
    except OSError:
        folder = layout_of(settings).run / "tmp"
        with suppress(OSError):  # then the state directory is read-only too: commands that only read work all the same
            folder.mkdir(parents=True, exist_ok=True)
            os.environ["TMPDIR"] = str(folder)
    return settings


def layout_of(settings: "Settings") -> "StateLayout":
    """Return the state directory's layout."""
    from storage.layout import StateLayout

    return StateLayout(settings.state)


def registry_of(settings: "Settings") -> "CheckpointRegistry":
    """Return the checkpoint registry of the state directory."""
    from storage.registry.registry import CheckpointRegistry

    return CheckpointRegistry(layout_of(settings).checkpoints)


def check_output(settings: "Settings", folder: Path, *, drop: bool = True) -> None:
    """Raise FramesRefused when images are read from `folder`, or mfmd keeps its state there."""
    from configs.folders import reader_of
    from storage.errors import FramesRefused

    if reader := reader_of(settings, folder, drop=drop):
        raise FramesRefused(f"{folder} lies in {reader}, where all files are taken as its own; name another folder")
