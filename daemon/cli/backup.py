"""`mfmd backup` and `mfmd restore`: one file with the whole state directory, and back."""

import signal
from pathlib import Path
from typing import Annotated

import typer

from daemon.cli.labels import warn
from daemon.cli.options import (
    DEFAULT_CONFIG,
    PATH,
    ConfigOption,
    JsonOption,
    check_output,
    layout_of,
    read_settings,
    running_settings,
)
from daemon.cli.output import answer

OutArgument = Annotated[Path, typer.Argument(help="New tar file.", **PATH)]
FileArgument = Annotated[Path, typer.Argument(help="File that `mfmd backup` wrote.", **PATH)]


def backup(out: OutArgument, config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Write a consistent copy of the state directory as one tar file. Works beside a running daemon."""
    settings = running_settings(config)
    from daemon.cli.output import live_progress
    from daemon.runtime.signals import on_signals
    from storage.directory.backup import write_backup

    check_output(settings, out)
    with on_signals(_interrupt, signal.SIGTERM), live_progress() as show:
        done = write_backup(layout_of(settings), out, lambda files, total: show("writing", files, total, {}))
    if done.missing:
        warn(f"{done.missing} frames have no pixels, here and in the backup; `mfmd check` says more")
    size = out.stat().st_size
    line = f"{out}: {done.files} files, {done.frames} frames, {size / 2**20:.1f} MiB."
    answer(as_json, {"file": str(out), "bytes": size, **done._asdict()}, line)


def restore(file: FileArgument, config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Restore a backup into the state directory, which must be empty or missing; the daemon must be stopped."""
    settings = read_settings(config)
    from daemon.cli.output import live_progress
    from daemon.runtime.signals import on_signals
    from storage.directory.restore import restore_backup

    layout = layout_of(settings)
    with on_signals(_interrupt, signal.SIGTERM), live_progress() as show:
        files = restore_backup(file, layout, lambda done, total: show("reading", done >> 20, total >> 20, {}))
    line = f"{layout.root}: {files} files restored. Next: mfmd check, then mfmd run"
    answer(as_json, {"state": str(layout.root), "files": files}, line)


def _interrupt() -> None:
    """End like Ctrl-C, so that nothing unfinished stays."""
    raise KeyboardInterrupt
