"""`mfmd status`: what serves, what waits, how the last round ended. Works with the daemon up or down."""

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from daemon.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption, layout_of, running_settings
from daemon.cli.output import local_time, print_json, time_left
from daemon.exit_codes import ExitCode

if TYPE_CHECKING:
    from configs.settings import Settings
    from daemon.status.model import Status

CheckOption = Annotated[bool, typer.Option("--check", help="Print nothing; exit 1 unless the daemon is alive.")]

CHECK_SECONDS = 5.0
LABEL_WIDTH = 11
ACTIONS = {
    "serve": "",
    "shadow": "; an accepted candidate runs in the shadow first",
    "ask": "; an accepted candidate waits for `mfmd approve`",
}
"""What the line of the next round adds about its candidate."""


def status(config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False, check: CheckOption = False) -> None:
    """Show what serves, the buffer, the last rounds and what needs attention. Works with the daemon up or down."""
    settings = running_settings(config)
    if check:
        _check(settings)
        return
    from daemon.status.collect import collect_status

    state = collect_status(settings)
    if as_json:
        print_json(state.model_dump(mode="json"))
        return
    for label, text in _lines(state):
        typer.echo(f"{label:<{LABEL_WIDTH}}{text}")
    for message in state.messages:
        typer.echo(typer.style("!".ljust(LABEL_WIDTH), fg=typer.colors.YELLOW, bold=True) + message)


def _check(settings: "Settings") -> None:
    """Exit 1 with the reason unless a daemon holds the state directory, its threads live and no child hangs."""
    from daemon.control.client import ControlClient, ControlFailed
    from daemon.status.daemon_probe import running_activity

    layout = layout_of(settings)
    try:
        problems = [f"no daemon on {layout.root}"]
        if layout.locked():
            problems = ControlClient(layout, CHECK_SECONDS).problems("/healthz")
            children = running_activity(layout).children
            problems += [f"`mfmd {child.name}` {child.problem}" for child in children if child.hangs]
    except ControlFailed as error:
        problems = [str(error)]
    if problems:
        typer.echo("; ".join(problems), err=True)
        raise typer.Exit(ExitCode.FAILURE)


def _lines(state: "Status") -> Iterator[tuple[str, str]]:
    yield "daemon", _daemon(state)
    if state.pause is not None:
        yield "paused", f"since {local_time(state.pause.at)} by {state.pause.by}: {state.pause.reason}"
    yield "serving", _serving(state)
    for mirror in state.mirrors:
        yield "mirror", f"{mirror.name} {mirror.folder}: {mirror.state}, version {mirror.version or '-'}"
    yield "folder", f"{state.folder}: {_watching(state)}, {state.watch.pending} waiting, ingest {state.ingest.state}"
    yield "buffer", _buffer(state)
    if state.round is not None:
        yield "round", _running(state)
    for item in state.last_rounds[:3]:
        served = f", version {item.version}" if item.version else ""
        served += f" ({item.effort})" if item.effort != "full" else ""
        served += " (from the released weights)" if item.restarts else ""
        out = ", ".join(f"{count} {reason}" for reason, count in item.left_out.items())
        served += f" (left out: {out})" if out else ""
        yield f"round {item.round}", f"{item.result}{served} at {local_time(item.ended)}: {item.reason}"
    if state.conditions.conditions:
        yield "conditions", _conditions(state)
    if state.canary is not None and (state.canary.images or state.canary.problem):
        yield "canary", state.canary.problem or _canary(state.canary.images)
    if (watched := state.probation) is not None:
        yield "probation", f"version {watched.version} {watched.stage.replace('_', ' ')}: {watched.reason}"
    if state.recall is not None and state.recall.reason:
        yield "recall", f"{state.recall.stage}{' (paused)' if state.pause else ''}: {state.recall.reason}"
    yield "drift", _drift(state)
    if state.round is None and state.next_round.waiting_for:
        yield "next", state.next_round.waiting_for + ACTIONS[state.next_round.action]
    if most := state.budget_minutes:
        used = state.next_round.used_minutes
        yield "budget", f"{used:.1f} of {most:g} minutes of the last 24 h used, {max(0.0, most - used):.1f} left"
    if state.observed is not None:
        seen = state.observed
        yield "observed", f"{seen.frames} frames: confidence {seen.confidence:.3f}, entropy {seen.entropy:.3f} nats"


