"""`mfmd predict`, `mfmd evaluate` and `mfmd export`: use a version without a server."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from daemon.cli.options import (
    DEFAULT_CONFIG,
    PATH,
    ConfigOption,
    JsonOption,
    VersionOption,
    check_output,
    read_settings,
    registry_of,
)
from daemon.cli.output import answer, percent, print_json, print_table
from daemon.exit_codes import ExitCode

FilesArgument = Annotated[list[Path], typer.Argument(help="Images.", **{**PATH, "metavar": "IMAGES"})]
OutOption = Annotated[Path, typer.Option("--out", "-o", help="Folder for the masks; created if missing.", **PATH)]
ImagesOption = Annotated[Path, typer.Option("--images", help="Folder of images.", **PATH)]
LabelsOption = Annotated[Path, typer.Option("--labels", help="Folder of label PNGs with the same stems.", **PATH)]


def predict(
    images: FilesArgument,
    out: OutOption,
    checkpoint: VersionOption = None,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Write a colour mask and an index mask for each image; an unusable image is reported and skipped (exit 1)."""
    settings = read_settings(config)
    check_output(settings, out)
    from adapters.scoring.prediction import predict_files

    answers: list[dict[str, object]] = []
    for file in predict_files(settings, images, out, checkpoint):
        masks = {name: path and str(path) for name, path in (("index", file.index), ("color", file.color))}
        answers.append({"image": str(file.source), "version": file.version, "reason": file.reason} | masks)
        if file.reason is not None:
            typer.echo(f"{file.source}: skipped: {file.reason}", err=True)
        elif not as_json:
            typer.echo(f"{file.source} -> {file.index} {file.color} (version {file.version})")
    if as_json:
        print_json(answers)
    if any(answer["reason"] is not None for answer in answers):
        raise typer.Exit(ExitCode.FAILURE)


def evaluate(
    images: ImagesOption,
    labels: LabelsOption,
    checkpoint: VersionOption = None,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Score a version on labelled images: mIoU, IoU of each class, pixel accuracy (percent)."""
    settings = read_settings(config)
    from adapters.scoring.evaluation import evaluate_folder

    result = evaluate_folder(settings, images, labels, checkpoint)
    if as_json:
        names = ("version", "images", "miou", "iou", "pixel_accuracy")
        print_json({name: getattr(result, name) for name in names})
        return
    print_table(["class", "IoU %"], [(name, percent(value)) for name, value in result.iou.items()])
    typer.echo(
        f"\nVersion {result.version}, {result.images} images: mIoU {percent(result.miou)} %, "
        f"pixel accuracy {percent(result.pixel_accuracy)} %"
    )


VersionArgument = Annotated[
    int | None, typer.Argument(min=1, help="Version to export.", show_default="the serving version")
]
FormatOption = Annotated[
    Literal["huggingface", "onnx", "torch-export"], typer.Option("--format", "-f", help="Format of the files.")
]
ExportOption = Annotated[Path, typer.Option("--out", "-o", help="New or empty folder for the files.", **PATH)]


def export(
    format: FormatOption,
    out: ExportOption,
    version: VersionArgument = None,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Write a version's network for use without mfmd: a Hugging Face directory, ONNX, or a torch.export program."""
    settings = read_settings(config)
    check_output(settings, out)
    from adapters.checkpoints.exporting.export import export_version

    registry = registry_of(settings)
    number = registry.serving_version() if version is None else version
    files = export_version(registry, number, format, out)
    facts = {"version": number, "format": format, "out": str(out), "files": files}
    answer(as_json, facts, f"Version {number} -> {out}: {', '.join(files)}")
