"""How new files are noticed: by the kernel's events with a rescan behind them, or by the rescan alone, and why."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from daemon.runtime.activity import Mode, Reason
from daemon.watch.mounts import file_system_of, is_silent


@dataclass(frozen=True, slots=True)
class WatchMode:
    """What is in force."""

    mode: Mode = "polling"
    """events: the kernel wakes us, the rescan finds the rest; polling: only the rescan."""
    reason: Reason = "no_folder"
    """configured: `watch.mode` says so; local: a file system that sends events; silent_mount: one that does not;
    refused: the kernel gave no watch; no_folder: there is nothing to listen to."""
    file_system: str = ""
    """Type of the folder's file system, for example `ext4`; empty where it is not known."""

    @property
    def trouble(self) -> str:
        """What an operator should know about this choice; empty when it fits the file system."""
        if self.mode == "events" and is_silent(self.file_system):
            return (
                f"watch.mode is events, but {self.file_system} sends none for files that other machines write: "
                "the rescan finds those; set watch.mode: auto"
            )
        return ""


def choose_mode(wanted: Literal["auto", "events", "polling"], folder: Path) -> WatchMode:
    """The mode for a folder that exists. `auto` polls where files can come without an event."""
    kind = file_system_of(folder) or ""
    if wanted != "auto":
        return WatchMode(wanted, "configured", kind)
    return WatchMode("polling", "silent_mount", kind) if is_silent(kind) else WatchMode("events", "local", kind)
