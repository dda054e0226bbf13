"""Errors of the configuration room, and the hint that ends a message about an unknown name."""

import difflib
from collections.abc import Iterable


class ConfigError(ValueError):
    """A configuration that cannot be used; the message is one line that names the file, the field and the remedy.

    `code` is stable and documented in `docs/reference/errors.md`.
    """

    code = "config_invalid"


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or, when nothing is close, `; known: a, b, c`."""
    found = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.5)
    return f"; did you mean {found[0]!r}?" if found else f"; known: {', '.join(sorted(known))}"
