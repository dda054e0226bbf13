"""`mfmd init` and `mfmd demo`: write a first configuration; show the whole cycle."""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from daemon.cli.from_model import fitted, read_model
from daemon.cli.labels import show_survey
from daemon.cli.options import DEFAULT_CONFIG, PATH, ConfigOption, config_option
from daemon.cli.training import UnsafeOption, import_model, release_first

if TYPE_CHECKING:
    from configs.settings import Settings

FolderArgument = Annotated[Path, typer.Argument(help="Folder where images will arrive; created if missing.", **PATH)]
ClassesOption = Annotated[
    str | None,
    typer.Option(
        "--classes",
        help="Class list (acdc, ade20k, bdd100k, camvid, cityscapes, demo, mapillary, pascal_context or voc), or "
        "names: background,vessel.",
        show_default="cityscapes",
    ),
]
ImagesOption = Annotated[Path | None, typer.Option("--source-images", help="Folder of labelled source images.", **PATH)]
LabelsOption = Annotated[Path | None, typer.Option("--source-labels", help="Folder of their label PNGs.", **PATH)]
PresetOption = Annotated[
    str | None,
    typer.Option(
        "--preset",
        help="Start from a preset: camvid_adaptation, camvid_day2dusk, demo, fundus, fundus_fewshot, "
        "gta2cityscapes_dacs_deeplabv2, gta2cityscapes_daformer, gta2cityscapes_hrda, gta2cityscapes_mic_daformer, "
        "gta2cityscapes_vfmuda.",
    ),
]
FromModelOption = Annotated[
    str | None,
    typer.Option(
        "--from-model", help="Take classes and image size from this model, and import it: a hub id or folder."
    ),
]
ForceOption = Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")]
_MOST = 40
"""Longest list of classes in the answer."""
ReportOption = Annotated[
    Path | None, typer.Option("--out", "-o", help="Folder for the report and the picture.", **PATH)
]
NO_SIZE = (
    "warning: the model's files name no size that frames can have; if it was trained at another one, set buffer.height "
    "and buffer.width, then `mfmd import` it again and promote that version"
)
"""Said of a model whose processor makes no frames."""


def init(
    folder: FolderArgument = Path("drop"),
    config: ConfigOption = DEFAULT_CONFIG,
    classes: ClassesOption = None,
    source_images: ImagesOption = None,
    source_labels: LabelsOption = None,
    preset: PresetOption = None,
    from_model: FromModelOption = None,
    unsafe_pickle: UnsafeOption = False,
    force: ForceOption = False,
) -> None:
    """Write a commented configuration for the drop folder FOLDER; with --from-model also import the model."""
    from configs.load import load_settings
    from storage.durable import make_directory, write_bytes
    from storage.durable.permissions import shared_files

    if (source_images is None) != (source_labels is None):
        raise typer.BadParameter("give both --source-images and --source-labels, or neither")
    if unsafe_pickle and from_model is None:
        raise typer.BadParameter("--unsafe-pickle is for the model of --from-model")
    given = {"--classes": classes, "--source-images": source_images, "--from-model": from_model}
    if preset is not None and (wrong := [name for name, value in given.items() if value is not None]):
        raise typer.BadParameter(f"--preset has its own classes and source; leave out {wrong[-1]}, then edit the file")
    _check_target(config, force=force)
    text = _filled(_text(preset, classes or "cityscapes"), "watch", "folder", _relative(folder, config))
    model = None if from_model is None else read_model(from_model, pickles=unsafe_pickle)
    if model is not None:
        text = fitted(text, model.facts, keep_classes=classes is not None)
    if source_images is not None and source_labels is not None:
        text = _filled(text, "source", "images", _relative(source_images, config))
        text = _filled(text, "source", "labels", _relative(source_labels, config))
    settings = load_settings(config, text)  # before anything is written
    created = not folder.exists()
    # Before the configuration: a model that is refused leaves none that would have to be overwritten.
    version = None if model is None else import_model(model.place, settings, unsafe_pickle=unsafe_pickle)
    with shared_files():
        make_directory(folder)
        make_directory(config.parent)
        write_bytes(config, text.encode(), shared=True)
    typer.echo(f"Wrote {config}. Drop folder: {settings.watch.folder}{' (created)' if created else ''}")
    typer.echo(_say_classes(settings, chosen=(classes or preset or from_model) is not None))
    if version is not None:
        typer.echo(f"Frames: {settings.buffer.height}x{settings.buffer.width} (height x width).")
        if model is not None and not model.facts.buffer:
            typer.echo(NO_SIZE, err=True)
        reason, option = f"imported from {from_model}", config_option(config)
        release_first(settings, version, by="import", reason=reason, as_json=False, option=option)
    show_survey(settings)
    if version is None:
        typer.echo(_next_steps(config, with_source=settings.source is not None))


