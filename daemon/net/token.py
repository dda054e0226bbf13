"""The bearer tokens of both planes: from the settings, from a file, or (control) made once per state directory.

A token never stands in a message, a log line or an answer; what is said about a bad one names only where it is.
"""

import hmac
import os
import secrets

from configs.errors import ConfigError
from configs.serving import ControlSettings, ServingSettings
from daemon.net.listening import Wanted
from storage.layout import StateLayout

TOKEN_BYTES = 32
"""Randomness of a token that we make (bytes)."""
CONTROL_REMEDY = "set control.token_file (or MFMD_CONTROL__TOKEN)"
SERVING_REMEDY = (
    "set serving.token_file (or MFMD_SERVING__TOKEN), or serving.advanced.public where anybody may ask (a container, a "
    "trusted network)"
)


def control_address(settings: ControlSettings) -> Wanted:
    """Where the control plane listens; guarded by a token that others can be given."""
    guarded = settings.token is not None or settings.token_file is not None
    return Wanted("control", settings.host, settings.port, guarded, CONTROL_REMEDY)


def serving_address(settings: ServingSettings) -> Wanted:
    """Where the inference plane listens; guarded by a token, or open to all because the settings say so."""
    guarded = settings.token is not None or settings.token_file is not None or settings.advanced.public
    return Wanted("serving", settings.host, settings.port, guarded, SERVING_REMEDY)


def control_token(settings: ControlSettings, layout: StateLayout) -> str:
    """Return the token that requests which change state must carry.

    `control.token`, else the content of `control.token_file`, else `run/control.token`, made with mode 0600 on first
    use. Raises ConfigError for an unreadable or unusable one.
    """
    return _configured("control", settings) or _own_token(layout)


def serving_token(settings: ServingSettings) -> str | None:
    """Return the token that requests to the inference plane must carry; None when it needs none.

    `serving.token`, else the content of `serving.token_file`. Raises ConfigError for an unreadable or unusable one.
    """
    return _configured("serving", settings)


def same_token(given: str, wanted: str) -> bool:
    """Compare in constant time, so that answers do not reveal how much of a guess was correct."""
    return hmac.compare_digest(given.encode(), wanted.encode())


def carries_token(authorization: str, wanted: str) -> bool:
    """Return whether an Authorization header carries `wanted` as a bearer token."""
    scheme, _, given = authorization.partition(" ")
    return scheme.lower() == "bearer" and same_token(given.strip(), wanted)


def _configured(section: str, settings: ControlSettings | ServingSettings) -> str | None:
    if settings.token is not None:
        return _usable(settings.token.get_secret_value(), f"{section}.token")
    file = settings.token_file
    if file is None:
        return None
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:  # its text would show the bytes
        raise ConfigError(f"{section}.token_file: {file} cannot be read: it is not UTF-8 text") from error
    except OSError as error:
        raise ConfigError(f"{section}.token_file: {file} cannot be read: {error.strerror}") from error
    return _usable(text, f"{section}.token_file: {file}")


def _usable(text: str, place: str) -> str:
    """Return text that an HTTP header can carry; otherwise a client would show the token in its error."""
    token = text.strip()
    if not token:
        raise ConfigError(f"{place} is empty; write a secret to it")
    if not all(" " <= character <= "~" for character in token):
        raise ConfigError(f"{place} holds a line break or a character that is not ASCII; a header cannot carry it")
    return token


def _own_token(layout: StateLayout) -> str:
    path = layout.token_file
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        existing = path.read_text(encoding="utf-8").strip()
        if existing:
            return existing
        descriptor = os.open(path, os.O_WRONLY | os.O_TRUNC)  # a kill fell between making and filling it
    token = secrets.token_urlsafe(TOKEN_BYTES)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(token + "\n")
    return token
