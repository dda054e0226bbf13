"""Settings of the drop folder, and of which images enter the buffer."""

from datetime import datetime
from pathlib import PurePosixPath
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from configs.plugins import ADMISSION, checked_name
from configs.section import ConfigPath, Positive, PositiveInt, Seconds, Section


class WatchAdvanced(Section):
    """Rarely changed settings of the drop folder."""

    recursive: bool = True
    """Also take images from sub-folders."""
    rescan_seconds: Annotated[float, Field(gt=0)] = 5.0
    """Interval of the rescan, which reads names only and finds what events missed (seconds)."""
    include: tuple[str, ...] = ()
    """Name patterns (fnmatch, on the file's name, case-insensitive) of the files to take; empty takes all."""
    max_aspect: Annotated[float, Field(ge=1)] = 20.0
    """Longest side of an image over its shortest, at most (ratio)."""
    capture_time: tuple[Literal["exif", "name", "mtime"], ...] = ("exif", "name", "mtime")
    """Where the capture time comes from; the first that is found wins. mtime is always there."""
    capture_name: tuple[str, ...] = ("%Y%m%d_%H%M%S", "%Y%m%dT%H%M%S", "%Y-%m-%d_%H-%M-%S", "%Y%m%d%H%M%S")
    """Forms (strptime) of a time inside a file's name, for `capture_time: name`; read as local time."""
    source_label: Literal["folder", "none"] = "folder"
    """Source label (camera) of a frame: the first sub-folder of its path. Files directly in the folder have none."""
    decode_seconds: Positive = 10.0
    """Processor time that decoding one image may take, here and in the inference plane (seconds, rounded up)."""
    decode_threads: Annotated[int, Field(ge=1, le=64)] = 2
    """Files decoded at once (threads), at most as many as cores; one more thread commits them."""
    group_frames: PositiveInt = 32
    """Most frames in one durable commit (images); one commit of 32 costs a tenth of 32 commits."""
    group_seconds: Seconds = 0.5
    """Longest time that a decoded frame waits for its commit group to fill (seconds)."""

    @field_validator("capture_name")
    @classmethod
    def _forms_name_a_moment(cls, forms: tuple[str, ...]) -> tuple[str, ...]:
        """Refuse a form without year, month or day, or one that strptime does not know: it would never find a time."""
        moment = datetime(2001, 2, 3)
        for form in forms:
            try:
                read = datetime.strptime(moment.strftime(form), form)
            except ValueError:
                read = None
            if read != moment:
                raise ValueError(f"{form!r} does not read back a year, month and day; see strptime, e.g. %Y%m%d_%H%M%S")
        return forms


def _inside(marker: str) -> str:
    """Refuse a marker that is elsewhere: it would say nothing about the folder, or be waited for without an end."""
    parts = PurePosixPath(marker).parts
    if not parts or parts[0] in ("/", "//") or parts[0].startswith("~") or ".." in parts:
        raise ValueError("expected a path relative to watch.folder and inside it, for example .mounted")
    return marker


class WatchSettings(Section):
    """The drop folder."""

    folder: ConfigPath
    """Folder where unlabelled target images arrive."""
    mode: Literal["auto", "events", "polling"] = "auto"
    """How new files are detected: events asks the kernel, polling reads the folder every `advanced.rescan_seconds`.
    auto polls where the kernel reports nothing (NFS, SMB, FUSE) and uses events elsewhere. The rescan always runs."""
    marker: Annotated[str, AfterValidator(_inside)] | None = None
    """Path (relative to the folder) of a file that exists whenever the folder is mounted. While it is absent, nothing
    is taken. Without a marker, an empty folder and an unmounted one look alike."""
    stability_seconds: Seconds = 2.0
    """A file is taken once its size and mtime have not changed for this long (seconds). With events, a file that was
    renamed into place is taken at once."""
    ignore: tuple[str, ...] = (
        ".*", "*.part", "*.partial", "*.filepart", "*.tmp", "*.crdownload", "*.download", "~*", "Thumbs.db",
        "desktop.ini", "@eaDir",
    )  # fmt: skip
    """Name patterns (fnmatch, on any path component, case-insensitive) to ignore."""
    max_file_bytes: PositiveInt = 64 * 1024 * 1024
    """Largest image file accepted (bytes)."""
    max_pixels: PositiveInt = 64_000_000
    """Largest image accepted (width x height, pixels), here and by the inference plane; checked before decoding."""
    after_commit: Literal["keep", "move", "delete"] = "keep"
    """What happens to the original once its frame is stored."""
    done_folder: ConfigPath | None = None
    """Where `after_commit: move` moves originals, with their sub-folders; any file system."""
    quarantine: ConfigPath | None = None
    """Where refused files are moved, with their sub-folders; None leaves them in the folder."""
    advanced: WatchAdvanced = WatchAdvanced()

    @model_validator(mode="after")
    def _done_folder_is_used(self) -> Self:
        if (self.after_commit == "move") != (self.done_folder is not None):
            raise ValueError("after_commit: move and done_folder belong together; set both, or neither")
        return self


class VideoSettings(Section):
    """Videos in the drop folder: a process of its own turns them into image files. Needs the `video` extra."""

    enabled: bool = True
    """Off: videos stay in the drop folder as they are."""
    seconds: Positive = 1.0
    """Spacing of the frames that are taken (seconds of the video's own time)."""
    max_bytes: PositiveInt = 4 * 1024 * 1024 * 1024
    """Largest video file accepted (bytes); it is read piece by piece, never whole into memory."""


class AdmissionAdvanced(Section):
    """Rarely changed settings of admission."""

    near_duplicate_recent: PositiveInt = 256
    """Newest frames of the same source that an image is compared with."""
    policies: tuple[Annotated[str, AfterValidator(lambda name: checked_name(name, ADMISSION))], ...] = ()
    """Plug-ins that are asked in this order whether an image enters."""


class AdmissionSettings(Section):
    """Which readable images enter the buffer. The others are recorded as skipped, with a reason, and not stored."""

    near_duplicate_bits: Annotated[int, Field(ge=0, le=64)] | None = None
    """Skip an image as near_duplicate when at most this many of 64 bits of its perceptual hash differ from a recent
    frame of its source. None admits all, 0 skips re-encoded copies only, 4 to 8 suits a camera that stands still."""
    min_spacing_seconds: Seconds = 0.0
    """Skip an image as too_close when it was captured less than this before or after a committed frame of its source
    (seconds); 0 admits all."""
    advanced: AdmissionAdvanced = AdmissionAdvanced()
