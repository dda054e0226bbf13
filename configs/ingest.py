"""Settings of what comes in: the drop folder, admission, and the frame buffer."""

from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from configs.section import ConfigPath, Fraction, Positive, PositiveInt, Seconds, Section

LEAST_FRAMES = 8
"""Frames, uncompressed, that `buffer.max_bytes` must have room for."""


class WatchSettings(Section):
    """The drop folder."""

    folder: ConfigPath
    """Folder where unlabelled target images arrive."""
    mode: Literal["auto", "events", "polling"] = "auto"
    """How new files are noticed: events asks the kernel, polling looks at names every `rescan_seconds` only; auto polls
    where the kernel says nothing (NFS, SMB, FUSE and other mounts) and listens elsewhere. The rescan runs in all."""
    marker: str | None = None
    """Path (relative to the folder) of a file that is there whenever the folder is mounted; without it an empty folder
    cannot be told from one that is not mounted. While it is absent nothing is taken; it is never taken itself."""
    recursive: bool = True
    """Also take images from sub-folders."""
    stability_seconds: Seconds = 2.0
    """A file is taken once its size and mtime stood still for this long (seconds); one that was renamed into place is
    whole and taken at once, where events are heard."""
    rescan_seconds: Annotated[float, Field(gt=0)] = 5.0
    """Interval of the names-only rescan that finds what events missed (seconds)."""
    include: tuple[str, ...] = ()
    """Name patterns (fnmatch, on the file's name, case-insensitive) of the files that are looked at; empty: all."""
    ignore: tuple[str, ...] = (
        ".*", "*.part", "*.partial", "*.filepart", "*.tmp", "*.crdownload", "*.download", "~*", "Thumbs.db",
        "desktop.ini", "@eaDir",
    )  # fmt: skip
    """Name patterns (fnmatch, on any path component, case-insensitive) that are never looked at; names that begin with
    a dot cover `._*`, `.DS_Store` and `.syncthing.*`."""
    max_file_bytes: PositiveInt = 64 * 1024 * 1024
    """Largest image file accepted (bytes)."""
    max_pixels: PositiveInt = 64_000_000
    """Largest image accepted (width x height, pixels); checked before any pixel is decoded."""
    max_aspect: Annotated[float, Field(ge=1)] = 20.0
    """Longest side of an image over its shortest, at most (ratio)."""
    capture_time: tuple[Literal["exif", "name", "mtime"], ...] = ("exif", "name", "mtime")
    """Where the capture time comes from, first found wins; mtime is always there."""
    capture_name: tuple[str, ...] = ("%Y%m%d_%H%M%S", "%Y%m%dT%H%M%S", "%Y-%m-%d_%H-%M-%S", "%Y%m%d%H%M%S")
    """Forms (strptime) of a time inside a file's name, for `capture_time: name`; read as local time."""
    source_label: Literal["folder", "none"] = "folder"
    """Source label (camera) of a frame: the first sub-folder of its path; files directly in the folder have none."""
    decode_threads: Annotated[int, Field(ge=1, le=64)] = 2
    """Files decoded at once; one more thread commits them, and packs them if one decodes. At most as many as cores."""
    after_commit: Literal["keep", "move", "delete"] = "keep"
    """What happens to the original once its commit is on the disk."""
    done_folder: ConfigPath | None = None
    """Where `after_commit: move` moves originals, sub-folders kept; on the drop folder's file system or another."""
    quarantine: ConfigPath | None = None
    """Where refused files are moved, sub-folders kept; none leaves them in the folder."""
    group_frames: PositiveInt = 32
    """Most frames in one durable commit; one commit of 32 costs a tenth of 32 commits (images)."""
    group_seconds: Seconds = 0.5
    """Longest time a decoded frame waits for its commit group to fill (seconds)."""

    @field_validator("capture_name")
    @classmethod
    def _forms_name_a_moment(cls, forms: tuple[str, ...]) -> tuple[str, ...]:
        """A form that leaves out year, month or day, or that strptime does not know, would never find a time."""
        moment = datetime(2001, 2, 3)
        for form in forms:
            try:
                read = datetime.strptime(moment.strftime(form), form)
            except ValueError:
                read = None
            if read != moment:
                raise ValueError(f"{form!r} does not read back a year, month and day; see strptime, e.g. %Y%m%d_%H%M%S")
        return forms

    @model_validator(mode="after")
    def _folders_lie_outside(self) -> Self:
        """Folders that files are moved to must not be watched, or they would come back."""
        if (self.after_commit == "move") != (self.done_folder is not None):
            raise ValueError("after_commit: move and done_folder belong together; set both, or neither")
        for name in ("done_folder", "quarantine"):
            folder: Path | None = getattr(self, name)
            if folder is not None and (folder == self.folder or folder.is_relative_to(self.folder)):
                raise ValueError(f"{name}: {folder} lies in the watched folder {self.folder}; choose one outside it")
        return self