def _check_target(config: Path, *, force: bool) -> None:
    from configs.errors import ConfigError

    if config.is_dir():
        raise ConfigError(f"{config}: is a folder; name a file with --config FILE")
    if os.path.lexists(config) and not force:
        raise ConfigError(f"{config}: file exists; --force overwrites it, --config FILE writes another")


def _say_classes(settings: "Settings", *, chosen: bool) -> str:
    """Return which classes were written and, when nobody chose them, what else there is."""
    from configs.class_list import shipped

    names = [item.name for item in settings.classes]
    more = f" and {len(names) - _MOST} more" if len(names) > _MOST else ""
    said = f"Classes ({len(names)}): {', '.join(names[:_MOST])}{more}."
    others = ", ".join(name for name in shipped("class_lists") if name != "cityscapes")
    other = f"They are of cityscapes; --classes chooses others: {others}, or names such as background,vessel"
    return said if chosen else f"{said}\n{other}"


def _text(preset: str | None, classes: str) -> str:
    """Return the text of a preset, or of `configs/init.yaml`, which shows defaults, with classes by list or name."""
    from importlib import resources

    import yaml

    from configs.class_list import shipped

    presets, lists = shipped("presets"), shipped("class_lists")
    if preset is not None:
        if preset not in presets:
            raise typer.BadParameter(f"no preset {preset!r}; there are {', '.join(presets)}")
        return presets[preset].read_text(encoding="utf-8")
    if classes not in lists and "," not in classes:
        raise typer.BadParameter(f"no class list {classes!r}; there are {', '.join(lists)}, or give names: a,b,c")
    names = [name.strip() for name in classes.split(",")]
    listed = yaml.safe_dump(names, default_flow_style=True, allow_unicode=True, width=10_000).strip()
    line = f"classes: {classes if classes in lists else listed}"
    text = (resources.files("configs") / "init.yaml").read_text(encoding="utf-8")
    return text.replace("classes: cityscapes        ", f"{line:<27}", 1)


def _filled(text: str, section: str, key: str, value: str) -> str:
    """Return a configuration's text with another value in its place, and not commented out."""
    import yaml

    line = yaml.safe_dump({key: value}, allow_unicode=True, width=10_000).strip()
    place = rf"^#?({section}:\n(?:  .*\n)*?)#?  {key}: \S+ *(#.*)?$"
    return re.sub(
        place, lambda found: f"{found[1]}{f'  {line}':<27} {found[2] or ''}".rstrip(), text, count=1, flags=re.MULTILINE
    )


def _relative(path: Path, config: Path) -> str:
    """Return `path` relative to the folder of `config` if it lies in it, else absolute."""
    target, base = Path(os.path.realpath(path)), Path(os.path.realpath(config)).parent
    return Path(os.path.relpath(target, base)).as_posix() if target.is_relative_to(base) else target.as_posix()


def _next_steps(config: Path, *, with_source: bool) -> str:
    option = config_option(config)
    first = f"mfmd pretrain{option}" if with_source else f"mfmd import MODEL{option}"
    return f"Next: mfmd doctor{option}, then {first}, then mfmd run{option}"


def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Leave the state directory and the daemon running.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for the report and the picture.", **PATH)
    ] = None,
) -> None:
    """Show the whole cycle on drawn street scenes: no download, no configuration, five minutes on two cores."""
    from daemon.demo.story import run_demo

    raise typer.Exit(run_demo(keep=keep, out=out))
