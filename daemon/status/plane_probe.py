"""Ask the inference plane what it serves: one quick request, and an answer of our own when none comes."""

import http.client
import ssl

from pydantic import BaseModel

from daemon.runtime.activity import ActivityPart
from daemon.runtime.run_record import RunRecord, current_record, reachable
from storage.layout import StateLayout

PROBE_SECONDS = 1.0
"""Longest wait of the supervisor for an answer (seconds); a busy machine is no reason to restart a plane."""
TIMEOUT_SECONDS = 0.25
"""A plane in the middle of a forward pass still answers this fast: its status needs no network."""


class PlaneStatus(ActivityPart):
    """The inference plane on this state directory."""

    up: bool
    """Whether it answered."""
    refused: bool = False
    """Whether it wants another token than this configuration's; then `up` is false, for it told nothing."""
    starting: bool = False
    """Whether the daemon started it so recently that it may still load its libraries, and does not answer yet."""
    host: str | None = None
    """Address it is bound to."""
    port: int | None = None
    """Its port."""
    ready: bool = False
    """Whether it answers requests for masks."""
    version: int | None = None
    """Version that answers new requests."""
    wanted: int | None = None
    """Version that it wants to serve; differs during a swap and after a failed one."""
    last_swap_failure: str | None = None
    """Why the last swap that failed did; none when none failed since it started."""
    failed_version: int | None = None
    """The version that could not serve."""
    detail: str = ""
    """Why it does not answer, or what it says is wrong with it."""


class PlaneProbe:
    """Asks the inference plane that the supervisor started."""

    def __init__(self, layout: StateLayout) -> None:
        self._layout = layout
        self._record: RunRecord | None = None

    def __call__(self, pid: int) -> str | None:
        """Ask the plane with this process id whether it is ready: "" or why it is not; None without an answer.

        Its address is kept, because a second plane on the state directory replaces `run/serve.json`.
        """
        published = current_record(self._layout, "serve")
        if published is not None and published.pid == pid:
            self._record = published
        if self._record is None or self._record.pid != pid:
            return None
        try:
            status, _ = _ask(self._record, "/readyz", PROBE_SECONDS)
        except (OSError, http.client.HTTPException):
            return None
        return "" if status == 200 else "has no version loaded"


class _Failure(BaseModel):
    version: int | None = None
    reason: str | None = None


class _Answer(BaseModel):
    """What `GET /v1/serving` says, as far as it is used here."""

    ready: bool = False
    version: int | None = None
    wanted: int | None = None
    last_failure: _Failure | None = None
    problems: list[str] = []


def probe_plane(record: RunRecord | None, token: str | None = None) -> PlaneStatus:
    """Return the plane at the address in `run/serve.json`; `up` is false when there is none or it does not answer.

    `token` is what the plane demands of everybody, if it does.
    """
    if record is None:
        return PlaneStatus(up=False, detail="no inference plane has published an address")
    plane = PlaneStatus(up=False, host=record.host, port=record.port)
    try:
        status, body = _ask(record, "/v1/serving", TIMEOUT_SECONDS, token)
        if status == 401:
            has = "has no serving.token, but the plane needs one" if token is None else "has a different serving.token"
            remedy = "use the token that the plane was started with, or restart it"
            return plane.model_copy(update={"refused": True, "detail": f"this configuration {has}; {remedy}"})
        answer = _Answer.model_validate_json(body)
    except (OSError, http.client.HTTPException) as error:
        return plane.model_copy(update={"detail": f"no answer: {str(error) or type(error).__name__}"})
    except ValueError:
        return plane.model_copy(update={"detail": "no answer: not the response of an inference plane"})
    found = answer.model_dump(include={"ready", "version", "wanted"}) | {"detail": "; ".join(answer.problems)}
    failure = answer.last_failure or _Failure()
    found |= {"last_swap_failure": failure.reason, "failed_version": failure.version}
    return plane.model_copy(update={"up": True, **found})


def _ask(record: RunRecord, path: str, timeout: float, token: str | None = None) -> tuple[int, bytes]:
    """Return status and body of one GET. Raises OSError or HTTPException."""
    host = reachable(record.host)
    connection = http.client.HTTPConnection(host, record.port, timeout=timeout)
    if record.tls:  # no name to check: the record is that of a living process, and only that process holds the port
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        connection = http.client.HTTPSConnection(host, record.port, timeout=timeout, context=context)
    try:
        connection.request("GET", path, headers={} if token is None else {"Authorization": f"Bearer {token}"})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def describe_plane(plane: PlaneStatus) -> str:
    """Return a few words for people: `127.0.0.1:8009 answers with 3`, or why it does not answer."""
    if plane.up:
        return f"{plane.host}:{plane.port} {_loaded(plane)}"
    if plane.refused:
        return f"{plane.host}:{plane.port} does not accept this configuration's serving.token"
    return "the inference plane starts" if plane.starting else "no inference plane answers here"


def _loaded(plane: PlaneStatus) -> str:
    if plane.version is not None:
        return f"answers with {plane.version}"
    if plane.wanted is None or plane.detail:  # it says itself what is wrong with it
        return "has no version loaded"
    failed = plane.wanted == plane.failed_version
    return f"has no version loaded, {plane.wanted} cannot serve" if failed else f"loads version {plane.wanted}"
