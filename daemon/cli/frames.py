"""`mfmd frames`: extract image files from videos; `mfmd run` starts one for the videos of the drop folder."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from daemon.cli.options import DEFAULT_CONFIG, PATH, ConfigOption, JsonOption, check_output, read_settings
from daemon.cli.output import print_json
from daemon.cli.planes import as_process, settings_to_reload
from daemon.exit_codes import ExitCode

if TYPE_CHECKING:
    from configs.watch import VideoSettings, WatchSettings

VideosArgument = Annotated[
    list[Path] | None,
    typer.Argument(help="Video files.", metavar="[VIDEOS]", show_default=False, parser=PATH["parser"]),
]
IntoOption = Annotated[
    Path | None,
    typer.Option("--into", help="Folder for the images.", show_default="the drop folder, watch.folder", **PATH),
]
EveryOption = Annotated[
    float | None,
    typer.Option("--every", min=0.001, help="Spacing of the frames (seconds).", show_default="videos.seconds"),
]


def frames(
    videos: VideosArgument = None,
    into: IntoOption = None,
    every: EveryOption = None,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Write frames of videos as PNG files. Without VIDEOS: those of the drop folder, until stopped."""
    if not videos:
        settings = settings_to_reload(config)
        from daemon.videos.worker import watch_videos

        raise typer.Exit(as_process("frames", settings, config, watch_videos))
    folder, limits, looks = _settings(config, into, every)
    from daemon.videos.frame_files import write_frames
    from storage.errors import RefusedImage

    answers: list[dict[str, object]] = []
    for video in videos:
        try:
            done = write_frames(video, folder, limits, looks)
        except (RefusedImage, FileNotFoundError) as error:
            typer.echo(f"{video}: {error}", err=True)
            answers.append({"video": str(video), "reason": getattr(error, "reason", "not_found"), "detail": str(error)})
            continue
        answers.append({"video": str(video), "written": done.written, "there": done.there, "damage": done.damage})
        if not as_json:
            there = f", {done.there} existed already" if done.there else ""
            damage = f"; damaged: {done.damage}" if done.damage else ""
            typer.echo(f"{video}: {done.written} frames -> {folder}{there}{damage}")
    if as_json:
        print_json(answers)
    if any("reason" in answer for answer in answers):
        raise typer.Exit(ExitCode.FAILURE)


def _settings(config: Path, into: Path | None, every: float | None) -> "tuple[Path, VideoSettings, WatchSettings]":
    """Return folder, video settings and watch settings: from the configuration, or defaults if it is not needed."""
    from configs.watch import VideoSettings, WatchSettings

    if into is not None and not config.exists():
        videos, watch = VideoSettings(), WatchSettings(folder=into)
    else:
        settings = read_settings(config)
        check_output(settings, into or settings.watch.folder, drop=False)
        videos, watch = settings.videos, settings.watch
    return into or watch.folder, videos if every is None else videos.model_copy(update={"seconds": every}), watch
