"""`mfmd doctor`: look at the machine, the folders and the registry before an operator has to."""

from pathlib import Path

from configs.errors import ConfigError
from configs.load import load_settings
from daemon.doctor.disk import examine_state
from daemon.doctor.drop_folder import examine_drop_folder
from daemon.doctor.finding import Finding, Level
from daemon.doctor.machine import examine_machine
from daemon.doctor.models import examine_models
from daemon.doctor.number_formats import examine_number_formats
from daemon.doctor.packages import examine_packages
from daemon.doctor.ports import examine_ports

__all__ = ["Finding", "Level", "examine"]


def examine(config: Path) -> list[Finding]:
    """Every finding; a broken configuration does not keep the machine from being looked at."""
    findings = [*examine_machine(), *examine_packages()]
    try:
        settings = load_settings(config)
    except ConfigError as error:
        remedy = "correct it; `mfmd config schema --markdown` lists every setting"
        return [*findings, Finding.fail("configuration", str(error), remedy)]
    gpu = any(finding.name == "gpu" and finding.level is Level.OK for finding in findings)
    findings.append(Finding.ok("configuration", f"{config} is valid"))
    findings += examine_number_formats(settings, gpu)
    for part in (examine_drop_folder, examine_state, examine_ports, examine_models):
        findings += part(settings)
    return findings
