"""PNG files that mfmd writes for its users carry a mark, so that it never writes over a file that is not its own.

The mark is a text chunk, the first one after the header. What a file was made from therefore stays with the file.
"""

import os
import struct
import zlib
from pathlib import Path

KEYWORD = b"mfmd\0"
"""Keyword of the text chunk."""
HEAD_BYTES = 4096
"""The mark stands before the pixels, in these first bytes of the file."""
SIGNATURE = b"\x89PNG\r\n\x1a\n"
HEADER_END = len(SIGNATURE) + 25
"""End of the IHDR chunk, always the first one (PNG specification, 5.6): length, type, 13 bytes of data, CRC."""


def with_mark(png: bytes, text: str) -> bytes:
    """Put a mark with `text` into a PNG, behind its header."""
    data = KEYWORD + text.encode()
    chunk = struct.pack(">I", len(data)) + b"tEXt" + data + struct.pack(">I", zlib.crc32(b"tEXt" + data))
    return png[:HEADER_END] + chunk + png[HEADER_END:]


def mark_of(path: Path) -> str | None:
    """Return the text of the mark; None when there is no such file, it has no mark or cannot be read."""
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
        length, kind = struct.unpack_from(">I4s", head, HEADER_END)
    except (OSError, struct.error):
        return None
    data = head[HEADER_END + 8 : HEADER_END + 8 + length]
    if head[:8] != SIGNATURE or kind != b"tEXt" or not data.startswith(KEYWORD):
        return None
    return data.removeprefix(KEYWORD).decode("latin-1")


def may_replace(path: Path) -> bool:
    """Return whether `path` is free, or a PNG with our mark; never a link, because its target is another's."""
    return not os.path.lexists(path) or (not path.is_symlink() and mark_of(path) is not None)
