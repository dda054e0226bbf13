"""The bearer token of the control API: from the settings, from a file, or made once per state directory."""

import hmac
import ipaddress
import os
import secrets

from configs.errors import ConfigError
from configs.settings import ControlSettings
from storage.layout import StateLayout

TOKEN_BYTES = 32
"""Randomness of a token that we make (bytes)."""


def control_token(settings: ControlSettings, layout: StateLayout) -> str:
    """The token that requests which change state must carry.

    `control.token`, else the content of `control.token_file`, else `run/control.token`, made with mode 0600 on first
    use. Raises ConfigError for an unreadable or empty file and for a public address without a configured token.
    """
    if settings.token is not None:
        return _non_empty(settings.token.get_secret_value(), "control.token is empty")
    if settings.token_file is not None:
        try:
            text = settings.token_file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"control.token_file: {settings.token_file} cannot be read: {error}") from error
        return _non_empty(text, f"control.token_file: {settings.token_file} is empty")
    if not is_loopback(settings.host):
        raise ConfigError(
            f"control.host: {settings.host} can be reached from outside; set control.token_file "
            "(or MFMD_CONTROL__TOKEN), or bind 127.0.0.1"
        )
    return _own_token(layout)


def same_token(given: str, wanted: str) -> bool:
    """Compare in constant time, so that answers do not tell how much of a guess was right."""
    return hmac.compare_digest(given.encode(), wanted.encode())


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server bound to `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _non_empty(text: str, complaint: str) -> str:
    token = text.strip()
    if not token:
        raise ConfigError(f"{complaint}; give it a secret of your own")
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
