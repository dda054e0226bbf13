"""What needs the operator's attention: one sentence each, saying what is wrong and what to do."""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from configs.settings import Settings
from daemon.net.certificates import RENEW, ending
from daemon.net.listening import holder
from daemon.net.secret_files import NEW_SECRET, exposure, secret_files
from daemon.runtime.activity import Activity
from daemon.status.model import Status

CLOCK_SECONDS = 300.0
"""A record may be so far ahead of this machine's clock (seconds): machines that share a registry differ a little."""
OLDEST_TIME = 1_767_225_600.0
"""No clock that is right says less (Unix, seconds): 2026 began, and mfmd was not written yet."""
ALWAYS = "gate.policy is always: candidates serve unchecked; set it to auto unless this is an experiment"


def operator_messages(status: Status, settings: Settings) -> list[str]:
    """Messages about `status`, most urgent first; empty when all is well."""
    parts = (
        _folder(status, settings),
        _file(status),
        _children(status),
        _plane(status, settings),
        _mirrors(status),
        _rounds(status, settings),
        _policy(status, settings),
        _canary(status),
        filter(None, [clock_message(status)]),
        _secrets(settings),
        _refused(status),
    )
    urgent = [] if status.daemon.up else [_down(status, settings.control.port)]
    if status.serving is None and not status.serving_damaged:  # damage is told already
        urgent.append(nothing_serves(status.versions, settings))
    return [*urgent, *(message for part in parts for message in part)]


def _down(status: Status, port: int) -> str:
    """Return that the daemon does not run, and why it could not be started: by this user, or on the control port."""
    if Path(status.state).exists() and not os.access(status.state, os.W_OK | os.X_OK):
        remedy = "mount it for writing, run mfmd as the user who owns it, or change the owner"
        return f"the daemon is not running, and this user cannot write to {status.state}: {remedy}"
    if port and (held := holder(port)):
        return f"the daemon is not running, and control.port {port} is in use{held}; stop that, or choose another port"
    return "the daemon is not running: `mfmd run` starts it; `mfmd doctor` says what hinders a start"


def waiting_messages(activity: Activity) -> list[str]:
    """Return which parts of the daemon wait, one message for each reason."""
    paused = {"ingest": activity.ingest.reason} if activity.ingest.state == "paused" else {}
    waiting: dict[str, list[str]] = {}
    for part, reason in (paused | activity.errors).items():
        waiting.setdefault(reason, []).append(part)
    return [
        f"{', '.join(parts)} {'wait' if len(parts) > 1 else 'waits'}: {reason}" for reason, parts in waiting.items()
    ]


def clock_message(status: Status) -> str:
    """Return that this machine's clock cannot be right; empty when it may be.

    It is before what was recorded here, or before mfmd was written.
    """
    ended = [item.ended or 0.0 for item in status.last_rounds]
    records = {
        "the serving version was promoted": status.serving.since if status.serving is not None else 0.0,
        "the newest frame was committed": status.buffer.last_committed_at or 0.0,
        "the last round ended": max(ended, default=0.0),
    }
    what, newest = max(records.items(), key=lambda item: item[1])
    remedy = "set it (NTP): times of frames, rounds and alarms follow it; what is recorded stays as it is"
    if newest > status.at + CLOCK_SECONDS:
        days = (newest - status.at) / 86_400
        return f"this machine's clock is {days:.1f} days before the time at which {what}: {remedy}"
    if status.at < OLDEST_TIME:
        return f"this machine's clock says {time.strftime('%Y-%m-%d', time.gmtime(status.at))}: {remedy}"
    return ""


def nothing_serves(versions: Sequence[int], settings: Settings) -> str:
    """Return what to do while none of `versions` serves."""
    if versions:
        known = ", ".join(map(str, versions))
        return f"no version serves, but versions exist: {known}: `mfmd promote {versions[-1]}` serves the newest"
    if settings.source is not None:
        return "no version yet: `mfmd pretrain` trains one on the source images"
    return "no version yet: `mfmd import PATH` imports one, or configure `source` and run `mfmd pretrain`"


def _folder(status: Status, settings: Settings) -> Iterator[str]:
    if status.watch.state in ("missing", "unmounted", "unreadable", "overlapping"):
        yield status.watch.detail or f"the drop folder {status.folder} does not exist"
    elif status.watch.detail:
        yield f"drop folder: {status.watch.detail}"
    if status.ingest.state == "failed":
        yield f"ingest stopped for good: {status.ingest.reason}; restart the daemon"
    reserve, free = settings.buffer.reserve_bytes, status.buffer.disk_free_bytes
    if free is not None and free < reserve:
        yield (
            f"the disk of {status.state} has {free / 1e6:.0f} MB free, less than buffer.reserve_bytes: the buffer does "
            "not grow, and ingest pauses below half of it; free disk space"
        )


def _refused(status: Status) -> Iterator[str]:
    refused = sum(status.buffer.refused.values())
    if refused:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(status.buffer.refused.items()))
        yield f"{refused} file(s) of the drop folder are refused: {reasons}; `mfmd refused list` says why"


