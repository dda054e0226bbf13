"""`mfmd doctor`: look at the machine, the folders and the registry before an operator has to."""

from pathlib import Path

from configs.errors import ConfigError
from configs.load import load_settings
from configs.settings import Settings
from daemon.control.client import ControlClient, ControlFailed
from daemon.doctor.disk import examine_state
from daemon.doctor.drop_folder import examine_drop_folder
from daemon.doctor.encoders import examine_encoders
from daemon.doctor.finding import Finding, Level, fail, ok, warn
from daemon.doctor.frames import examine_frames
from daemon.doctor.machine import examine_machine, examine_number_formats, examine_packages
from daemon.doctor.models import examine_models
from daemon.doctor.own_network import examine_own_network
from daemon.doctor.plugins import examine_plugins
from daemon.doctor.ports import examine_ports
from daemon.runtime.in_force import SNAPSHOT, compared, running_settings
from daemon.runtime.run_record import current_record
from daemon.status.collect import collect_status
from daemon.status.messages import clock_message
from storage.directory.format import refuse_newer
from storage.layout import StateLayout

__all__ = ["Finding", "Level", "examine"]


def examine(config: Path) -> list[Finding]:
    """Every finding; a broken configuration does not keep the machine and a running daemon from being looked at.

    Raises NewerFormat when a newer mfmd gave the state directory its format.
    """
    try:
        settings = running_settings(config)
        refuse_newer(StateLayout(settings.state))
    except ConfigError:
        settings = None
    findings = [*examine_machine(), *examine_packages(), examine_file(config)]
    if settings is None:
        return findings
    gpu = any(finding.name == "gpu" and finding.level is Level.OK for finding in findings)
    findings += [*examine_in_force(StateLayout(settings.state)), *examine_daemon(settings), examine_clock(settings)]
    findings += examine_number_formats(settings, gpu)
    for part in (
        examine_drop_folder,
        examine_state,
        examine_ports,
        examine_models,
        examine_encoders,
        examine_frames,
        examine_own_network,
        examine_plugins,
    ):
        findings += part(settings)
    return findings


def examine_file(config: Path) -> Finding:
    """Return whether a configuration file is valid."""
    try:
        load_settings(config)
    except ConfigError as error:
        remedy = "correct it; `mfmd config schema --markdown` lists every setting"
        return fail("configuration", str(error), remedy)
    return ok("configuration", f"{config} is valid")


def examine_daemon(settings: Settings) -> list[Finding]:
    """Return whether a running daemon works (`/readyz`), and the messages of its status; nothing without a daemon."""
    layout = StateLayout(settings.state)
    if current_record(layout, "daemon") is None:
        return []
    try:
        problems = ControlClient(layout).problems("/readyz")
    except ControlFailed as error:
        problems = [str(error)]
    works = ok("daemon", "every part of the running daemon works")
    if problems:
        works = fail("daemon", "; ".join(problems), "do what the messages of `mfmd status` say, which follow here")
    told = [
        warn("attention", message, "`mfmd status` says when it is over")
        for message in collect_status(settings).messages
    ]
    return [works, *told]


def examine_clock(settings: Settings) -> Finding:
    """Return whether this machine's clock can be right."""
    what, _, remedy = clock_message(collect_status(settings)).partition(": ")
    return warn("clock", what, remedy) if what else ok("clock", "after everything that is recorded here")


def examine_in_force(layout: StateLayout) -> list[Finding]:
    """Compare the settings of a running daemon with its configuration file; no finding without a daemon."""
    if not (layout.locked() and layout.run_file(SNAPSHOT).exists()):
        return []
    file = compared(layout)
    differ = ", ".join([*file.reload, *file.restart])
    if not differ:
        return [ok("settings", "the daemon uses the settings of its last start or reload")]
    remedy = "`mfmd reload`" + (f", and a restart of the daemon for {', '.join(file.restart)}" if file.restart else "")
    return [warn("settings", f"{file.file} differs from the settings of the running daemon: {differ}", remedy)]
