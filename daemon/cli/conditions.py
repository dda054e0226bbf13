"""`mfmd conditions list|show|merge|rename|forget`: the conditions of the stream that the gate knows."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from daemon.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption, layout_of, running_settings
from daemon.cli.output import answer, local_time, print_json, print_table

if TYPE_CHECKING:
    from daemon.status.conditions import ConditionDetail

conditions_app = typer.Typer(no_args_is_help=True, help="List, show, merge, rename and forget known conditions.")

NumberArgument = Annotated[int, typer.Argument(min=1, help="Number of the condition.", metavar="CONDITION")]
NameArgument = Annotated[str, typer.Argument(help="New name.", metavar="NAME")]
IntoOption = Annotated[int, typer.Option("--into", min=1, help="The condition that stays.")]


@conditions_app.command("list", epilog="Example: mfmd conditions list --json")
def list_(config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """List the known conditions and which one each camera is in."""
    from daemon.status.conditions import describe_conditions
    from storage.gate.conditions import ConditionStore

    known = describe_conditions(ConditionStore(layout_of(running_settings(config)).conditions).read())
    if as_json:
        print_json(known.model_dump(mode="json"))
    elif not known.conditions:
        typer.echo("No condition is known yet: the observer has not seen enough frames.")
    else:
        rows = [
            (item.number, item.name, item.best, item.frames, item.golden, local_time(item.last_seen),
             " ".join(filter(None, ("current" * item.current, "labelled" * item.labelled))))
            for item in known.conditions
        ]  # fmt: skip
        print_table(["condition", "name", "best", "frames", "golden", "last seen", "marks"], rows)
        for camera, number in known.cameras.items():
            typer.echo(f"camera {camera or '(no label)'}: {f'condition {number}' if number else 'no known condition'}")


@conditions_app.command(epilog="Example: mfmd conditions show 2")
def show(number: NumberArgument, config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Show a condition: best version and why, golden frames, cameras, distances from the others."""
    from daemon.status.conditions import describe_condition
    from storage.buffer.catalog import Catalog
    from storage.gate.conditions import ConditionStore

    layout = layout_of(running_settings(config))
    with closing(Catalog.open(layout.catalog, writable=False)) as catalog:
        detail = describe_condition(ConditionStore(layout.conditions).read(), number, catalog)
    answer(as_json, detail.model_dump(mode="json"), *_lines(detail))


@conditions_app.command(epilog="Example: mfmd conditions merge 3 --into 2")
def merge(
    number: NumberArgument, into: IntoOption, config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False
) -> None:
    """Merge a condition into another one, which keeps its name and its best version."""
    _change(config, number, "merge", into=into)
    answer(as_json, {"merged": number, "into": into}, f"Condition {number} is merged into condition {into}.")


@conditions_app.command(epilog="Example: mfmd conditions rename 2 night")
def rename(
    number: NumberArgument, name: NameArgument, config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False
) -> None:
    """Rename a condition; names are unique."""
    _change(config, number, "rename", name=name)
    answer(as_json, {"condition": number, "name": name}, f"Condition {number} is called {name}.")


@conditions_app.command(epilog="Example: mfmd conditions forget 3")
def forget(number: NumberArgument, config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Forget a condition: its golden frames may be evicted, and only a burst of new frames opens it again."""
    _change(config, number, "forget")
    answer(as_json, {"forgotten": number}, f"Condition {number} is forgotten.")


def _change(
    config: Path, number: int, kind: Literal["merge", "rename", "forget"], *, into: int | None = None, name: str = ""
) -> None:
    """Ask the daemon; without one change the file under the state directory's lock."""
    layout = layout_of(running_settings(config))
    if layout.locked():
        from daemon.control.client import ControlClient

        contents: dict[str, dict[str, Any]] = {"merge": {"into": into}, "rename": {"name": name}, "forget": {}}
        ControlClient(layout).change_condition(number, kind, contents[kind])
        return
    from daemon.gate.changes import ConditionChange, write_change
    from storage.buffer.catalog import Catalog

    with closing(Catalog.open(layout.catalog, writable=False)) as catalog, layout.lock():
        write_change(layout, catalog, ConditionChange(kind=kind, number=number, into=into, name=name))


def _lines(detail: "ConditionDetail") -> Iterator[str]:
    one = detail.summary
    cameras = ", ".join(f"{camera or '(no label)'} {frames}" for camera, frames in one.cameras.items())
    yield f"condition {one.number}: {one.name}{' (current)' if one.current else ''}{' (labelled)' * one.labelled}"
    yield f"best      version {one.best or '-'}: {one.best_reason}"
    yield f"opened    {local_time(one.opened)}, last seen {local_time(one.last_seen)}"
    yield f"frames    {one.frames}, by camera: {cameras or '-'}"
    for other, apart in detail.distances.items():
        yield f"distance  {apart:.3f} from condition {other} (threshold {detail.threshold:.3f})"
    for frame, name in detail.golden_frames.items():
        yield f"golden    {frame} {repr(name)[1:-1] if name else '(no longer in the buffer)'}"
