"""The drop folder: there, readable, and on a file system that says when a file arrives."""

import os
from pathlib import Path

from configs.settings import Settings
from configs.watch import WatchSettings
from daemon.doctor.finding import Finding, fail, ok, warn
from daemon.watch.mode import file_system_of, is_silent
from daemon.watch.scan import missing_marker

WATCH_LIMIT = Path("/proc/sys/fs/inotify/max_user_watches")
ENTRIES_LOOKED_AT = 200_000
"""Directory entries counted at most, so that the doctor answers on a folder of millions."""


def examine_drop_folder(settings: Settings) -> list[Finding]:
    """Return findings about `watch.folder`."""
    folder = settings.watch.folder
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        return [fail("drop_folder", f"{folder} {what}", f"mkdir -p {folder}, or correct watch.folder")]
    if not os.access(folder, os.R_OK | os.X_OK):
        remedy = "let the user that runs mfmd read and enter it"
        return [fail("drop_folder", f"{folder} cannot be read", remedy)]
    return [_marked(settings.watch), _mount(folder), _watches(settings.watch)]


def _marked(settings: WatchSettings) -> Finding:
    unmarked = missing_marker(settings)
    if unmarked and settings.marker is not None:
        remedy = f"mount it, or `touch {settings.folder / settings.marker}` once it is mounted, or unset watch.marker"
        return fail("drop_folder", unmarked, remedy)
    return ok("drop_folder", f"{settings.folder} is readable")


def _mount(folder: Path) -> Finding:
    kind = file_system_of(folder)
    if is_silent(kind):
        remedy = "nothing to do: the rescan finds them; a shorter watch.advanced.rescan_seconds finds them sooner"
        return warn("drop_folder_mount", f"{kind}: files written by other machines raise no event here", remedy)
    return ok("drop_folder_mount", kind or "unknown file system")


def _watches(settings: WatchSettings) -> Finding:
    if not WATCH_LIMIT.exists():
        return ok("inotify", "not used on this system")
    limit = int(WATCH_LIMIT.read_text(encoding="ascii"))
    folders, complete = _count_folders(settings.folder) if settings.advanced.recursive else (1, True)
    detail = f"{folders}{'' if complete else '+'} folders, limit {limit} watches a user"
    if folders > limit // 2:
        wanted = max(524_288, 4 * folders)
        remedy = f"sysctl fs.inotify.max_user_watches={wanted}; until then the rescan finds files that events miss"
        return warn("inotify", detail, remedy)
    return ok("inotify", detail)


def _count_folders(root: Path) -> tuple[int, bool]:
    folders = entries = 0
    for _, inner, files in os.walk(root):
        folders += 1
        entries += len(inner) + len(files)
        if entries > ENTRIES_LOOKED_AT:
            return folders, False
    return folders, True
