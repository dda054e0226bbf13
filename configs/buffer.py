"""Settings of the frame buffer, and of labelled source images."""

from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema, model_validator

from configs.errors import nearest
from configs.plugins import EVICTION, checked_name
from configs.section import ConfigPath, Fraction, PositiveInt, Section

FitMode = Literal["aspect", "squash"]
Resample = Literal["bilinear", "bicubic", "lanczos", "nearest", "box", "hamming"]
BUILT_IN_EVICTION = ("fifo", "reservoir", "diverse")
LEAST_FRAMES = 8
"""Frames, uncompressed, that `buffer.max_bytes` must have room for."""


class BufferAdvanced(Section):
    """Rarely changed settings of the frame buffer."""

    fit: FitMode = "aspect"
    """How an image of another aspect fills a frame: aspect scales it to fit and pads the rest; squash scales each side
    by itself, as most Hugging Face models were trained. `mfmd init --from-model` writes what the model's processor
    says. Frames that are stored keep theirs until `mfmd buffer resize`; a version is served as it was registered."""
    resample: Resample = "bilinear"
    """Filter that scales images into frames; all are antialiased when they shrink, but nearest. Rounds leave stored
    frames of another filter out."""
    max_source_share: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Largest share of `capacity_frames` that one source may hold (0-1). Beyond it, new frames of a source replace its
    own frames only. 1 sets no limit; frames without a source label have none."""
    tile: Annotated[int, Field(ge=16)] = 256
    """Side of a zarr tile (pixels); a training crop reads only the tiles that it touches."""
    compression: Literal["none", "lz4", "zstd"] = "none"
    """Lossless compression of a new buffer: photos shrink by a fifth to a quarter (lz4) or by a third to two fifths
    (zstd). A frame takes two to four times as long to write; a crop takes half as long again (lz4) or six times as long
    (zstd) to read, 0.3 ms without. An existing buffer keeps its own."""


class BufferSettings(Section):
    """The zarr buffer of target frames."""

    height: Annotated[int, Field(ge=32)] = 512
    """Frame height (pixels). Images are scaled into frames (`buffer.advanced.fit`); networks train and serve at this
    scale."""
    width: Annotated[int, Field(ge=32)] = 1024
    """Frame width (pixels)."""
    capacity_frames: PositiveInt = 2048
    """Slots in the buffer (frames); a frame leaves (`eviction`) when a new one needs its slot."""
    eviction: Annotated[
        str,
        AfterValidator(lambda name: checked_name(name, EVICTION, BUILT_IN_EVICTION)),
        WithJsonSchema({"anyOf": [{"enum": list(BUILT_IN_EVICTION)}, {"type": "string"}]}),
    ] = "fifo"
    """Which frame leaves a full buffer: fifo the oldest; reservoir a random one, which keeps a uniform sample of all
    that ever came; diverse the one whose embedding the others represent best (needs the observer). Or a plug-in."""
    max_bytes: Annotated[int, Field(ge=0)] = 0
    """Most bytes that the frames' files may take on the disk, also during a commit; frames leave before it is reached.
    At least the bytes of 8 frames; 0 sets no limit."""
    holdout_fraction: Fraction = 0.1
    """Share of frames, chosen by content hash, that rounds never train on and the gate scores on (0-1). A small buffer
    holds out more, so that `schedule.min_frames` frames have the `gate.advanced.min_holdout` that a round needs; 0
    holds out none. What is stored keeps its choice."""
    reserve_bytes: Annotated[int, Field(ge=0)] = 512 * 1024 * 1024
    """Free disk space (bytes) below which the buffer stops growing: new frames replace old ones. Ingest pauses below
    half of it, since others then fill the disk and giving up frames would not help."""
    advanced: BufferAdvanced = BufferAdvanced()

    @model_validator(mode="after")
    def _some_frames_fit(self) -> Self:
        """Refuse a quota below a few frames: it would evict what it just stored."""
        least = LEAST_FRAMES * 3 * self.height * self.width
        if 0 < self.max_bytes < least:
            raise ValueError(
                f"max_bytes: {self.max_bytes} is less than {LEAST_FRAMES} frames; set {least} or more, or 0"
            )
        return self


LabelFormat = Literal["index", "palette", "rgb", "cityscapes_ids", "synthia_ids", "ade20k"]
IGNORE = "ignore"
"""The word in `source.label_map` for label values that no class has."""


def _value_text(key: object) -> str:
    """Return a key of a label map as plain text: `255`, or `128,64,128` for a colour."""
    text = str(key).strip()
    if text.startswith("#") and len(text) == 7:
        text = ",".join(str(int(text[i : i + 2], 16)) for i in (1, 3, 5))
    parts = [part.strip() for part in text.split(",")]
    numbers = [int(part) for part in parts if part.isascii() and part.isdecimal()]
    known = len(numbers) == len(parts) and (_is_color(numbers) or (len(parts) == 1 and numbers[0] < 2**32))
    if isinstance(key, bool) or not known:
        raise ValueError(f"{key!r} is no label value (255) and no colour ('128,64,128' or '#804080')")
    return ",".join(map(str, numbers))


def _is_color(numbers: Sequence[int]) -> bool:
    return len(numbers) == 3 and max(numbers) <= 255


def _value_texts(entries: object) -> object:
    if not isinstance(entries, dict):
        return entries
    for key, meaning in entries.items():
        if isinstance(meaning, bool) or not isinstance(meaning, str | int | None):
            raise ValueError(
                f"{key}: {meaning!r} is no class; give its name (quoted, if it is a word like no), its place"
            )
    texts = {_value_text(key): meaning for key, meaning in entries.items()}
    if len(texts) < len(entries):
        raise ValueError("a label value stands twice")
    return texts


LabelEntries = Annotated[dict[str, str | int | None], BeforeValidator(_value_texts)]


class SourceSettings(Section):
    """Labelled source images: rounds replay them, and the gate checks a candidate on them.

    Without them rounds are source-free.
    """

    images: ConfigPath
    """Folder of source images."""
    labels: ConfigPath
    """Folder of labels (PNG; also GIF, BMP, PGM, TIFF): the same stem as the image (plus `label_suffix`)."""
    label_suffix: str = ""
    """What stands between the image's stem and the ending of a label's name, for example `_gtFine_labelIds`."""
    label_format: LabelFormat = "index"
    """How a pixel names its class: index by the class's place in the list, grey or palette; palette the same, and the
    file must have a palette, which all labels share (PASCAL VOC); rgb by the class's colour; cityscapes_ids by
    Cityscapes' and GTA's own ids, which find classes by their Cityscapes names; synthia_ids the same by SYNTHIA's ids,
    which stand in the first channel of 16 bits; ade20k by 1 for the first class, 0 is ignored."""
    label_map: LabelEntries = Field(default_factory=dict)
    """Label value (or colour, `'128,64,128'` or `'#804080'`) -> name or place of its class, or `ignore`. A class that
    stands here has these values alone; for the rest `label_format` holds. `{0: background, 255: vessel}` reads masks of
    black and white."""
    ignore_index: Annotated[int, Field(ge=0, le=255)] = 255
    """Label value that losses and scores ignore; no class may have it. Not a colour: `label_map` ignores those."""
    validation_images: ConfigPath | None = None
    """Folder of held-out source images; without it one image in ten, chosen by name hash, is held out."""
    validation_labels: ConfigPath | None = None
    """Folder of their labels."""

    @model_validator(mode="after")
    def _both_or_none(self) -> Self:
        if (self.validation_images is None) != (self.validation_labels is None):
            raise ValueError("set both validation_images and validation_labels, or neither")
        for value in self.label_map:
            if ("," in value) != (self.label_format == "rgb"):
                kind = "colours" if self.label_format == "rgb" else "label values"
                raise ValueError(f"label_map: {value}: label_format {self.label_format} has {kind}")
        return self

    def mapped(self, names: Sequence[str], setting: str | None = None) -> dict[str, int | None]:
        """Return the class that each value in `label_map` means, None when ignored. Raises ValueError for no class.

        `setting`: the name of the map in the message, instead of `source.label_map`.
        """
        where = setting or "source.label_map"
        return {value: _class_of(meaning, f"{where}: {value}", names) for value, meaning in self.label_map.items()}


def _class_of(meaning: str | int | None, place: str, names: Sequence[str]) -> int | None:
    if isinstance(meaning, str) and meaning in names:
        return names.index(meaning)
    if isinstance(meaning, int) and 0 <= meaning < len(names):
        return meaning
    if meaning in (None, IGNORE):
        return None
    near = nearest(str(meaning), names) if isinstance(meaning, str) else ""
    raise ValueError(f"{place}: no class {meaning!r} in `classes`{near}")
