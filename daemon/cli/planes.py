"""`mfmd run`, `mfmd serve` and `mfmd masks`: the long-running processes, and the hidden `mfmd observe`."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from daemon.cli.errors import exit_code_of
from daemon.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption, layout_of, read_settings, running_settings
from daemon.cli.output import answer

if TYPE_CHECKING:
    from configs.settings import Settings


def run(config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Run the daemon: watch the folder, store frames, adapt, judge, serve. Ctrl-C or SIGTERM stops it cleanly."""
    settings = settings_to_reload(config)
    from daemon.app import run as run_daemon

    raise typer.Exit(run_daemon(settings, config.absolute()))


def reload(config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Reload the configuration file in the running daemon; list the changes that need a restart."""
    settings = running_settings(config)
    from daemon.control.client import ControlClient

    done = ControlClient(layout_of(settings)).reload()
    lines = [f"In force now: {', '.join(done.applied)}." if done.applied else "No setting changed."]
    if done.restart:
        lines.append(f"A restart of the daemon is needed for: {', '.join(done.restart)}.")
    answer(as_json, done.model_dump(mode="json"), *lines)


def serve(config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Run the inference plane alone; it follows the registry of the state directory. `mfmd run` starts one itself."""
    raise typer.Exit(as_process("serve", settings_to_reload(config), config, _serve))


def _serve(settings: "Settings") -> int:
    """Try the address before torch is loaded: a port that is taken is told at once, and each retry costs little."""
    from daemon.net.listening import listen
    from daemon.net.token import serving_address

    listen(serving_address(settings.serving), 1).close()
    from daemon.serving.server import serve as serve_plane

    return serve_plane(settings)


def masks(config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Write a mask file for each image of the drop folder, asking the inference plane; `mfmd run` starts one itself."""
    settings = settings_to_reload(config)
    from daemon.masks.writer import run_masks

    raise typer.Exit(as_process("masks", settings, config, run_masks))


def observe(config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Run the observer of committed frames at low priority; started by `mfmd run`."""
    settings = settings_to_reload(config)
    from daemon.observer import observe as observe_frames

    raise typer.Exit(as_process("observe", settings, config, observe_frames))


def settings_to_reload(config: Path) -> "Settings":
    """Return the settings; a SIGHUP that comes during the start ends nothing, but waits until it can reload them."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    return read_settings(config)


def as_process(name: str, settings: "Settings", config: Path, run: Callable[["Settings"], int]) -> int:
    """Run a process that reloads on SIGHUP and ends soon after the daemon that started it, which is told an error."""
    from daemon.runtime.in_force import SettingsInForce, reloaded_on_hang_up
    from daemon.runtime.logs import configure_logs, get_logger
    from storage.layout import WORKS_FOR, end_without_daemon

    configure_logs(settings.log, name)
    end_without_daemon(layout_of(settings))
    with reloaded_on_hang_up(SettingsInForce(settings, config)):
        try:
            return run(settings)
        except Exception as error:
            if WORKS_FOR not in os.environ:
                raise
            from daemon.errors import code_of, describe_error
            from daemon.runtime.heartbeat import leave_reason

            code, reason = code_of(error), describe_error(error)
            get_logger(__name__).critical("process_ends", code=code, error=reason, exc_info=code == "unexpected")
            leave_reason(layout_of(settings), name, reason)
            return exit_code_of(error)
