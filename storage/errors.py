"""Errors of the storage room, grouped by what a handler does about them. Stable codes: docs/reference/errors.md."""


class StorageError(Exception):
    """Durable data is not as it must be; the message names the file and the remedy."""

    code = "storage"


class RefusedImage(StorageError):
    """An image that can never be ingested as it is: record the reason and continue.

    `reason` is one of: empty, too_many_bytes, too_many_pixels, aspect, not_an_image, needs_extra, truncated,
    too_costly, decoder_crashed, unreadable, bad_label, camera_raw, thumbnail_only, unsupported_bits,
    unsupported_colors, unsupported_compression, unsupported_layout, unsupported_samples. Ingest adds outside_folder,
    for links that leave the drop folder.
    """

    code = "image_refused"

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class CorruptCheckpoint(StorageError):
    """The files of a version do not match its manifest: keep the serving version, do not load this one."""

    code = "checkpoint_corrupt"


class NewerRecord(StorageError):
    """A newer mfmd wrote a durable file in a layout that this one cannot read: it is whole, and nothing changes it."""

    code = "record_newer"


class NewerVersion(NewerRecord, CorruptCheckpoint):
    """A version whose manifest a newer mfmd wrote: keep the serving version, do not load this one."""


class NewerFormat(NewerRecord):
    """A newer mfmd gave the state directory its format: no command works on it, and nothing was changed."""

    code = "format_newer"


class UnknownVersion(StorageError):
    """A version or ref does not exist."""

    code = "version_unknown"


class NoCheckpoint(StorageError):
    """No version serves yet: nothing can be adapted or answered."""

    code = "no_checkpoint"


class ServingChanged(StorageError):
    """Another version serves than the one a promotion was decided against: somebody moved the ref meanwhile."""

    code = "serving_changed"


class NotSuggested(StorageError):
    """A version that is approved or rejected is no suggestion of the gate that waits for it; nothing changed."""

    code = "not_suggested"


class NotEarlier(StorageError):
    """A rollback to a version that did not serve before the one that serves: `mfmd promote` serves any version."""

    code = "version_not_earlier"


class InvalidReason(StorageError):
    """A reason cannot be stored and shown as text; nothing moved."""

    code = "reason_invalid"


class UnknownCondition(StorageError):
    """No condition of the stream has this number."""

    code = "condition_unknown"


class InvalidName(StorageError):
    """A condition cannot have this name; nothing changed."""

    code = "condition_name_invalid"


class ConditionNeeded(StorageError):
    """A condition cannot be merged or forgotten like this; nothing changed."""

    code = "condition_needed"


class CorruptBuffer(StorageError):
    """The pixels of a committed frame do not match its checksum."""

    code = "buffer_corrupt"


class BufferMismatch(StorageError):
    """The geometry of a buffer on disk differs from the configuration."""

    code = "buffer_mismatch"


class DurabilityLost(StorageError):
    """An fsync failed: written data may be lost. Stop the component; never retry."""

    code = "durability_lost"


class AlreadyRunning(StorageError):
    """Another process holds the lock of this state directory."""

    code = "already_running"


class BufferFull(StorageError):
    """A round leases every slot that could be freed: wait for the end of the round, then retry."""

    code = "buffer_full"


class BufferBusy(StorageError):
    """Rounds lease frames that the request would change: wait for the end of the round."""

    code = "buffer_busy"


class FramesRefused(StorageError):
    """Frames cannot be exported to this folder; nothing was written."""

    code = "export_refused"


class BackupRefused(StorageError):
    """A backup cannot be written or restored like this; nothing was changed."""

    code = "backup_refused"


class FrameEvicted(StorageError):
    """A frame that was committed was evicted since: ignore it and continue."""

    code = "frame_evicted"


class UnknownRound(StorageError):
    """A round does not exist."""

    code = "round_unknown"


class CanaryRefused(StorageError):
    """Canary labels cannot be used as they are; the message names every file. No candidate is accepted meanwhile."""

    code = "canary_refused"


class SourceRefused(StorageError):
    """Labelled source images cannot be imported as they are; nothing was imported.

    `problems` has one line per file, with the bad value; then what the labels hold and the setting that would fit.
    """

    code = "source_refused"

    def __init__(self, message: str, problems: tuple[str, ...]) -> None:
        super().__init__(message)
        self.problems = problems
