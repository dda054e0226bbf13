"""PNG files of three channels of 16 bits, as SYNTHIA's labels are; Pillow does not write them."""

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class SixteenBits:
    """A label: ids in the first channel, numbers of objects in the second, nothing in the third."""

    ids: NDArray[np.uint16]

    def save(self, path: Path) -> None:
        """Write it as PNG."""
        pixels = np.stack([self.ids, np.arange(self.ids.size).reshape(self.ids.shape) * 257 % 65536, 0 * self.ids], -1)
        rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
        header = struct.pack(">IIBBBBB", *self.ids.shape[::-1], 16, 2, 0, 0, 0)
        chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
        parts = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
