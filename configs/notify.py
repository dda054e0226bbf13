"""Notifications: which events are told to which webhook."""

from typing import Annotated, Literal, get_args
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, model_validator

from configs.section import Section

NotifyEvent = Literal["promoted", "rolled_back", "recalled", "rejections", "drift", "child_down"]
"""promoted: another version serves, by the gate or an operator; rejections: three rounds in a row brought none;
child_down: a child process does not do its work."""
NOTIFY_EVENTS: tuple[NotifyEvent, ...] = get_args(NotifyEvent)


def _web_address(url: SecretStr) -> SecretStr:
    text = url.get_secret_value()
    parts = urlsplit(text)
    wrong = parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0  # `port` raises ValueError
    if text != str(url) and wrong:  # str(url): a masked copy
        raise ValueError("no web address: it starts with http:// or https:// and names a host")
    return url


class NotifySettings(Section):
    """A webhook that is told what happens, in JSON whose `text` Slack and its relatives show."""

    url: Annotated[SecretStr, AfterValidator(_web_address)]
    """Address for POST requests (http or https). It often holds a secret, so nothing shows more of it than the host."""
    on: Annotated[tuple[NotifyEvent, ...], Field(min_length=1)] = NOTIFY_EVENTS
    """Events to tell."""

    @model_validator(mode="before")
    @classmethod
    def _bare_on(cls, values: object) -> object:
        """YAML 1.1 reads the bare key `on` as true."""
        return (
            {"on" if key is True else key: value for key, value in values.items()}
            if isinstance(values, dict)
            else values
        )

    @property
    def host(self) -> str:
        """Host of the address, for people."""
        return urlsplit(self.url.get_secret_value()).hostname or "?"


Webhooks = Annotated[tuple[NotifySettings, ...], BeforeValidator(lambda value: () if value is None else value)]
"""Webhooks by configuration; the key with nothing below it is none."""
