"""`mfmd pause` and `mfmd resume`: stop the daemon's own changes for a while. With the daemon up or down."""

from typing import Annotated

import typer

from daemon.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption, layout_of, running_settings
from daemon.cli.output import answer

WhyOption = Annotated[str, typer.Option("--reason", help="Reason, shown while it lasts.")]
EndOption = Annotated[str, typer.Option("--reason", help="Reason, for the log.")]


def pause(reason: WhyOption, config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Begin no round and recall no version until `mfmd resume`. Serving, ingest and what you ask for go on."""
    from storage.gate.pause import pause as begin

    begun = begin(layout_of(running_settings(config)), by="operator", reason=reason)
    said = "Paused: no round begins by itself, and no recall moves what serves. `mfmd resume` ends it."
    answer(as_json, begun.model_dump(mode="json"), said)


def resume(
    reason: EndOption = "resumed by hand", config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False
) -> None:
    """End the pause."""
    from storage.gate.pause import resume as end

    ended = end(layout_of(running_settings(config)), by="operator", reason=reason)
    answer(as_json, {"resumed": ended}, "The pause has ended." if ended else "There is no pause.")
