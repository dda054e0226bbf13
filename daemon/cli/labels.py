"""The table of label values that `mfmd init` and `mfmd pretrain` show before anything starts."""

from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from configs.settings import Settings
    from storage.source.label_counts import LabelCounts


def warn(text: str) -> None:
    """Print a warning to stderr."""
    typer.echo(typer.style("warning: ", fg=typer.colors.YELLOW, bold=True) + text, err=True)


def show_counts(counts: "LabelCounts", *, table: bool = True) -> None:
    """Print what labels hold as a table, and each warning to stderr."""
    for line in counts.lines() if table else ():
        typer.echo(line)
    for text in counts.warnings():
        warn(text)


def show_survey(settings: "Settings") -> None:
    """Print what a sample of the configured labels holds; a warning while their folders are missing.

    Raises SourceRefused for labels that cannot be read or meant.
    """
    from storage.source.label_survey import LabelSurvey

    source = settings.source
    if source is None:
        return
    folders = (source.images, source.labels, source.validation_images, source.validation_labels)
    if absent := [str(folder) for folder in folders if folder is not None and not folder.is_dir()]:
        warn(f"no labels to look at yet, no such folder: {', '.join(absent)}; `mfmd doctor` looks again")
        return
    survey = LabelSurvey(settings)
    typer.echo(f"{len(survey.pairs)} labelled images; {len(survey.read)} labels were read:")
    show_counts(survey.counts)
