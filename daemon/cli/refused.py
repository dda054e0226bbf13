"""`mfmd refused list|retry`: list the files that ingest refused, with the reasons; retry them."""

from contextlib import closing
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from daemon.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption, layout_of, running_settings
from daemon.cli.output import local_time, print_json, print_table
from daemon.exit_codes import ExitCode

if TYPE_CHECKING:
    from configs.settings import Settings
    from daemon.ingest.refusals import Selection
    from storage.buffer.catalog_records import FileRecord
    from storage.layout import StateLayout

refused_app = typer.Typer(no_args_is_help=True, help="List refused files and retry them.")

RETRY_SECONDS = 60.0
"""Longest wait for the daemon, which moves every file out of the quarantine (seconds)."""
CodeOption = Annotated[str | None, typer.Option("--reason", help="Only files refused for this reason code.")]
LimitOption = Annotated[int, typer.Option("--limit", min=1, help="At most this many files, newest first.")]
PathsArgument = Annotated[
    list[str] | None, typer.Argument(help="Files, as the list shows them.", metavar="[PATHS]", show_default=False)
]
AllOption = Annotated[bool, typer.Option("--all", help="Every refused file.")]


@refused_app.command("list", epilog="Example: mfmd refused list --reason truncated")
def list_(
    reason: CodeOption = None, limit: LimitOption = 100, config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """List refused files with reason and time, newest first."""
    from storage.buffer.catalog import Catalog
    from storage.buffer.video_records import refused_videos

    layout = layout_of(running_settings(config))
    with closing(Catalog.open(layout.catalog, writable=False)) as catalog:
        found = [*catalog.refused(limit, reason=reason), *refused_videos(layout.videos, reason)]
    found = sorted(found, key=lambda item: item.at, reverse=True)[:limit]
    if as_json:
        print_json([_entry(item) for item in found])
    elif not found:
        typer.echo("No file is refused.")
    else:
        rows = [(local_time(item.at), item.reason, repr(item.file.path)[1:-1], item.detail) for item in found]
        print_table(["refused", "reason", "file", "detail"], rows)


@refused_app.command(epilog="Example: mfmd refused retry --reason needs_extra")
def retry(
    paths: PathsArgument = None, reason: CodeOption = None, everything: AllOption = False,
    config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Retry refused files; quarantined ones move back to the drop folder first. Daemon up or down."""
    if not (paths or reason or everything):
        raise typer.BadParameter("name files, or give --reason or --all")
    settings = running_settings(config)
    from daemon.ingest.refusals import Selection, retry_videos

    selection = Selection(frozenset(paths or ()), reason)
    layout = layout_of(settings)
    if layout.locked():
        from daemon.control.client import ControlClient

        done = ControlClient(layout, RETRY_SECONDS).retry_refused(sorted(selection.paths), selection.reason)
    else:
        done = _in_process(settings, layout, selection)
    done += retry_videos(settings.watch, layout.videos, selection)
    absent = sorted(selection.paths - set(done))
    if as_json:
        print_json({"retried": done, "not_refused": absent})
    else:
        typer.echo(f"{len(done)} files are queued for a retry.")
        for path in absent:
            typer.echo(f"{path}: not refused" + (f" for {reason}" if reason else ""), err=True)
    if absent:
        raise typer.Exit(ExitCode.FAILURE)


def _in_process(settings: "Settings", layout: "StateLayout", selection: "Selection") -> list[str]:
    """Retry under the state directory's lock, as the only writer; the next `mfmd run` finds the files."""
    from daemon.ingest.refusals import retry_refused
    from storage.buffer.catalog import Catalog

    Catalog.open(layout.catalog, writable=False).close()  # makes no empty buffer where there is none
    with layout.lock(), closing(Catalog.open(layout.catalog, writable=True)) as catalog:
        return retry_refused(settings.watch, catalog, selection)


def _entry(item: "FileRecord") -> dict[str, Any]:
    at = datetime.fromtimestamp(item.at, UTC).isoformat()
    return {
        "file": item.file.path, "reason": item.reason, "detail": item.detail, "refused_at": at, "digest": item.digest,
        "bytes": item.file.size, "mtime_ns": item.file.mtime_ns,
    }  # fmt: skip
