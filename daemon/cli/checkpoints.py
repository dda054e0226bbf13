"""`mfmd checkpoints`, `mfmd promote` and `mfmd rollback`: list versions, pin them, choose which one serves."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from daemon.cli.checkpoint_diff import diff
from daemon.cli.options import (
    DEFAULT_CONFIG,
    ConfigOption,
    JsonOption,
    ReasonOption,
    layout_of,
    registry_of,
    running_settings,
)
from daemon.cli.output import answer, headline, local_time, print_json, print_table
from daemon.exit_codes import ExitCode

if TYPE_CHECKING:
    from pathlib import Path

    from storage.registry.manifest import Ref
    from storage.registry.registry import CheckpointRegistry

checkpoints_app = typer.Typer(no_args_is_help=True, help="List, show, compare, pin, verify and prune versions.")

checkpoints_app.command(epilog="Example: mfmd checkpoints diff 2 3")(diff)
NumberArgument = Annotated[int, typer.Argument(min=1, help="Number of the version.", metavar="VERSION")]
NumbersArgument = Annotated[
    list[int] | None, typer.Argument(min=1, help="Numbers of versions.", metavar="[VERSION]...", show_default="all")
]
KeepOption = Annotated[
    int | None,
    typer.Option("--keep", min=0, help="Number of other versions to keep.", show_default="registry.keep_versions"),
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Only list what would be removed.")]
ToOption = Annotated[int | None, typer.Option("--to", min=1, help="Version.", show_default="the one before")]
ExpectedOption = Annotated[
    int | None, typer.Option("--expected", min=1, help="Only while this version serves.", show_default="any")
]

OPERATOR = "operator"


@checkpoints_app.command("list", epilog="Example: mfmd checkpoints list")
def list_(config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """List every version with its origin, its scores and the refs that name it."""
    registry = registry_of(running_settings(config))
    _say_damage(registry)
    rows = [_summary(registry, version, marks) for version, marks in _marks(registry).items()]
    if as_json:
        print_json(rows)
    elif rows:
        header = ["version", "origin", "parent", "round", "created", "scores", "marks"]
        print_table(header, [_row(**row) for row in rows])
    elif registry.given():
        typer.echo("No version is on disk.")
    else:
        typer.echo("No checkpoint yet: `mfmd pretrain` or `mfmd import PATH` creates the first.")


@checkpoints_app.command(epilog="Example: mfmd checkpoints show 3")
def show(number: NumberArgument, config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Show a version: its origin, scores, verdict, shadow and history. Verifies its files."""
    import yaml

    from storage.registry.shadow_record import ShadowRecords

    settings = running_settings(config)
    registry = registry_of(settings)
    manifest = registry.manifest(number)
    registry.verify(number)
    _say_damage(registry)
    events = [event.model_dump(mode="json") for event in registry.history() if event.version == number]
    shadows = ShadowRecords(layout_of(settings).shadow).of(number)
    facts = _summary(registry, number, _marks(registry).get(number, [])) | {
        "shadow": [record.model_dump(mode="json") | {"agreement": record.agreement} for record in shadows],
        "manifest": manifest.model_dump(mode="json"),
        "history": events,
    }
    answer(as_json, facts, yaml.safe_dump(facts, sort_keys=False, allow_unicode=True).rstrip())


