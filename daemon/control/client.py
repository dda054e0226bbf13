"""Client of the control API for commands, through the Unix socket: anyone who may open it may do everything."""

import http.client
import json
from typing import Any, Literal

from configs.errors import ConfigError
from daemon.errors import DaemonError, NotEnoughFrames, RoundRunning, Stopping
from daemon.net.local import LocalConnection
from daemon.runtime.in_force import Reloaded
from daemon.runtime.run_record import read_run_record
from storage.errors import (
    ConditionNeeded,
    CorruptCheckpoint,
    InvalidName,
    InvalidReason,
    NotSuggested,
    ServingChanged,
    UnknownCondition,
)
from storage.layout import StateLayout
from storage.rounds.verdict import Verdict

TIMEOUT_SECONDS = 10.0
KINDS = (
    ConfigError, RoundRunning, NotEnoughFrames, Stopping, UnknownCondition, InvalidName, ConditionNeeded, NotSuggested,
    ServingChanged, CorruptCheckpoint, InvalidReason,
)  # fmt: skip
KNOWN = {kind.code: kind for kind in KINDS}
"""Answers that a command passes on as what they are, with their exit code."""


class ControlFailed(DaemonError):
    """The daemon runs but did not do what was asked; the message carries its answer."""

    code = "control_failed"


class NoDaemon(ControlFailed):
    """No daemon runs on the state directory."""

    code = "no_daemon"


class ControlClient:
    """The control API of the daemon that holds a state directory."""

    def __init__(self, layout: StateLayout, timeout: float = TIMEOUT_SECONDS) -> None:
        """Set up for requests of at most `timeout` seconds. Raises NoDaemon, or ControlFailed when it is not ready."""
        self._layout, self._path, self._timeout = layout, layout.run_file("daemon"), timeout
        self._record = read_run_record(self._path)
        if self._record is None:
            raise self._failure(
                f"{self._path}: the daemon publishes no address: it is starting up or being stopped; "
                "try again in a moment"
            )

    @property
    def left(self) -> bool:
        """Return whether the daemon has removed its run record, which it does first when it stops."""
        return read_run_record(self._path) != self._record

    @property
    def replaced(self) -> bool:
        """Return whether another daemon has published its address since."""
        return self.left and read_run_record(self._path) is not None

    def problems(self, probe: Literal["/healthz", "/readyz"]) -> list[str]:
        """Return what a probe reports. Raises ControlFailed."""
        return [str(problem) for problem in self._ask("GET", probe)[1]["problems"]]

    def start_round(self) -> int:
        """Ask for a round now; return its number. Raises RoundRunning, NotEnoughFrames, Stopping or ControlFailed."""
        return int(self._send("POST", "/v1/rounds")["round"])

    def running_round(self) -> int | None:
        """Return the round that runs or is about to. Raises ControlFailed."""
        number = self._send("GET", "/v1/rounds")["running"]
        return None if number is None else int(number)

    def reload(self) -> Reloaded:
        """Ask the daemon to reload its configuration file. Raises ConfigError or ControlFailed."""
        return Reloaded.model_validate(self._send("POST", "/v1/reload"))

    def answer(self, version: int, reason: str, *, approved: bool) -> Verdict:
        """Approve or reject a version that waits; return its round's final verdict.

        Raises as `daemon.gate.suggestion.answer_suggestion`, or ControlFailed.
        """
        path = "/v1/approve" if approved else "/v1/reject"
        return Verdict.model_validate(self._send("POST", path, {"version": version, "reason": reason}))

    def retry_refused(self, paths: list[str], reason: str | None) -> list[str]:
        """Ask the daemon to retry refused files; return their paths. Raises ControlFailed."""
        wanted = {"paths": paths, "reason": reason}
        return [str(path) for path in self._send("POST", "/v1/refused/retry", wanted)["retried"]]

    def change_condition(self, number: int, change: str, content: dict[str, Any]) -> None:
        """Ask the daemon to merge, rename or forget a condition. Raises as `daemon.gate.changes.apply`."""
        self._send("POST", f"/v1/conditions/{number}/{change}", content)

    def _send(self, method: str, path: str, content: Any = None) -> Any:
        status, body = self._ask(method, path, content)
        if status < 300:
            return body
        kind = KNOWN.get(body.get("code", ""), ControlFailed)
        raise kind(body.get("message", f"the daemon answered {status} to {method} {path}"))

    def _ask(self, method: str, path: str, content: Any = None) -> tuple[int, Any]:
        """Return status and JSON of one request. Raises ControlFailed when no answer comes."""
        connection = LocalConnection(self._layout.socket, self._timeout)
        try:
            body = None if content is None else json.dumps(content)
            connection.request(method, path, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        except (OSError, ValueError, http.client.HTTPException) as error:
            reason = str(error) or type(error).__name__
            raise self._failure(f"{self._layout.socket}: the daemon does not answer: {reason}") from error
        finally:
            connection.close()

    def _failure(self, message: str) -> ControlFailed:
        """Return the error for a daemon that does not answer: there may be none, and a stale record and socket."""
        if self._layout.locked():
            return ControlFailed(message)
        return NoDaemon(f"{self._layout.root}: no daemon runs on this state directory; `mfmd run` starts one")