def _file(status: Status) -> Iterator[str]:
    file = status.settings
    if file.problem:
        yield f"{file.problem}; the daemon keeps the settings in force: correct the file, then run `mfmd reload`"
    if file.reload:
        yield f"{file.file} differs from the settings in force; `mfmd reload` applies: {', '.join(file.reload)}"
    if file.restart:
        yield f"{file.file} differs from the settings in force; only a restart applies: {', '.join(file.restart)}"


def _children(status: Status) -> Iterator[str]:
    for child in status.children:
        if child.hangs:
            yield (
                f"`mfmd {child.name}` hangs: process {child.pid} does not answer; it is killed and restarted "
                "within a minute: look for a full disk, a lost mount, or too little memory or CPU time"
            )
        again = "it was restarted"
        if child.next_start is not None:
            again = f"restart in {max(0.0, child.next_start - time.time()):.0f} s"
        if child.reason or child.next_start is not None:
            reason = f": {child.reason}" if child.reason else ""
            yield f"`mfmd {child.name}` ended with status {child.last_exit}{reason}; {again}"


def _mirrors(status: Status) -> Iterator[str]:
    for mirror in status.mirrors:
        if mirror.state not in ("failed", "stopped"):
            continue
        holds = f"serves version {mirror.version}" if mirror.version is not None else "has no version yet"
        again = "; the daemon retries it only after a restart"
        if mirror.next_attempt is not None:
            again = f"; next attempt in {max(0.0, mirror.next_attempt - time.time()):.0f} s"
        yield f"publish.{mirror.name}: {mirror.folder} {holds}: {mirror.reason}{again}"


def _plane(status: Status, settings: Settings) -> Iterator[str]:
    plane, serving = status.plane, status.serving
    if plane.refused:
        yield f"the inference plane at {plane.host}:{plane.port} does not report its state: {plane.detail}"
    elif status.daemon.up and settings.serving.enabled and not (plane.up or plane.starting or _is_told(status)):
        yield f"the inference plane does not answer: {plane.detail}"
    wanted = serving.version if serving is not None else None
    if plane.up and plane.detail:
        yield f"the inference plane: {plane.detail}"
    failed = wanted is not None and wanted == plane.failed_version != plane.version
    if plane.up and plane.last_swap_failure and failed:
        old = f"version {plane.version} still serves" if plane.version is not None else "nothing serves"
        yield f"version {wanted} cannot serve, {old}: {plane.last_swap_failure}; {_another(status)}"


def _is_told(status: Status) -> bool:
    """Return whether a message about the process of the plane says already why the plane does not answer."""
    return any(child.hangs or child.reason for child in status.children if child.name == "serve")


def _another(status: Status) -> str:
    """Return the command that serves a version in the place of one that cannot serve."""
    if status.previous is not None:
        return f"`mfmd rollback` serves version {status.previous.version}"
    if status.plane.version is not None:
        return f"`mfmd promote {status.plane.version}` keeps it"
    others = [version for version in status.versions if status.serving is None or version != status.serving.version]
    return f"`mfmd promote {others[-1]}` serves another version" if others else "`mfmd import PATH` imports another one"


def _policy(status: Status, settings: Settings) -> Iterator[str]:
    if status.suggested is not None:
        waits = f"version {status.suggested} waits for a decision: `mfmd explain {status.suggested} --version` says why"
        yield f"{waits}; `mfmd approve {status.suggested}` serves it, `mfmd reject {status.suggested}` does not"
    if settings.gate.policy == "always":
        yield ALWAYS


def _secrets(settings: Settings) -> Iterator[str]:
    for section in (settings.control, settings.serving):
        if section.certificate is not None and (end := ending(section.certificate)):
            yield f"{end}: {RENEW}"
    for path in secret_files(settings).values():
        with suppress(PermissionError):  # out of reach for this user, so for others too
            if exposed := exposure(path):
                yield f"{exposed}: {NEW_SECRET}"


def _canary(status: Status) -> Iterator[str]:
    if status.canary is not None and status.canary.problem:
        yield f"no candidate is accepted while {status.canary.problem}"


def _rounds(status: Status, settings: Settings) -> Iterator[str]:
    if status.round is not None and status.round.progress is not None and status.round.progress.phase != "shadow":
        quiet, stall = status.at - status.round.progress.at, settings.round.advanced.stall_seconds
        if quiet > stall / 4:
            yield (
                f"round {status.round.round} has made no progress for {quiet:.0f} s; after {stall:g} s "
                "(round.advanced.stall_seconds) it is ended: look for a lost mount or GPU, or too little memory"
            )
    last = status.last_rounds[0] if status.last_rounds else None
    if last is None or last.result != "failed":
        return
    again = ""
    if status.next_round.not_before is not None:
        again = f"; next attempt in {max(0.0, status.next_round.not_before - time.time()):.0f} s at the earliest"
    yield f"round {last.round} failed: {last.reason}{again}"
