"""The HTML of the operator's page: every inserted value is escaped."""

import base64
import hashlib
import time
from collections.abc import Iterable, Sequence
from html import escape

from daemon.status.conditions import ConditionsStatus
from daemon.status.model import Status
from daemon.status.plane_probe import describe_plane
from storage.registry.history import RegistryState
from storage.registry.registry import CheckpointRegistry

HISTORY_LINES = 20
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #1b1f24; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; width: 100%; } caption { text-align: left; color: #57606a; }
th, td { text-align: left; vertical-align: top; padding: .25rem .6rem; border-bottom: 1px solid #d0d7de; }
.notice, .message { border-left: 4px solid #bf8700; padding: .4rem .8rem; background: #fff8c5; }
label { display: block; margin: .5rem 0; } input, select { font: inherit; padding: .2rem .4rem; }
button { font: inherit; padding: .3rem 1rem; }
"""
STYLE_HASH = f"sha256-{base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()}"
"""What the content security policy allows: this style and no other."""


def render(status: Status, registry: CheckpointRegistry, notice: tuple[str, str] | None = None) -> str:
    """Return the whole page; `notice` is the result of a form, a few words and a sentence."""
    parts = [
        f'<p class="notice" role="alert"><strong>{escape(notice[0])}.</strong> {escape(notice[1])}</p>'
        if notice
        else "",
        _serving(status),
        "".join(f'<p class="message">{escape(message)}</p>' for message in status.messages),
        _suggestion(status),
        _moves(status, registry.state()),
        _rounds(status),
        _conditions(status.conditions),
        _history(registry),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>mfmd</title><style>{STYLE}</style></head><body><h1>mfmd</h1>{''.join(parts)}</body></html>\n"
    )


def _serving(status: Status) -> str:
    serving, previous, plane = status.serving, status.previous, status.plane
    none = "unknown, the ref is damaged or missing" if status.serving_damaged else "no version yet"
    rows: list[tuple[str, object]] = [
        ("should serve", f"version {serving.version}, {serving.by}: {serving.reason}" if serving else none),
        ("since", _time(serving.since if serving else None)),
        ("answers now", describe_plane(plane)),
        ("before it", f"version {previous.version}" if previous else "-"),
        ("buffer", f"{status.buffer.frames} of {status.buffer.capacity} frames, {status.buffer.holdout} held out"),
        (
            "drop folder",
            f"{status.folder}: {status.watch.state}, {status.watch.pending} waiting; ingest {status.ingest.state}",
        ),
        ("next round", f"round {status.round.round} runs" if status.round else status.next_round.waiting_for),
    ]
    rows += [
        (f"mirror {item.name}", f"{item.folder}: {item.state}, version {item.version or '-'}")
        for item in status.mirrors
    ]
    return _table("", rows, caption=f"as of {_time(status.at)}")


def _suggestion(status: Status) -> str:
    version, serving = status.suggested, status.serving
    if version is None or serving is None:
        return ""
    choice = _choice(version, [])
    approve = _form("approve", "Suggestion", f"Approve version {version}", serving.version, choice)
    return approve + _form("reject", "Or reject it", f"Reject version {version}", serving.version, choice)


def _moves(status: Status, state: RegistryState) -> str:
    serving = status.serving
    if serving is None and status.versions:  # a form needs the version that it was shown for
        what = "The serving version is unknown" if status.serving_damaged else "No version serves"
        return f"<h2>Change version</h2><p>{what}: `mfmd promote N` serves one.</p>"
    others = [version for version in reversed(status.versions) if serving and version != serving.version]
    if serving is None or not others:
        return "<h2>Change version</h2><p>There is no other version.</p>"
    behind = "".join(_choice(version, state.marks(version)) for version in others if state.is_behind(version))
    before = '<option value="">the version that served before</option>'
    every = "".join(_choice(version, state.marks(version)) for version in others)
    back = _form("rollback", "Roll back", f"Roll back from version {serving.version}", serving.version, before + behind)
    return back + _form(
        "promote", "Serve another version", f"Replace version {serving.version}", serving.version, every
    )


def _form(action: str, title: str, button: str, serving: int, choices: str) -> str:
    return (
        f'<h2>{title}</h2><form method="post" action="/{action}" autocomplete="off">'
        f'<input type="hidden" name="serving" value="{serving}">'
        f'<label>To <select name="to">{choices}</select></label>'
        '<label>Reason <input name="reason" required maxlength="500" size="60"></label>'
        '<label>Control token <input type="password" name="token" required autocomplete="off"></label>'
        f"<button>{button}</button></form>"
    )


def _choice(version: int, marks: Sequence[str]) -> str:
    known = f" ({', '.join(marks)})" if marks else ""
    return f'<option value="{version}">version {version}{escape(known)}</option>'


def _rounds(status: Status) -> str:
    rows = [
        (item.round, item.result, item.version or "-", item.frames, _time(item.ended), item.reason)
        for item in status.last_rounds
    ]
    head = ("round", "result", "version", "frames", "ended", "why")
    explained = [("round", item.round) for item in status.last_rounds] + [("version", n) for n in status.versions]
    links = ", ".join(f'<a href="/explain/{kind}/{number}">{kind} {number}</a>' for kind, number in explained)
    return _table("Rounds", rows, head=head, empty="No round yet.") + (links and f"<p>Explain {links}</p>")


def _conditions(known: ConditionsStatus) -> str:
    names = {item.number: item.name for item in known.conditions}
    seen_in: dict[int | None, list[str]] = {}
    for camera, number in known.cameras.items():
        seen_in.setdefault(number, []).append(camera or "(no label)")
    rows: list[Sequence[object]] = [
        (item.number, item.name + (" (now)" if item.current else ""), item.best or "-", item.frames, item.golden,
         ", ".join(seen_in.get(item.number, [])), item.best_reason)
        for item in known.conditions
    ]  # fmt: skip
    strays = [camera for number, cameras in seen_in.items() if number not in names for camera in cameras]
    if strays and rows:
        rows.append(("-", "no known one", "-", "-", "-", ", ".join(strays), ""))
    head = ("condition", "name", "best version", "frames", "golden", "cameras now", "why")
    return _table("Conditions", rows, head=head, empty="No condition is known yet.")


def _history(registry: CheckpointRegistry) -> str:
    events = reversed(registry.history()[-HISTORY_LINES:])
    rows = [
        (_time(item.at), item.event.replace("_", " "), item.version or "-", item.previous or "-", item.by, item.reason)
        for item in events
    ]
    head = ("time", "event", "version", "before", "by", "reason")
    return _table("History", rows, head=head, empty="No event yet.")


def _table(
    title: str, rows: Iterable[Sequence[object]], *, head: Sequence[str] = (), caption: str = "", empty: str = ""
) -> str:
    """Return a table; without `head` the first cell of each row is its heading."""
    begin, end = ("<td>", "</td>") if head else ('<th scope="row">', "</th>")
    lines = []
    for row in rows:
        first, *others = (escape(str(cell)) for cell in row)
        lines.append(f"<tr>{begin}{first}{end}{''.join(f'<td>{cell}</td>' for cell in others)}</tr>")
    heading = f"<h2>{escape(title)}</h2>" if title else ""
    if not lines:
        return f"{heading}<p>{escape(empty)}</p>"
    top = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    about = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f"{heading}<table>{about}<thead><tr>{top}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _time(unix: float | None) -> str:
    return "-" if unix is None else time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(unix))
