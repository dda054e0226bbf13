"""Errors of the configuration room."""


class ConfigError(ValueError):
    """A configuration that cannot be used; the message is one line that names the file, the field and the remedy.

    `code` is stable and documented in `docs/reference/errors.md`.
    """

    code = "config_invalid"
