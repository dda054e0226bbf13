"""What the views of the page share: templates, headers, and how an answer is made."""

import hashlib
import math
import time
from collections.abc import Callable
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from fastapi.responses import HTMLResponse

from daemon.control.context import ControlContext

if TYPE_CHECKING:
    from jinja2 import Environment

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""The page runs its own scripts only, stands in no frame, is kept by no cache, and shown by no other site."""
NAVIGATION = (
    ("/", "now", "Now"),
    ("/look", "look", "Look"),
    ("/versions", "versions", "Versions"),
    ("/conditions", "conditions", "Conditions"),
    ("/files", "files", "Files"),
    ("/label", "label", "Label"),
)
"""Address, name and title of each view."""
DONE = {
    "rollback": "Rolled back.",
    "promote": "Promoted.",
    "approve": "Approved.",
    "reject": "Rejected.",
    "pin": "Pinned.",
    "unpin": "Unpinned.",
    "adapt": "A round begins.",
    "pause": "Paused.",
    "resume": "Resumed.",
    "merge": "Merged.",
    "rename": "Renamed.",
    "forget": "Forgotten.",
    "retry": "The files are queued for a retry.",
    "suggest": "Frames are being chosen.",
    "upload": "The labels are being checked.",
}
"""What the page says after each form, by its action."""


class View:
    """Renders templates for the views; one for each application."""

    def __init__(self, context: ControlContext) -> None:
        self.context = context

    def show(self, template: str, code: int = 200, *, done: str = "", **values: Any) -> HTMLResponse:
        """Return a rendered template; `done` is the action of a form that was just sent."""
        text = templates().get_template(template).render(done=DONE.get(done, ""), **values)
        content = text.encode("utf-8", "backslashreplace")  # a file or a camera may have a name that is no text
        return HTMLResponse(content, code, headers=HEADERS)

    def problem(self, title: str, message: str, status: int) -> HTMLResponse:
        """Return a page that says what went wrong and what to do."""
        return self.show("problem.html", status, title=title, message=message)


@cache
def templates() -> "Environment":
    """Return the templates of this package, loaded at the first page: the daemon starts without them."""
    import jinja2

    made = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    made.filters |= {"when": when, "clock": clock, "span": span, "short": short, "name": name, "percent": percent}
    made.globals |= {"asset": asset, "navigation": NAVIGATION}
    return made


@cache
def asset(name: str) -> str:
    """Return the address of a file of `static/`; it changes with the content, so that browsers keep it for ever."""
    content = (resources.files(__package__) / "static" / name).read_bytes()
    return f"/static/{name}?v={hashlib.sha256(content).hexdigest()[:12]}"


def when(unix: float | None) -> str:
    """Return a time (Unix, seconds) as date and clock of this machine."""
    return "-" if unix is None else _told("%Y-%m-%d %H:%M:%S %Z", time.localtime, unix)


def clock(unix: float) -> str:
    """Return a time (Unix, seconds) as the machine-readable value of a `<time>` element."""
    return _told("%Y-%m-%dT%H:%M:%SZ", time.gmtime, unix)


def _told(form: str, parts: Callable[[float], time.struct_time], unix: float) -> str:
    """Return a time as text; a damaged record may hold any number."""
    try:
        return time.strftime(form, parts(unix))
    except (OverflowError, ValueError, OSError):
        return "-"


def span(seconds: float | None) -> str:
    """Return a length of time in words that need no second look; a negative one, of a clock set back, is 0."""
    if seconds is None or not math.isfinite(seconds):
        return "-"
    whole = max(0, round(seconds))
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if whole >= 2 * size:
            return f"{whole // size} {unit}"
    return f"{whole} s"


def short(value: float | None) -> str:
    """Return a number with four significant digits."""
    return "-" if value is None else f"{value:.4g}"


def percent(share: float) -> str:
    """Return a share (0-1) in percent; one that is not 0 never shows as 0."""
    return "< 0.1 %" if 0 < share < 0.001 else f"{100 * share:.1f} %"


def name(path: str) -> str:
    """Return the name of a file, with what is no text as escapes: a name on Linux may hold any byte."""
    return path if path.isprintable() else repr(path)[1:-1]
