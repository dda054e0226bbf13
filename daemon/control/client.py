"""Talk to the daemon's control API from a command: address from the run file, token as the daemon finds it."""

import http.client
import json
from typing import Any

from configs.errors import ConfigError
from configs.settings import Settings
from daemon.errors import DaemonError, NotEnoughFrames, RoundRunning, Stopping
from daemon.net.tls import connection_to
from daemon.net.token import control_token
from daemon.runtime.in_force import Reloaded
from daemon.runtime.run_record import RunRecord, read_run_record
from storage.layout import StateLayout

TIMEOUT_SECONDS = 10.0
KNOWN = {kind.code: kind for kind in (ConfigError, RoundRunning, NotEnoughFrames, Stopping)}
"""Answers that a command passes on as what they are, with their exit code."""


class ControlFailed(DaemonError):
    """The daemon runs but did not do what was asked; the message carries its answer."""

    code = "control_failed"


class ControlClient:
    """The control API of the daemon that holds a state directory."""

    def __init__(self, settings: Settings, layout: StateLayout) -> None:
        """Raises ControlFailed when the daemon publishes no address (yet, or any more), ConfigError for an unusable
        token.
        """
        self._path = layout.run_file("daemon")
        address = read_run_record(self._path)
        if address is None:
            raise ControlFailed(
                f"{self._path}: the daemon publishes no address: it is starting up or being stopped; "
                "try again in a moment"
            )
        self._address = address
        self._headers = {"Authorization": f"Bearer {control_token(settings.control, layout)}"}

    @property
    def left(self) -> bool:
        """Whether the daemon publishes its address no more: the first thing that it takes back when it is stopped."""
        return read_run_record(self._path) != self._address

    @property
    def replaced(self) -> bool:
        """Whether another daemon has published its own address since."""
        return self.left and read_run_record(self._path) is not None

    def start_round(self) -> int:
        """Ask for a round now; returns its number. Raises RoundRunning, NotEnoughFrames, Stopping or ControlFailed."""
        return int(self._send("POST", "/v1/rounds")["round"])

    def running_round(self) -> int | None:
        """The round that runs or is about to. Raises ControlFailed."""
        number = self._send("GET", "/v1/rounds")["running"]
        return None if number is None else int(number)

    def reload(self) -> Reloaded:
        """Let the daemon take over what its configuration file changes. Raises ConfigError or ControlFailed."""
        return Reloaded.model_validate(self._send("POST", "/v1/reload"))

    def retry_refused(self, paths: list[str], reason: str | None) -> list[str]:
        """Let ingest take refused files again; the paths of those that were. Raises ControlFailed."""
        wanted = {"paths": paths, "reason": reason}
        return [str(path) for path in self._send("POST", "/v1/refused/retry", wanted, 60.0)["retried"]]

    def _send(self, method: str, path: str, content: Any = None, timeout: float = TIMEOUT_SECONDS) -> Any:
        try:
            status, body = ask(self._address, method, path, self._headers, timeout, content)
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise ControlFailed(f"the daemon at port {self._address.port} does not answer: {error}") from error
        if status < 300:
            return body
        kind = KNOWN.get(body.get("code", ""), ControlFailed)
        raise kind(body.get("message", f"the daemon answered {status} to {method} {path}"))


def ask(
    address: RunRecord, method: str, path: str, headers: dict[str, str], timeout: float, content: Any = None
) -> tuple[int, Any]:
    """Status and JSON body of one request, which carries `content` as JSON if given.

    Raises OSError, ValueError or HTTPException.
    """
    body = None if content is None else json.dumps(content)
    headers = headers if body is None else headers | {"Content-Type": "application/json"}
    connection = connection_to(address, timeout)
    try:
        connection.request(method, path, body=body, headers=headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()
