"""Keep canary images out of rounds: a frame of the buffer with the same content is neither trained on nor held out."""

from collections.abc import Sequence

from configs.settings import Settings
from daemon.runtime.logs import get_logger
from storage.buffer.catalog_records import FrameRecord
from storage.canary.images import import_canary, known_checksums
from storage.errors import CanaryRefused
from storage.layout import StateLayout

log = get_logger(__name__)


def without_canary(frames: Sequence[FrameRecord], settings: Settings) -> list[FrameRecord]:
    """Return the frames that are no canary image: their pixels after the same decoding and scaling differ.

    While canary files cannot be read, those that were read last count. Raises StorageError when a set is damaged.
    """
    layout = StateLayout(settings.state)
    try:
        canary = {image.crc32 for image in import_canary(settings, layout)}
    except CanaryRefused as error:
        log.warning("canary_refused", reason=str(error))
        canary = known_checksums(layout)
    return [frame for frame in frames if frame.crc32 not in canary]