def _daemon(state: "Status") -> str:
    daemon = state.daemon
    if not daemon.up:
        return f"down; state in {state.state}"
    if daemon.pid is None:
        return f"starts, or another command works on {state.state}"
    children = "".join(
        f", {child.name} {'hangs' if child.hangs else 'runs' if child.running else 'down'}" for child in state.children
    )
    return f"up since {local_time(daemon.since)}, pid {daemon.pid}, control {daemon.host}:{daemon.port}{children}"


def _watching(state: "Status") -> str:
    watch = state.watch
    if watch.state != "watching":
        return watch.state
    why = " ".join(filter(None, (watch.mode_reason.replace("_", " "), watch.file_system)))
    return f"watching by {watch.mode} ({why})"


def _serving(state: "Status") -> str:
    from daemon.status.plane_probe import describe_plane

    ref, plane = state.serving, state.plane
    answers = describe_plane(plane)
    if ref is None:
        return f"unknown, the ref is damaged or missing; {answers}" if state.serving_damaged else "no version yet"
    before = f", before it {state.previous.version}" if state.previous else ""
    return f"version {ref.version} since {local_time(ref.since)}, by {ref.by}{before}; {answers}"


def _buffer(state: "Status") -> str:
    buffer = state.buffer
    if state.buffer_damaged:
        return "unknown, its catalog cannot be read"
    refused, skipped = sum(buffer.refused.values()), sum(buffer.skipped.values())
    newest = f", newest {local_time(buffer.last_committed_at)}" if buffer.last_committed_at else ""
    return (
        f"{buffer.frames} of {buffer.capacity} frames, {buffer.holdout} held out{newest}; "
        f"{buffer.duplicates} duplicates, {skipped} skipped, {refused} refused"
    )


def _conditions(state: "Status") -> str:
    known = state.conditions
    names = {item.number: item.name for item in known.conditions}
    best = ", ".join(f"{item.name} (best {item.best or '-'}, {item.golden} golden)" for item in known.conditions)
    cameras = "".join(
        f"; camera {camera} in {names.get(number or 0, 'no known one')}"
        for camera, number in known.cameras.items()
        if camera
    )
    return f"now {names.get(known.current or 0, 'no known one')}{cameras}; known: {best}"


def _canary(images: int) -> str:
    from storage.canary.records import LEAST_IMAGES

    only = f"can only veto; {LEAST_IMAGES - images} more decide"
    return f"{images} labelled images: {'they decide about candidates' if images >= LEAST_IMAGES else only}"


def _drift(state: "Status") -> str:
    """Return where the alarm stands, and the newest one."""
    stage, drift = state.drift_state, state.drift
    if stage == "no_observer":
        return "not watched: observe.enabled is off, so conditions, recall and probation see no frames either"
    if drift is None or drift.last_alarm is None:
        return stage
    frames = ", ".join(map(str, drift.foreign))
    return f"{stage}; alarm at {local_time(drift.last_alarm)}: {drift.reason}; frames {frames}"


def _running(state: "Status") -> str:
    assert state.round is not None
    progress = state.round.progress
    if progress is None:
        return f"{state.round.round} starts"
    age = max(0.0, time.time() - progress.at)
    losses = "".join(f", {name} {value:.3g}" for name, value in progress.losses.items())
    as_served = f", agreement {progress.agreement:.3f}" if progress.agreement is not None else ""
    done = f"{progress.phase} {progress.step}/{progress.steps}{time_left(state.round.seconds_left)}"
    return f"{state.round.round} {done}{losses}{as_served} ({age:.0f} s ago)"
