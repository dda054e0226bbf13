"""Options that several commands share, and the settings, layout and registry that they name."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from configs.settings import Settings
    from storage.layout import StateLayout
    from storage.registry.registry import CheckpointRegistry

DEFAULT_CONFIG = Path("mfmd.yaml")

ConfigOption = Annotated[Path, typer.Option("--config", "-c", envvar="MFMD_CONFIG", help="Configuration file.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
ReasonOption = Annotated[str, typer.Option("--reason", help="Reason, recorded in the history.")]
VersionOption = Annotated[
    int | None, typer.Option("--checkpoint", min=1, help="Version to use.", show_default="the serving version")
]


def read_settings(config: Path) -> "Settings":
    """Return the settings in `config` and the environment; raise ConfigError."""
    from configs.load import load_settings

    return load_settings(config)


def running_settings(config: Path) -> "Settings":
    """Return the settings of the running daemon; without one those in `config`. Raises ConfigError."""
    from daemon.runtime.in_force import running_settings as running

    return running(config)


def layout_of(settings: "Settings") -> "StateLayout":
    """Return the state directory's layout."""
    from storage.layout import StateLayout

    return StateLayout(settings.state)


def registry_of(settings: "Settings") -> "CheckpointRegistry":
    """Return the checkpoint registry of the state directory."""
    from storage.registry.registry import CheckpointRegistry

    return CheckpointRegistry(layout_of(settings).checkpoints)
