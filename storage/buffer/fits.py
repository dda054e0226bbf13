"""Which frames of a buffer were squashed: their valid region says it, since a squashed image leaves no padding."""

from collections.abc import Iterable

from configs.buffer import BufferSettings
from storage.buffer.catalog_records import FrameRecord
from storage.media.images import fitted_size


def is_squashed(record: FrameRecord, height: int, width: int) -> bool:
    """Return whether the image fills its frame of height x width (pixels), though its aspect is another."""
    if (record.valid_height, record.valid_width) != (height, width):
        return False
    rows, columns = fitted_size(record.source_height, record.source_width, height, width)
    return height - rows > 1 or width - columns > 1  # one row may be rounding after a resize


def made_otherwise(records: Iterable[FrameRecord], settings: BufferSettings) -> list[FrameRecord]:
    """Return the frames of another fit than `buffer.advanced.fit`; an image of the frame's aspect has none.

    The filter (`buffer.advanced.resample`) that made a frame is not recorded.
    """
    size = settings.height, settings.width
    if settings.advanced.fit == "squash":
        return [record for record in records if (record.valid_height, record.valid_width) != size]
    return [record for record in records if is_squashed(record, *size)]