class VideoSettings(Section):
    """Videos in the drop folder: a process of its own turns them into image files. Needs the `video` extra."""

    enabled: bool = True
    """Off: videos stay in the drop folder as they are."""
    seconds: Positive = 1.0
    """Spacing of the frames that are taken (seconds of the video's own time)."""
    max_bytes: PositiveInt = 4 * 1024 * 1024 * 1024
    """Largest video file accepted (bytes); it is read piece by piece, never whole into memory."""


class AdmissionSettings(Section):
    """Which readable images enter the buffer; the others are recorded as skipped, with a reason, and never stored."""

    near_duplicate_bits: Annotated[int, Field(ge=0, le=64)] | None = None
    """An image whose perceptual hash differs from a recent frame's of the same source in at most this many of 64 bits
    is skipped as near_duplicate; none admits all, 0 skips re-encoded copies only, 4 to 8 a camera that stands still."""
    near_duplicate_recent: PositiveInt = 256
    """Frames of the same source that are compared with (the newest committed)."""
    min_spacing_seconds: Seconds = 0.0
    """An image captured less than this before or after a committed frame of its source is skipped as too_close
    (seconds); 0 admits all."""


class BufferSettings(Section):
    """The zarr buffer of target frames."""

    height: Annotated[int, Field(ge=32)] = 512
    """Frame height (pixels); images are scaled to fit, keeping their aspect. Networks train and serve at this scale."""
    width: Annotated[int, Field(ge=32)] = 1024
    """Frame width (pixels)."""
    capacity_frames: PositiveInt = 2048
    """Slots in the buffer (frames); a frame leaves (`eviction`) when a new one needs its slot."""
    tile: Annotated[int, Field(ge=16)] = 256
    """Side of a zarr tile (pixels); a training crop reads only the tiles it touches."""
    compression: Literal["none", "lz4", "zstd"] = "none"
    """How tiles of a new buffer are packed, without loss: photos shrink by a fifth to a quarter (lz4) or by a third
    to two fifths (zstd); a frame takes two to four times as long to write, and a crop half as long again (lz4) or six
    times as long (zstd) to read: 0.3 ms without. An old buffer keeps its own."""
    eviction: Literal["fifo", "reservoir", "diverse"] = "fifo"
    """Which frame leaves a full buffer: fifo the oldest; reservoir a random one, so that the buffer is a uniform sample
    of all that ever came; diverse the one that the others stand for best, by their embeddings (the observer's)."""
    max_source_share: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Largest share of `capacity_frames` that one source may hold (0-1); beyond it a source's new frames push out its
    own frames, never another source's. 1 sets no limit; frames without a source label have none."""
    max_bytes: Annotated[int, Field(ge=0)] = 0
    """Most bytes that the frames' files may take on the disk, also in the middle of a commit; frames leave before it
    is reached. At least the bytes of 8 frames; 0 sets no limit."""
    holdout_fraction: Fraction = 0.1
    """Share of frames, chosen by content hash, that rounds never train on and the gate scores on (0-1)."""
    reserve_bytes: Annotated[int, Field(ge=0)] = 512 * 1024 * 1024
    """Free disk space (bytes) below which the buffer does not grow: new frames replace old ones, byte for byte. Below
    half of it ingest pauses: then others fill the disk, and giving up frames would not stop them."""

    @model_validator(mode="after")
    def _some_frames_fit(self) -> Self:
        """A quota that holds hardly a commit group would evict what it just stored."""
        least = LEAST_FRAMES * 3 * self.height * self.width
        if 0 < self.max_bytes < least:
            raise ValueError(
                f"max_bytes: {self.max_bytes} is less than {LEAST_FRAMES} frames; set {least} or more, or 0"
            )
        return self
