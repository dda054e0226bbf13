"""`mfmd doctor`: look at the machine, the folders and the registry before an operator has to."""

from pathlib import Path

from configs.errors import ConfigError
from daemon.doctor.configuration import examine_file, examine_in_force
from daemon.doctor.disk import examine_state
from daemon.doctor.drop_folder import examine_drop_folder
from daemon.doctor.finding import Finding, Level
from daemon.doctor.machine import examine_machine, examine_number_formats
from daemon.doctor.models import examine_models
from daemon.doctor.packages import examine_packages
from daemon.doctor.ports import examine_ports
from daemon.runtime.in_force import running_settings
from storage.layout import StateLayout

__all__ = ["Finding", "Level", "examine"]


def examine(config: Path) -> list[Finding]:
    """Every finding; a broken configuration does not keep the machine and a running daemon from being looked at."""
    findings = [*examine_machine(), *examine_packages(), examine_file(config)]
    try:
        settings = running_settings(config)
    except ConfigError:
        return findings
    gpu = any(finding.name == "gpu" and finding.level is Level.OK for finding in findings)
    findings += examine_in_force(StateLayout(settings.state))
    findings += examine_number_formats(settings, gpu)
    for part in (examine_drop_folder, examine_state, examine_ports, examine_models):
        findings += part(settings)
    return findings
