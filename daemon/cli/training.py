"""`mfmd pretrain` and `mfmd import`: where the first checkpoint comes from."""

from typing import TYPE_CHECKING, Annotated

import typer

from daemon.cli.labels import show_counts, warn
from daemon.cli.options import (
    DEFAULT_CONFIG,
    ConfigOption,
    JsonOption,
    config_option,
    layout_of,
    read_settings,
    registry_of,
    user_path,
)
from daemon.cli.output import answer, headline

if TYPE_CHECKING:
    from collections.abc import Mapping

    from adapters.checkpoints.hub import Located
    from configs.settings import Settings
    from storage.registry.manifest import Manifest
    from storage.source.label_counts import LabelCounts


UnsafeOption = Annotated[
    bool, typer.Option("--unsafe-pickle", help="Also read pickles (.bin, .pt, .pth); reading one can run code in it.")
]


ByPositionOption = Annotated[
    bool,
    typer.Option("--classes-by-position", help="Take the model's classes by position where only their names differ."),
]


def pretrain(config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Train on the labelled source images and release the result as a version."""
    settings = read_settings(config)
    from configs.errors import ConfigError

    if settings.source is None:
        raise ConfigError(
            f"{config}: source: required by `mfmd pretrain`; set source.images and source.labels, "
            "or import a trained model with `mfmd import PATH`"
        )
    from adapters.rounds.source_training import PretrainProgress
    from adapters.rounds.source_training import pretrain as train
    from daemon.cli.output import live_progress

    counts = _import_source(settings)
    show_counts(counts, table=not as_json)
    with live_progress() as show:

        def on_progress(progress: PretrainProgress) -> None:
            show(progress.phase, progress.step, progress.steps, {"loss": progress.loss})

        manifest = train(settings, on_progress)
    labels = [{"value": value, "class": name, "pixels": pixels} for value, name, pixels in counts.rows()]
    told = {"labels": labels, "warnings": counts.warnings()}
    option = config_option(config)
    release_first(
        settings, manifest, by="pretrain", reason="trained on source images", as_json=as_json, told=told, option=option
    )


def _import_source(settings: "Settings") -> "LabelCounts":
    """Import the source set unless the state holds it; return what its labels hold."""
    from daemon.cli.output import live_progress
    from storage.directory.format import begin
    from storage.source.labelled_import import import_labelled, label_map_of

    layout = layout_of(settings)
    begin(layout)
    layout.create()
    with live_progress() as show:
        source = import_labelled(settings, layout, lambda done, total: show("importing", done, total, {}))
    return source.counts(label_map_of(settings))


def import_(
    source: Annotated[str, typer.Argument(help="Hugging Face model directory or hub id, or a .safetensors file.")],
    unsafe_pickle: UnsafeOption = False,
    classes_by_position: ByPositionOption = False,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Import a trained model: a Hugging Face segmentation model (directory or hub id), or safetensors of `network`."""
    settings = read_settings(config)
    place = str(user_path(source)) if source.startswith("~") else source
    manifest = import_model(place, settings, unsafe_pickle=unsafe_pickle, by_position=classes_by_position)
    reason = f"imported from {source}"
    release_first(settings, manifest, by="import", reason=reason, as_json=as_json, option=config_option(config))


def import_model(
    source: "str | Located", settings: "Settings", *, unsafe_pickle: bool, by_position: bool = False
) -> "Manifest":
    """Register a model from outside as a version and return its manifest. Raises as `import_checkpoint` does."""
    from adapters.checkpoints.importing import import_checkpoint
    from storage.directory.format import begin

    begin(layout_of(settings))
    return import_checkpoint(
        source,
        settings,
        registry_of(settings),
        unsafe_pickle=warn if unsafe_pickle else None,
        by_position=by_position,
        note=warn,
    )


def release_first(
    settings: "Settings",
    manifest: "Manifest",
    *,
    by: str,
    reason: str,
    as_json: bool,
    told: "Mapping[str, object] | None" = None,
    option: str = "",
) -> None:
    """Let a new version serve if none serves yet, and print what is so; `option` follows the suggested commands."""
    from daemon.gate.moves import release

    registry = registry_of(settings)
    ref = release(registry, manifest.version, by, reason)
    serving = registry.serving()
    facts = {
        "version": manifest.version, "released": ref is not None, "serving": serving.version if serving else None,
        "scores": manifest.scores, **(told or {}),
    }  # fmt: skip
    scores = headline(manifest.scores)
    lines = [f"Version {manifest.version}{f' ({scores})' if scores else ''}."]
    if ref is not None:
        lines.append(f"It serves. Next: mfmd run{option}, and drop images into {settings.watch.folder}")
    elif serving is not None:
        lines.append(
            f"Version {serving.version} keeps serving; `mfmd promote {manifest.version}{option}` serves the new one."
        )
    answer(as_json, facts, *lines)
