"""`mfmd checkpoints diff A B`: the differences between two versions, as text and as JSON."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from daemon.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption, registry_of, running_settings
from daemon.cli.output import print_json, print_table

if TYPE_CHECKING:
    from daemon.status.version_diff import FieldChange, VersionDiff

FirstArgument = Annotated[int, typer.Argument(min=1, help="Version to compare with.", metavar="A")]
SecondArgument = Annotated[int, typer.Argument(min=1, help="Version that is compared.", metavar="B")]
LinesOption = Annotated[int, typer.Option("--tensors", min=0, help="Most tensors to show; 0: all.")]
SHOWN = 20
WIDEST = 60
"""Longest value that is shown (characters)."""


def diff(
    first: FirstArgument,
    second: SecondArgument,
    tensors: LinesOption = SHOWN,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Compare two versions: settings, manifest, scores, and how far each tensor moved."""
    registry = registry_of(running_settings(config))
    from daemon.status.version_diff import diff_versions

    found = diff_versions(registry, first, second)
    if as_json:
        print_json(found.model_dump(mode="json"))
        return
    _show_fields("settings", found.settings, found, unknown=not found.settings_known)
    _show_fields("manifest", found.manifest, found)
    _show_fields("scores", found.scores, found)
    _show_tensors(found, tensors or len(found.changed))


def _show_fields(title: str, changes: "dict[str, FieldChange]", found: "VersionDiff", *, unknown: bool = False) -> None:
    if unknown or not changes:
        typer.echo(f"{title}: {'not recorded in both manifests' if unknown else 'no difference'}\n")
        return
    rows = [(name, _short(change.before), _short(change.after)) for name, change in changes.items()]
    print_table([title, f"version {found.first}", f"version {found.second}"], rows)
    typer.echo("")


def _show_tensors(found: "VersionDiff", most: int) -> None:
    together = "-" if found.relative is None else f"{found.relative:.3g}"
    typer.echo(
        f"tensors: {len(found.changed)} of {found.tensors} differ; relative change {together} (RMS over tensors)"
    )
    rows = [
        (item.name, "x".join(map(str, item.shape)) or "scalar", item.note or f"{item.relative:.3g}")
        for item in found.changed[:most]
    ]
    if rows:
        print_table(["tensor", "shape", "change"], rows)
    if len(found.changed) > most:
        typer.echo(f"and {len(found.changed) - most} more: --tensors 0 shows all")


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= WIDEST else f"{text[: WIDEST - 3]}..."
