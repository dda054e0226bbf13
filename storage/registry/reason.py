"""What an operator says of a change: kept in the history for ever, shown on terminals and on the page."""

import unicodedata

from storage.errors import InvalidReason

LONGEST = 2000
"""Characters of a reason: a paragraph. Every list of versions reads the whole history."""
ALLOWED = frozenset("\t\n\r")
"""Control characters that text may hold; others, of terminals above all, would act where the history is shown."""


def check_reason(reason: str) -> None:
    """Raises InvalidReason, which says where, for control characters, text that UTF-8 cannot express, or too much."""
    if len(reason) > LONGEST:
        raise InvalidReason(f"reason: {len(reason)} characters, at most {LONGEST} are kept; say it shorter")
    for position, character in enumerate(reason):
        # Cs: half a character, as JSON can name it, or a byte of the command line that is not UTF-8
        if unicodedata.category(character) in ("Cc", "Cs") and character not in ALLOWED:
            raise InvalidReason(f"reason: {character!a} at position {position} is no text; leave it out, or use UTF-8")
