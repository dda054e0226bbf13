"""`mfmd run`, `mfmd serve` and `mfmd masks`: the long-running processes, and the hidden `mfmd observe`."""

import typer

from daemon.cli.options import DEFAULT_CONFIG, ConfigOption, read_settings


def add_to(app: typer.Typer, panel: str) -> None:
    """Register the commands."""
    app.command(rich_help_panel=panel, epilog="Example: mfmd run --config mfmd.yaml")(run)
    app.command(rich_help_panel=panel, epilog="Example: MFMD_SERVING__PORT=9000 mfmd serve")(serve)
    app.command(rich_help_panel=panel, epilog="Example: MFMD_MASKS__FOLDER=/data/masks mfmd masks")(masks)
    app.command(hidden=True, epilog="Example: mfmd observe --config mfmd.yaml")(observe)


def run(config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Run the daemon: watch the folder, store, adapt, judge, serve. Stops cleanly on Ctrl-C or SIGTERM."""
    settings = read_settings(config)
    from daemon.app import run as run_daemon

    raise typer.Exit(run_daemon(settings, config.resolve()))


def serve(config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Run the inference plane alone; it follows the registry of the state directory. `mfmd run` starts one itself."""
    settings = read_settings(config)
    from daemon.serving.server import serve as serve_plane

    raise typer.Exit(serve_plane(settings))


def masks(config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Write a mask file for each image of the drop folder, asking the inference plane; `mfmd run` starts one itself."""
    settings = read_settings(config)
    from daemon.masks.writer import run_masks

    raise typer.Exit(run_masks(settings))


def observe(config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Run the observer of committed frames at low priority; started by `mfmd run`."""
    settings = read_settings(config)
    from daemon.observer import observe as observe_frames

    raise typer.Exit(observe_frames(settings))
