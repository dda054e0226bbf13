"""Images that int8 is calibrated and checked on: the newest frames of the buffer, or noise where there is none."""

import numpy as np
import torch
from torch import Tensor

from adapters.networks.pixels import normalise
from configs.settings import Settings
from daemon.runtime.logs import get_logger
from storage.buffer.frames import FrameBuffer
from storage.errors import StorageError
from storage.layout import StateLayout
from storage.media.images import fit_frame

FRAMES = 8
"""Images looked at; every second one sets ranges, the others are compared."""

log = get_logger(__name__)


class Calibration:
    """Reads frames of the state directory's buffer; a server beside a bare registry has none."""

    def __init__(self, settings: Settings) -> None:
        self._layout = StateLayout(settings.state)
        self._settings = settings.buffer

    def images(self, size: tuple[int, int]) -> list[Tensor]:
        """Normalised images `[1, 3, h, w]` that fit `size` (height, width)."""
        try:
            frames = self._frames(size)
        except (StorageError, OSError) as error:
            log.warning("calibrating_on_noise", reason=str(error))
            frames = []
        return frames or [noise(size, seed) for seed in range(FRAMES)]

    def _frames(self, size: tuple[int, int]) -> list[Tensor]:
        if not self._layout.catalog.is_file():
            return []
        with FrameBuffer.open(self._layout, self._settings, writable=False) as buffer:
            records = buffer.records()[-FRAMES:]
            whole = [(buffer.read(record), record.valid_height, record.valid_width) for record in records]
        fitted = [fit_frame(pixels[:height, :width], *size).cropped() for pixels, height, width in whole]
        return [normalise(torch.from_numpy(pixels[None].copy())) for pixels in fitted]


def noise(size: tuple[int, int], seed: int = 0) -> Tensor:
    """A normalised image `[1, 3, h, w]` of random bytes, the same for the same `seed`."""
    pixels = np.random.default_rng(seed).integers(0, 256, (1, *size, 3), dtype=np.uint8)
    return normalise(torch.from_numpy(pixels))