@checkpoints_app.command(epilog='Example: mfmd checkpoints pin 3 --reason "winter baseline"')
def pin(
    number: NumberArgument,
    reason: ReasonOption = "",
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Pin a version, so that retention never removes it."""
    registry = registry_of(running_settings(config))
    registry.pin(number, OPERATOR, reason)
    answer(as_json, {"pinned": registry.pins()}, f"Version {number} is pinned.")


@checkpoints_app.command(epilog="Example: mfmd checkpoints unpin 3")
def unpin(
    number: NumberArgument,
    reason: ReasonOption = "",
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Unpin a version, so that retention may remove it."""
    registry = registry_of(running_settings(config))
    registry.unpin(number, OPERATOR, reason)
    answer(as_json, {"pinned": registry.pins()}, f"Version {number} is no longer pinned.")


@checkpoints_app.command(epilog="Example: mfmd checkpoints verify")
def verify(numbers: NumbersArgument = None, config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Hash the files of versions (all if none is named) and compare them with the manifests; exit 1 on damage."""
    from storage.errors import CorruptCheckpoint

    registry, rows, intact = registry_of(running_settings(config)), [], set[str]()
    for number in numbers or registry.versions():
        damage = None
        try:
            registry.verify(number, intact=intact)
        except CorruptCheckpoint as error:
            damage = str(error)
        rows.append({"version": number, "ok": damage is None, "damage": damage})
    answer(as_json, rows, *(f"Version {row['version']}: {row['damage'] or 'ok'}" for row in rows))
    if any(not row["ok"] for row in rows):
        raise typer.Exit(ExitCode.FAILURE)


@checkpoints_app.command(epilog="Example: mfmd checkpoints prune --keep 3 --dry-run")
def prune(
    keep: KeepOption = None,
    dry_run: DryRunOption = False,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Remove the oldest versions, and all but the newest few that never served.

    Versions that serve, served before it, are pinned, run in the shadow, were released or are best in a known condition
    stay.
    """
    from daemon.gate.moves import spared_versions
    from storage.layout import StateLayout

    settings = running_settings(config)
    registry = registry_of(settings)
    kept = settings.registry.keep_versions if keep is None else keep
    best = spared_versions(StateLayout(settings.state))
    removed = registry.prunable(kept, best) if dry_run else registry.prune(kept, best, by=OPERATOR)
    facts = {"removed": removed, "dry_run": dry_run, "versions": registry.versions()}
    names = ", ".join(map(str, removed)) or "none"
    answer(as_json, facts, f"{'Would remove' if dry_run else 'Removed'} versions: {names}.")


@checkpoints_app.command(epilog="Example: mfmd checkpoints shadow 3")
def shadow(number: NumberArgument, reason: ReasonOption = "", config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Run a version in the shadow of the one that serves, on a share of its requests (serving.shadow_fraction)."""
    registry_of(running_settings(config)).set_shadow(number, by=OPERATOR, reason=reason)
    typer.echo(f"Version {number} is the shadow.")


@checkpoints_app.command(epilog="Example: mfmd checkpoints unshadow")
def unshadow(reason: ReasonOption = "", config: ConfigOption = DEFAULT_CONFIG) -> None:
    """End the shadow."""
    registry_of(running_settings(config)).set_shadow(None, by=OPERATOR, reason=reason)
    typer.echo("No version is the shadow.")


def rollback(
    to: ToOption = None,
    expected: ExpectedOption = None,
    reason: ReasonOption = "rolled back by hand",
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Serve an earlier version again; mark the current one as rolled back. Works with the daemon up or down."""
    settings = running_settings(config)
    from daemon.gate.moves import roll_back

    registry = registry_of(settings)
    before = registry.readable_refs()[0].get("serving")  # with --to it may be damaged or gone
    _say_move(roll_back(registry, to=to, by=OPERATOR, reason=reason, expected=expected), before, as_json)


def promote(
    number: NumberArgument,
    expected: ExpectedOption = None,
    reason: ReasonOption = "promoted by hand",
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Serve any version; `mfmd rollback` undoes it. Works with the daemon up or down."""
    settings = running_settings(config)
    from daemon.gate.moves import promote as serve

    registry = registry_of(settings)
    before = registry.readable_refs()[0].get("serving")
    _say_move(serve(registry, number, by=OPERATOR, reason=reason, expected=expected), before, as_json)


def approve(
    number: NumberArgument,
    reason: ReasonOption = "approved by hand",
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Serve a version that waits for a decision (gate.policy: manual). Needs the daemon."""
    _answer(number, reason, config, as_json, approved=True)


def reject(
    number: NumberArgument,
    reason: ReasonOption = "rejected by hand",
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Reject a version that waits for a decision (gate.policy: manual). Needs the daemon."""
    _answer(number, reason, config, as_json, approved=False)


def _answer(number: int, reason: str, config: "Path", as_json: bool, *, approved: bool) -> None:
    from daemon.control.client import ControlClient

    verdict = ControlClient(layout_of(running_settings(config))).answer(number, reason, approved=approved)
    said = f"Version {number} serves." if approved else f"Version {number} is rejected; the serving version stays."
    answer(as_json, verdict.model_dump(mode="json"), said)


def _say_move(ref: "Ref", before: "Ref | None", as_json: bool) -> None:
    previous = before.version if before else None
    facts = ref.model_dump(mode="json") | {"previous": previous}
    answer(as_json, facts, f"Version {ref.version} serves (before: {previous or 'none'}).")


def _say_damage(registry: "CheckpointRegistry") -> None:
    """Print damaged refs and missing files of the serving version on stderr.

    The versions are still shown, because the operator needs them to choose another.
    """
    from daemon.status.collect import check_serving_files
    from storage.errors import StorageError

    damage = registry.readable_refs()[1]
    try:
        check_serving_files(registry)
    except StorageError as error:
        damage.append(str(error))
    for item in damage:
        typer.echo(f"warning: {item}", err=True)


def _marks(registry: "CheckpointRegistry") -> dict[int, list[str]]:
    refs, pins, state = registry.readable_refs()[0], registry.pins(), registry.state()
    return {
        version: [
            *(name for name, ref in refs.items() if ref.version == version),
            *(["pinned"] if version in pins else []),
            *state.marks(version),
        ]
        for version in registry.versions()
    }


def _summary(registry: "CheckpointRegistry", version: int, marks: list[str]) -> dict[str, Any]:
    """One version as `list --json` shows it; a damaged manifest is an entry too, so that the others can be seen."""
    from storage.errors import CorruptCheckpoint, NewerRecord

    kept = ("origin", "parent", "round", "created", "scores")
    try:
        facts = registry.manifest(version).model_dump(mode="json", include=set(kept))
    except CorruptCheckpoint as error:
        why = "of a newer mfmd" if isinstance(error, NewerRecord) else "corrupt"
        return {"version": version, **dict.fromkeys(kept), "marks": [*marks, why]}
    return {"version": version, **facts, "marks": marks}


def _row(created: float | None, scores: dict[str, float] | None, marks: list[str], **head: object) -> list[object]:
    return [*head.values(), local_time(created), headline(scores or {}) or "-", ", ".join(marks)]
