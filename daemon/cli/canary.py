"""`mfmd canary add|list|suggest`: a few labelled target images that decide about candidates."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from daemon.cli.labels import show_counts, warn
from daemon.cli.options import (
    DEFAULT_CONFIG,
    PATH,
    ConfigOption,
    JsonOption,
    check_output,
    layout_of,
    read_settings,
    registry_of,
)
from daemon.cli.output import answer, print_json, print_table

if TYPE_CHECKING:
    from configs.settings import Settings
    from daemon.gate.canary_picks import Pick

canary_app = typer.Typer(no_args_is_help=True, help="Add, list and suggest labelled target images for the gate.")

ExportArgument = Annotated[
    Path,
    typer.Argument(help="Folder, CVAT zip archive, or JSON export of Label Studio.", **{**PATH, "metavar": "EXPORT"}),
]
ImagesOption = Annotated[
    Path | None, typer.Option("--images", help="Folder of the images, when the export has only labels.", **PATH)
]
UnchangedOption = Annotated[
    bool, typer.Option("--unchanged", help="Also add masks that are as `mfmd canary suggest` filled them in.")
]
CountArgument = Annotated[int, typer.Argument(min=1, help="Number of frames.", metavar="COUNT")]
OutOption = Annotated[Path, typer.Option("--out", "-o", help="New or empty folder.", **PATH)]


@canary_app.command(epilog="Example: mfmd canary add canary")
def add(
    export: ExportArgument,
    images: ImagesOption = None,
    unchanged: UnchangedOption = False,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Add labelled target images to the state directory: all of an export, or none when something is wrong."""
    settings = read_settings(config)
    from storage.canary.adding import add_canary

    done = add_canary(settings, layout_of(settings), export, images, unchanged=unchanged)
    if done.added:
        show_counts(done.counts, table=not as_json)
    for name in done.unchanged:
        warn(f"{name}: the mask is as it was suggested, so nobody labelled it; --unchanged adds it all the same")
    facts = {"added": done.added, "known": done.known, "unchanged": done.unchanged}
    known = f", {len(done.known)} were there already" if done.known else ""
    answer(as_json, facts, f"{len(done.added)} canary images added{known}. {_says(_count(settings))}")


@canary_app.command("list", epilog="Example: mfmd canary list --json")
def list_(config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """List the canary images that count, and what their labels hold; all files are read again when they changed."""
    settings = read_settings(config)
    from storage.canary.adding import counts_of
    from storage.canary.images import import_canary

    found = import_canary(settings, layout_of(settings))
    if as_json:
        sizes = [{"name": item.name, "height": item.label.shape[0], "width": item.label.shape[1]} for item in found]
        print_json({"images": sizes, "count": len(found)})
        return
    if found:
        print_table(["image", "size"], [(item.name, f"{item.label.shape[1]}x{item.label.shape[0]}") for item in found])
        show_counts(counts_of(settings, found))
    typer.echo(_says(len(found)))


@canary_app.command(epilog="Example: mfmd canary suggest 10 --out canary")
def suggest(
    count: CountArgument, out: OutOption, config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False
) -> None:
    """Pick frames that teach most when labelled; write them with pre-filled masks for CVAT, Label Studio, editors."""
    settings = read_settings(config)
    check_output(settings, out)
    from adapters.scoring.prefill import prefilled
    from storage.canary.suggesting import write_suggestions

    layout = layout_of(settings)
    registry_of(settings).serving_version()
    picks = _picks(settings, count)
    names = write_suggestions(settings, layout, out, prefilled(settings, [pick.frame for pick in picks]))
    facts = [{"frame": pick.frame, "condition": pick.condition, "value": pick.value} for pick in picks]
    answer(
        as_json,
        {"out": str(out), "images": names, "picks": facts},
        f"{len(names)} frames in {out}: images, masks (palette PNG), cvat.zip, label-studio.json.",
        f"Correct the masks, then: mfmd canary add {out}",
    )


def _picks(settings: "Settings", count: int) -> "list[Pick]":
    from daemon.gate.canary_choice import choose_frames

    return choose_frames(settings, count)


def _count(settings: "Settings") -> int:
    from storage.canary.images import import_canary

    return len(import_canary(settings, layout_of(settings)))


def _says(images: int) -> str:
    """Return what the gate does with this many images."""
    from storage.canary.records import LEAST_IMAGES

    if images >= LEAST_IMAGES:
        return f"{images} canary images count: they decide about candidates."
    return f"{images} canary images count: they can only veto; {LEAST_IMAGES - images} more decide."
