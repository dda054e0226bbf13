"""`mfmd explain`: the whole reasoning about a round or a version, in plain words with numbers."""

from typing import TYPE_CHECKING, Annotated

import typer

from daemon.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption, layout_of, running_settings
from daemon.cli.output import print_json

if TYPE_CHECKING:
    from configs.settings import Settings
    from daemon.gate.explanation import Explanation
    from storage.layout import StateLayout

NumberArgument = Annotated[
    int | None, typer.Argument(min=1, help="Number of a round or a version; default: the newest round.")
]
RoundOption = Annotated[
    bool | None,
    typer.Option("--round/--version", help="The round, or the version, of this number.", show_default="both"),
]


def explain(
    number: NumberArgument = None,
    is_round: RoundOption = None,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Explain a round or a version: why it began, every check with its meaning, the decision, what came of it.

    A number that both have explains both; without a number the newest round, and what the next one waits for. Works
    with the daemon up or down.
    """
    from dataclasses import asdict

    settings = running_settings(config)
    layout = layout_of(settings)
    found = _newest(settings, layout) if number is None else _explained(layout, number, is_round)
    if as_json:
        print_json({kind: asdict(explanation) for kind, explanation in found.items()})
    else:
        typer.echo("\n\n".join(explanation.as_text() for explanation in found.values()))


def _newest(settings: "Settings", layout: "StateLayout") -> dict[str, "Explanation"]:
    from daemon.gate.explanation import Explanation
    from daemon.status.collect import collect_status
    from daemon.status.explained import explained_round
    from storage.rounds.folder import RoundStore

    latest, status = RoundStore(layout.rounds).latest(), collect_status(settings)
    waits = status.next_round.waiting_for if status.round is None else ""
    following = Explanation(f"The next round waits for: {waits or 'the end of the one that runs'}.", ())
    return ({"round": explained_round(layout, latest.number)} if latest else {}) | {"next": following}


def _explained(layout: "StateLayout", number: int, is_round: bool | None) -> dict[str, "Explanation"]:
    from daemon.status.explained import explained_round, explained_version
    from storage.errors import UnknownRound, UnknownVersion

    readers = {"round": (explained_round, UnknownRound), "version": (explained_version, UnknownVersion)}
    if is_round is not None:
        kind = "round" if is_round else "version"
        return {kind: readers[kind][0](layout, number)}
    found = {}
    for kind, (reader, unknown) in readers.items():
        try:
            found[kind] = reader(layout, number)
        except unknown:
            if kind == "version" and not found:
                raise
    return found
