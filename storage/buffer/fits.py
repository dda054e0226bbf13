"""Which frames of a buffer were made otherwise than the configuration says: squashed or not, and by another filter.

The valid region says whether an image was squashed, since then it leaves no padding.
"""

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
    """Return the frames of another `buffer.advanced.fit` or `resample`.

    An image of the frame's aspect has no fit. One that was not scaled, or is older than the record, has no filter.
    """
    size, alike = (settings.height, settings.width), ("", settings.advanced.resample)

    def fits(record: FrameRecord) -> bool:
        if settings.advanced.fit == "squash":
            return (record.valid_height, record.valid_width) == size
        return not is_squashed(record, *size)

    return [record for record in records if not fits(record) or record.resample not in alike]
