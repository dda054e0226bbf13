"""`mfmd adapt`: run one round now and print its verdict; through the daemon if it runs, else in this process."""

import time
from typing import TYPE_CHECKING

import typer

from daemon.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption, layout_of, registry_of, running_settings
from daemon.cli.output import print_json, print_table
from daemon.exit_codes import ExitCode

if TYPE_CHECKING:
    from configs.settings import Settings
    from daemon.cli.output import ShowProgress
    from daemon.control.client import ControlClient
    from daemon.errors import DaemonError
    from storage.layout import StateLayout
    from storage.rounds.folder import RoundFolder
    from storage.rounds.records import Progress
    from storage.rounds.verdict import Verdict

POLL_SECONDS = 0.5
DYING_SECONDS = 2.0
"""How long a daemon that does not answer may still hold its lock while the system takes a killed process down."""

AFTER_TRAINING = {
    "shadowing": "while the candidate of round {} ran in the shadow",
    "judged": "before it acted on the verdict of round {}",
}
"""What a daemon interrupted that ended in these stages of a round."""


def adapt(config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Run one round now and print the gate's verdict; exit 3 unless the candidate was accepted."""
    settings = running_settings(config)
    layout = layout_of(settings)
    from daemon.cli.output import live_progress

    with live_progress() as show:
        run = _through_daemon if layout.locked() else _in_process
        verdict = run(settings, layout, show)
    if as_json:
        print_json(verdict.model_dump(mode="json"))
    else:
        from daemon.gate.suggestion import waiting_version
        from storage.rounds.folder import RoundStore

        store = RoundStore(layout.rounds)
        waiting = waiting_version(store)
        _print(verdict, waits=waiting is not None and waiting == verdict.version)
        if verdict.decision != "accepted" and verdict.round in store.numbers():
            _say_unsure(store.folder(verdict.round))
    if verdict.decision != "accepted":
        raise typer.Exit(ExitCode.NOT_ACCEPTED)


def _in_process(settings: "Settings", layout: "StateLayout", show: "ShowProgress") -> "Verdict":
    """Run a round in this process, under the state directory's lock; Ctrl-C ends it cleanly, for good.

    If a kill interrupted a round, resume that one instead of starting a new one.
    """
    from daemon.rounds.recovery import recover
    from daemon.rounds.runner import RoundContext, continue_round, launch_round
    from daemon.runtime.logs import configure_logs
    from daemon.runtime.signals import stop_event
    from storage.buffer.frames import FrameBuffer
    from storage.directory.upgrade import prepare

    if settings.log.level == "debug":
        configure_logs(settings.log, "adapt")  # otherwise the progress display says it all
    registry = registry_of(settings)
    with layout.lock(), stop_event() as stop:
        prepare(layout)
        with FrameBuffer.open(layout, settings.buffer, writable=True) as buffer:
            interrupted = recover(settings, buffer, registry)
            context = RoundContext(settings, buffer, registry, stop, lambda item: _show(show, item))
            if interrupted is None:
                verdict = launch_round(context, "manual")
            else:
                typer.echo(f"Round {interrupted} was interrupted and resumes.", err=True)
                verdict = continue_round(context, interrupted)
        if stop.is_set():
            raise KeyboardInterrupt
        return verdict


def _through_daemon(settings: "Settings", layout: "StateLayout", show: "ShowProgress") -> "Verdict":
    from daemon.control.client import ControlClient
    from storage.rounds.folder import RoundStore

    client = ControlClient(layout)
    number = client.start_round()
    store, shown, running = RoundStore(layout.rounds), 0.0, True
    while running:
        time.sleep(POLL_SECONDS)
        running = _runs(client, layout, number)  # asked first: the verdict is written before this turns false
        folder = store.folder(number) if number in store.numbers() else None
        progress = folder.last_progress() if folder else None
        if progress is not None and progress.at > shown:
            shown = progress.at
            _show(show, progress)
    return _outcome(layout, folder, number, stopping=client.left or not layout.locked())


def _runs(client: "ControlClient", layout: "StateLayout", number: int) -> bool:
    from daemon.control.client import ControlFailed

    if not layout.locked():
        return False
    try:
        return client.running_round() == number
    except ControlFailed:
        if client.left:
            return not client.replaced  # its API is closed before its lock is free
        if _stays_locked(layout):
            raise
        return False


def _stays_locked(layout: "StateLayout") -> bool:
    """Return whether the daemon lives. After a kill the lock is released a moment after the connections close."""
    until = time.monotonic() + DYING_SECONDS
    while layout.locked():
        if time.monotonic() > until:
            return True
        time.sleep(0.05)
    return False


def _outcome(layout: "StateLayout", folder: "RoundFolder | None", number: int, *, stopping: bool) -> "Verdict":
    """Return the verdict of a round that has ended, or raise the error that explains why it has none."""
    from daemon.control.client import ControlFailed
    from daemon.errors import FitMismatch, NotEnoughFrames
    from daemon.rounds.runner import RoundFailed
    from storage.durable.record import read_record
    from storage.rounds.refusal import Refusal

    verdict = folder.verdict() if folder else None
    if folder is not None and verdict is not None:
        stage, scores = folder.record().stage, folder.scores()
        if stage == "failed" and scores is not None:
            raise RoundFailed(verdict, scores.reason, f"round {number} failed: {scores.reason}; see {folder.log}")
        if stage in ("promoted", "rejected", "suggested"):
            return verdict
    if folder is None and not stopping and (refusal := read_record(layout.refusal, Refusal)) is not None:
        raise (FitMismatch if refusal.code == FitMismatch.code else NotEnoughFrames)(refusal.reason)
    if not stopping:
        raise ControlFailed(f"round {number} has no verdict; see the daemon's log")
    raise _interrupted(folder, number)


def _interrupted(folder: "RoundFolder | None", number: int) -> "DaemonError":
    from daemon.control.client import ControlFailed
    from daemon.errors import Stopping
    from daemon.rounds.runner import RoundSuspended

    if folder is None:
        return Stopping(f"round {number} did not start before the daemon stopped; retry when the daemon runs")
    stage, step = folder.record().stage, folder.saved_step
    if stage in AFTER_TRAINING:
        when, since = AFTER_TRAINING[stage], ""
    elif step:
        when, since = "while round {} ran", f" from step {step}"
    else:
        end = f"the daemon ended before round {number} had saved any state"
        return ControlFailed(f"{end}; the next `mfmd run` records it as failed")
    how = f"the daemon {'was stopped' if stage == 'suspended' else 'ended'} {when.format(number)}"
    return RoundSuspended(f"{how}; the next `mfmd run` or `mfmd adapt` resumes it{since}")


def _show(show: "ShowProgress", progress: "Progress") -> None:
    facts = {**progress.losses, "kept": progress.kept_ratio, "agreement": progress.agreement}
    show(progress.phase, progress.step, progress.steps, facts)


def _say_unsure(folder: "RoundFolder") -> None:
    """Say so when a round learnt nothing from new images, which no check of its verdict tells.

    Test-time recipes learn from every pixel, and class confidence weighs by thresholds of its own.
    """
    from configs.recipe import SelfTrainingSettings
    from configs.settings import Settings

    if folder.kept_ratio() != 0.0:
        return
    recipe = Settings.model_validate(folder.spec().settings).recipe
    if isinstance(recipe, SelfTrainingSettings) and not recipe.advanced.class_confidence.enabled:
        what = "In its last steps no pixel of a new image was sure enough to learn from"
        typer.echo(f"{what}: recipe.threshold is {recipe.threshold}. A lower one lets the round learn.")


def _print(verdict: "Verdict", *, waits: bool) -> None:
    rows = [(check.name, check.kind, "pass" if check.passed else "FAIL", check.detail) for check in verdict.checks]
    if rows:
        print_table(["check", "kind", "result", "detail"], rows)
        typer.echo("")
    then = f" Version {verdict.version} serves." if verdict.version is not None else " The serving version stays."
    if waits:
        then = f" It waits for `mfmd approve {verdict.version}` or `mfmd reject {verdict.version}`."
    typer.echo(f"Round {verdict.round}: {verdict.decision}. {verdict.reason}.{then}".replace("..", "."))
