"""The configuration file: valid, and what the running daemon uses."""

from pathlib import Path

from configs.errors import ConfigError
from configs.load import load_settings
from daemon.doctor.finding import Finding
from daemon.runtime.in_force import SNAPSHOT, compared
from storage.layout import StateLayout


def examine_file(config: Path) -> Finding:
    """Check that a configuration file is valid."""
    try:
        load_settings(config)
    except ConfigError as error:
        remedy = "correct it; `mfmd config schema --markdown` lists every setting"
        return Finding.fail("configuration", str(error), remedy)
    return Finding.ok("configuration", f"{config} is valid")


def examine_in_force(layout: StateLayout) -> list[Finding]:
    """Compare the settings of a running daemon with its configuration file; no finding without a daemon."""
    if not layout.run_file(SNAPSHOT).exists():
        return []
    file = compared(layout)
    differ = ", ".join([*file.reload, *file.restart])
    if not differ:
        return [Finding.ok("settings", "the daemon runs on the settings of its start and of its last reload")]
    remedy = "`mfmd reload`" + (f", and a restart of the daemon for {', '.join(file.restart)}" if file.restart else "")
    return [Finding.warn("settings", f"{file.file} differs from the settings of the running daemon: {differ}", remedy)]
