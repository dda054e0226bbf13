"""`mfmd buffer info|export|resize|compact`: show the frame buffer, export frames, change its shape."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

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
from daemon.cli.output import answer, local_time

if TYPE_CHECKING:
    from configs.buffer import BufferSettings
    from storage.buffer.info import BufferInfo

buffer_app = typer.Typer(no_args_is_help=True, help="Show, export, resize and compact the frame buffer.")


FolderArgument = Annotated[Path, typer.Argument(help="New or empty folder for the frames.", **PATH)]
FormatOption = Annotated[
    Literal["png", "jpeg", "webdataset"], typer.Option("--format", "-f", help="How images are written.")
]
HoldoutOption = Annotated[
    bool | None, typer.Option("--holdout/--train", help="Only held-out frames, or only the others.", show_default="all")
]
LimitOption = Annotated[
    int | None, typer.Option("--limit", min=1, help="At most this many frames, newest first.", show_default="all")
]
HeightOption = Annotated[int, typer.Option("--height", min=32, help="New frame height (pixels).")]
WidthOption = Annotated[int, typer.Option("--width", min=32, help="New frame width (pixels).")]
CapacityOption = Annotated[
    int | None,
    typer.Option(
        "--capacity", min=1, help="Keep at most this many frames, the newest.", show_default="buffer.capacity_frames"
    ),
]


@buffer_app.command(epilog="Example: mfmd buffer info")
def info(config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Show the buffer's frames, sizes, bytes, sources and leases. Works beside a running daemon."""
    settings = running_settings(config)
    from storage.buffer.info import buffer_info

    found = buffer_info(layout_of(settings), settings.buffer)
    answer(as_json, found.model_dump(mode="json"), *(f"{name:<10} {value}" for name, value in _lines(found)))


@buffer_app.command(epilog="Example: mfmd buffer export frames --format jpeg --holdout --limit 100")
def export(
    folder: FolderArgument,
    format: FormatOption = "png",
    holdout: HoldoutOption = None,
    limit: LimitOption = None,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Write frames as image files with an index, without their padding. Works beside a running daemon."""
    settings = running_settings(config)
    from storage.buffer.export import export_frames
    from storage.buffer.frames import FrameBuffer

    check_output(settings, folder)
    with FrameBuffer.open(layout_of(settings), settings.buffer, writable=False) as buffer:
        count = export_frames(buffer, folder, format, holdout=holdout, limit=limit)
    answer(as_json, {"frames": count, "format": format, "folder": str(folder)}, f"{count} frames -> {folder}")


@buffer_app.command(epilog="Example: mfmd buffer resize --height 768 --width 1536")
def resize(
    height: HeightOption,
    width: WidthOption,
    capacity: CapacityOption = None,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Rescale every stored frame to another size; the daemon must be stopped."""
    settings = read_settings(config)
    from daemon.cli.output import live_progress
    from storage.buffer.resize import resize_buffer

    count = settings.buffer.capacity_frames if capacity is None else capacity
    wanted = _resized(settings.buffer, config, height=height, width=width, capacity_frames=count)
    with live_progress() as show:
        kept = resize_buffer(layout_of(settings), wanted, lambda done, total: show("resizing", done, total, {}))
    answer(
        as_json,
        {"frames": kept, "height": height, "width": width, "capacity_frames": count},
        f"{kept} frames are {width}x{height} now.",
        f"Before `mfmd run`, set in {config}: buffer.height {height}, buffer.width {width}, "
        f"buffer.capacity_frames {count}.",
    )


@buffer_app.command(epilog="Example: mfmd buffer compact")
def compact(config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Free disk space: remove pixels of no frame and records of missing files; the daemon must be stopped."""
    settings = read_settings(config)
    from dataclasses import asdict
    from functools import partial

    from daemon.watch.missing import missing_files
    from storage.buffer.compact import compact_buffer

    done = compact_buffer(layout_of(settings), settings.buffer, partial(missing_files, settings.watch))
    kept = [f"Records were kept: {done.kept_because}."] if done.kept_because else []
    removed = f"{done.files_forgotten} records of missing files were removed."
    sizes = f"Catalog: {_size(done.bytes_before)} -> {_size(done.bytes_after)}."
    answer(as_json, asdict(done), removed, *kept, sizes)


def _resized(settings: "BufferSettings", config: Path, **sides: int) -> "BufferSettings":
    """Return the settings that the configuration needs after the resize. Raises ConfigError if they are not valid."""
    from pydantic import ValidationError

    from configs.errors import ConfigError

    try:
        return type(settings).model_validate(settings.model_dump() | sides)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(["buffer", *map(str, first["loc"])])
        raise ConfigError(f"{config}: {field}: {first['msg'].removeprefix('Value error, ')}") from error


def _lines(found: "BufferInfo") -> list[tuple[str, str]]:
    quota = f" of {_size(found.max_bytes)}" if found.max_bytes else ""
    sources = ", ".join(f"{repr(name)[1:-1] or '(none)'} {count}" for name, count in found.sources.items())
    leases = ", ".join(f"round {number}: {count} frames" for number, count in found.leases.items())
    lost = f", {found.lost_total} given up" if found.lost_total else ""
    return [
        ("frames", f"{found.frames} of {found.capacity_frames}, {found.holdout} held out"),
        ("size", f"{found.width}x{found.height}, tiles of at most {found.tile}"),
        ("disk", f"frames {_size(found.pixel_bytes)}{quota}, catalog {_size(found.catalog_bytes)}"),
        ("captured", f"{local_time(found.oldest)} to {local_time(found.newest)}"),
        ("sources", sources or "-"),
        ("leases", leases or "-"),
        ("ever", f"{found.committed_total} committed, {found.evicted_total} left{lost}"),
    ]


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1_000_000 else f"{count / 1e3:.0f} kB"
