"""Every setting of mfmd: the only place where a default stands.

Each field's docstring says what it is and in which unit; `mfmd config schema` prints them as JSON Schema.
Values come from a YAML file and from environment variables (`MFMD_WATCH__FOLDER=/drop` sets `watch.folder`); see
`configs/load.py`. Relative paths are relative to the YAML file.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationInfo,
    model_validator,
)

from configs.class_list import Classes


def _relative_to_file(path: Path, info: ValidationInfo) -> Path:
    """Resolve `path` against the folder of the YAML file, given by `configs.load` as validation context `base`."""
    base = info.context.get("base") if info.context else None
    return (Path(base) / path.expanduser()).resolve() if base else path


def _bare_no(value: object) -> object:
    """YAML 1.1 reads a bare `no` as false; in a field whose values include "no" it means what it says."""
    return "no" if value is False else value


ConfigPath = Annotated[Path, AfterValidator(_relative_to_file)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Seconds = Annotated[float, Field(ge=0.0)]
PositiveInt = Annotated[int, Field(ge=1)]
Port = Annotated[int, Field(ge=0, le=65535)]

EncoderName = Literal[
    "mit_tiny", "mit_b0", "mit_b1", "mit_b2", "mit_b3", "mit_b4", "mit_b5",
    "resnet_tiny", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152",
]  # fmt: skip


class Section(BaseModel):
    """A group of settings: unknown keys are refused, values are frozen, field docstrings become descriptions."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class WatchSettings(Section):
    """The drop folder."""

    folder: ConfigPath
    """Folder where unlabelled target images arrive."""
    recursive: bool = True
    """Also take images from sub-folders."""
    stability_seconds: Seconds = 2.0
    """A file is taken once its size and mtime stood still for this long (seconds)."""
    rescan_seconds: Annotated[float, Field(gt=0)] = 5.0
    """Interval of the names-only rescan that finds what events missed (seconds)."""
    ignore: tuple[str, ...] = (".*", "*.part", "*.tmp", "*.crdownload", "~*", "Thumbs.db", "@eaDir")
    """Name patterns (fnmatch, on any path component) that are never looked at."""
    max_file_bytes: PositiveInt = 64 * 1024 * 1024
    """Largest image file accepted (bytes)."""
    max_pixels: PositiveInt = 64_000_000
    """Largest image accepted (width x height, pixels); checked before any pixel is decoded."""
    group_frames: PositiveInt = 32
    """Most frames in one durable commit; one commit of 32 costs a tenth of 32 commits (images)."""
    group_seconds: Seconds = 0.5
    """Longest time a decoded frame waits for its commit group to fill (seconds)."""


class BufferSettings(Section):
    """The zarr buffer of target frames."""

    height: Annotated[int, Field(ge=32)] = 512
    """Frame height (pixels); images are scaled to fit, keeping their aspect. Networks train and serve at this scale."""
    width: Annotated[int, Field(ge=32)] = 1024
    """Frame width (pixels)."""
    capacity_frames: PositiveInt = 2048
    """Slots in the buffer (frames); the oldest frame leaves when a new one needs its slot."""
    tile: Annotated[int, Field(ge=16)] = 256
    """Side of a zarr tile (pixels); a training crop reads only the tiles it touches."""
    holdout_fraction: Fraction = 0.1
    """Share of frames, chosen by content hash, that rounds never train on and the gate scores on (0-1)."""
    reserve_bytes: Annotated[int, Field(ge=0)] = 512 * 1024 * 1024
    """Free disk space below which ingest pauses (bytes)."""


class SourceSettings(Section):
    """Labelled source images, replayed during rounds and used by the gate as guard."""

    images: ConfigPath
    """Folder of source images."""
    labels: ConfigPath
    """Folder of label PNGs: one index per pixel, the same stem as the image (plus `label_suffix`)."""
    label_suffix: str = ""
    """What stands between the image stem and `.png` in a label's name, for example `_labelTrainIds`."""
    ignore_index: Annotated[int, Field(ge=0, le=255)] = 255
    """Label value that is left out of losses and scores."""
    validation_images: ConfigPath | None = None
    """Folder of held-out source images; without it one image in ten, chosen by name hash, is held out."""
    validation_labels: ConfigPath | None = None
    """Folder of their labels."""

    @model_validator(mode="after")
    def _both_or_none(self) -> Self:
        if (self.validation_images is None) != (self.validation_labels is None):
            raise ValueError("set both validation_images and validation_labels, or neither")
        return self


class NetworkSettings(Section):
    """Architecture of the segmentation network; recorded in every checkpoint's manifest."""

    name: Literal["daformer", "deeplabv2", "deeplabv3plus", "huggingface"] = "daformer"
    """Decoder: DAFormer head, DeepLabV2 (dlv2red) or DeepLabV3+; `huggingface` only through `mfmd import`."""
    encoder: EncoderName = "mit_b0"
    """Encoder: MiT for daformer, ResNet for the DeepLabs; `*_tiny` are presets for small CPUs."""
    channels: PositiveInt = 256
    """Width of the decoder (channels); the papers use 256."""
    dropout: Fraction = 0.1
    """Dropout before the classifier of decoders that have one (0-1)."""
    output_stride: Literal[8, 16, 32] = 8
    """Stride of the deepest ResNet map; DeepLabV2 uses 8. MiT ignores it."""
    pretrained: ConfigPath | None = None
    """Local directory with encoder weights in Hugging Face format; none trains from scratch."""
    hf_config: dict[str, Any] | None = None
    """Hugging Face config of an imported model (`huggingface` only); written by `mfmd import`."""


class MfmSettings(Section):
    """Masked Feature Modeling (Zhou et al., arXiv 2509.13801): the training-only branch."""

    enabled: bool = True
    """Run the branch; off leaves the bare host recipe."""
    mask_ratio: Fraction = 0.4
    """Probability that a cell of the feature grid is masked (0-1); the paper's best of 0.2/0.4/0.6/0.8."""
    grid: PositiveInt = 16
    """Cells per side of the mask grid, never more than the deepest map has; the paper's best of 8/16/32."""
    dim: PositiveInt = 512
    """Token width of the Rebuilder (channels, divisible by 4 and by `heads`); the paper's best of 128/256/512/768."""
    blocks: PositiveInt = 2
    """Transformer blocks of the Rebuilder; the paper's best of 1/2/4/8."""
    heads: PositiveInt = 16
    """Attention heads."""
    weight: Annotated[float, Field(ge=0)] = 1.0
    """Factor lambda of the branch's loss; the paper's best of 0.1/0.5/1/2/10."""
    learning_rate: Annotated[float, Field(gt=0)] = 2e-4
    """AdamW learning rate of the Rebuilder."""


class HostSettings(Section):
    """The self-training recipe that MFM sits on (DACS: Tranheden et al. 2021; constants of the DAFormer code base)."""

    name: Literal["dacs"] = "dacs"
    """Recipe; later issues add daformer, hrda and mic."""
    ema_decay: Fraction = 0.99
    """Teacher decay alpha; step t uses min(1 - 1/(t+1), alpha)."""
    threshold: Fraction = 0.968
    """A pseudo-label counts as confident from this softmax probability on (0-1)."""
    classmix: bool = True
    """Paste half of the source classes over the target image and train on the mix; off trains on the plain target."""
    jitter: Fraction = 0.2
    """Strength of colour jitter on the mixed image (brightness, contrast, saturation, hue)."""
    jitter_probability: Fraction = 0.8
    """Probability of colour jitter, drawn once a step."""
    blur_probability: Fraction = 0.5
    """Probability of Gaussian blur (sigma 0.15-1.15 pixels), drawn once a step."""
    source_jitter: Fraction = 0.0
    """Strength of colour jitter on the replayed source images."""


class OptimSettings(Section):
    """AdamW with linear warm-up and polynomial decay."""

    learning_rate: Annotated[float, Field(gt=0)] = 6e-5
    """Learning rate of the encoder."""
    head_multiplier: Annotated[float, Field(gt=0)] = 10.0
    """The decoder learns this many times faster than the encoder."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Weight decay; norm layers and biases get none."""
    warmup_steps: Annotated[int, Field(ge=0)] = 50
    """Steps of linear warm-up from zero."""
    power: Annotated[float, Field(ge=0)] = 1.0
    """Exponent of the polynomial decay to zero; 0 keeps the rate constant."""
    clip_norm: Annotated[float, Field(ge=0)] = 0.0
    """Clip the gradient to this L2 norm; 0 does not clip."""


class PretrainSettings(Section):
    """Supervised training on source images (`mfmd pretrain`)."""

    steps: PositiveInt = 4000
    """Optimizer steps."""
    batch_size: PositiveInt = 8
    """Images a step."""
    crop_height: PositiveInt = 512
    """Crop height (pixels)."""
    crop_width: PositiveInt = 512
    """Crop width (pixels)."""
    min_scale: Annotated[float, Field(gt=0)] = 0.75
    """Smallest random rescaling of an image before cropping."""
    max_scale: Annotated[float, Field(gt=0)] = 1.5
    """Largest random rescaling."""
    jitter: Fraction = 0.2
    """Strength of colour jitter."""
    optim: OptimSettings = OptimSettings(learning_rate=6e-4, head_multiplier=1.0, warmup_steps=100)
    """Optimizer."""
    seed: int = 0
    """Seed of weights, crops and augmentation."""


class RoundSettings(Section):
    """One self-training round."""

    steps: PositiveInt = 1000
    """Step budget; the round ends at the first budget reached."""
    max_seconds: Annotated[float, Field(gt=0)] = 3600.0
    """Time budget of the training part (seconds)."""
    batch_size: PositiveInt = 2
    """Source images and target images a step, each, per process."""
    crop_height: PositiveInt = 512
    """Crop height (pixels)."""
    crop_width: PositiveInt = 512
    """Crop width (pixels)."""
    optim: OptimSettings = OptimSettings()
    """Optimizer."""
    seed: int = 0
    """Seed; the round number is added to it."""
    processes: PositiveInt = 1
    """Processes started by `accelerate launch`."""
    mixed_precision: Annotated[Literal["no", "bf16", "fp16"], BeforeValidator(_bare_no)] = "no"
    """Precision of the forward passes."""
    accelerate_config: ConfigPath | None = None
    """Accelerate config file for several GPUs or machines; replaces `processes` and `mixed_precision`."""
    device: Literal["auto", "cpu"] = "auto"
    """`auto` uses a GPU when there is one."""
    threads: Annotated[int, Field(ge=0)] = 0
    """CPU threads of a round; 0 leaves torch's choice."""
    score_images: PositiveInt = 64
    """Most source validation images and hold-out frames used for scoring (images)."""
    keep_folders: PositiveInt = 20
    """Round folders kept on disk."""


class ScheduleSettings(Section):
    """When a round starts by itself."""

    enabled: bool = True
    """Off: only `mfmd adapt` and the control API start rounds."""
    new_frames: PositiveInt = 200
    """Start when this many frames were committed since the last round began (frames)."""
    interval_seconds: Seconds = 0.0
    """Also start when this long passed since the last round ended and a new frame came (seconds); 0 is never."""
    min_frames: PositiveInt = 16
    """Never start with fewer frames in the buffer (frames)."""


class GateSettings(Section):
    """When a candidate may serve. The default is to keep the incumbent."""

    source_drop: Fraction = 0.03
    """Veto: source mIoU below the released model's by more than this (mIoU, 0-1)."""
    source_class_drop: Fraction = 0.2
    """Veto: a source class IoU below the released model's by more than this (IoU, 0-1)."""
    vanished_ratio: Fraction = 0.05
    """Veto: a class whose area on hold-out frames falls below this share of the incumbent's."""
    vanished_floor: Fraction = 0.005
    """Classes with less than this area share under the incumbent cannot vanish."""
    agreement_floor: Fraction = 0.3
    """Veto: pixel agreement with the incumbent below this; the step is too large for one round."""
    confidence: Annotated[float, Field(gt=0.5, lt=1.0)] = 0.9
    """One-sided confidence of each vote's paired bootstrap."""
    bootstrap: PositiveInt = 1000
    """Bootstrap resamples over images."""
    votes_with_source: PositiveInt = 3
    """Votes needed of four when labelled source exists; stochastic disagreement must be among them."""
    min_holdout: PositiveInt = 4
    """Fewer held-out frames give the verdict inconclusive."""


class RegistrySettings(Section):
    """Checkpoints on disk."""

    keep_versions: PositiveInt = 10
    """Versions kept besides serving, previous, released and pinned ones."""


class ServingSettings(Section):
    """The inference plane (`mfmd serve`)."""

    host: str = "127.0.0.1"
    """Address to bind."""
    port: Port = 8009
    """TCP port; 0 lets the system choose."""
    max_batch_images: PositiveInt = 4
    """Most images in one forward pass."""
    max_delay_ms: Annotated[float, Field(ge=0)] = 5.0
    """Longest wait for a batch to fill (milliseconds)."""
    queue_images: PositiveInt = 64
    """Images that may wait; beyond this the answer is 503 with Retry-After."""
    max_body_bytes: PositiveInt = 32 * 1024 * 1024
    """Largest request body (bytes)."""
    max_pixels: PositiveInt = 64_000_000
    """Largest image (pixels)."""
    follow_seconds: Annotated[float, Field(gt=0)] = 0.2
    """How often the serving ref is looked at (seconds)."""
    device: Literal["auto", "cpu"] = "auto"
    """`auto` uses a GPU when there is one."""
    threads: Annotated[int, Field(ge=0)] = 0
    """CPU threads of a forward pass; 0 leaves torch's choice."""
    enabled: bool = True
    """Off: `mfmd run` starts no inference plane; run `mfmd serve` elsewhere."""


class ControlSettings(Section):
    """The control plane's HTTP server."""

    host: str = "127.0.0.1"
    """Address to bind; a public one is refused unless `token` or `token_file` is set."""
    port: Port = 8008
    """TCP port; 0 lets the system choose."""
    token: SecretStr | None = None
    """Bearer token for everything that changes state; better given as MFMD_CONTROL__TOKEN."""
    token_file: ConfigPath | None = None
    """File that holds the token; without both, one is made in the state directory (mode 0600)."""


class ObserveSettings(Section):
    """The low-priority observer of committed frames."""

    enabled: bool = True
    """Off: frames get no embedding and no statistics."""
    poll_seconds: Annotated[float, Field(gt=0)] = 2.0
    """How often new frames are looked for (seconds)."""


class LogSettings(Section):
    """Logs."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe level that is written."""
    json_lines: bool = True
    """JSON, one object a line; off writes coloured text."""


class Settings(Section):
    """The whole configuration of one state directory."""

    state: Annotated[ConfigPath, Field(validate_default=True)] = Path("state")
    """State directory: buffer, checkpoints, rounds."""
    classes: Classes
    """A class list by name (cityscapes, camvid, demo) or a list of {name, color: [r, g, b]}."""
    watch: WatchSettings
    """The drop folder."""
    buffer: BufferSettings = BufferSettings()
    """The frame buffer."""
    source: SourceSettings | None = None
    """Labelled source images; without them rounds are source-free."""
    network: NetworkSettings = NetworkSettings()
    """The network that `mfmd pretrain` trains."""
    pretrain: PretrainSettings = PretrainSettings()
    """Source training."""
    mfm: MfmSettings = MfmSettings()
    """Masked Feature Modeling."""
    host: HostSettings = HostSettings()
    """The self-training recipe."""
    round: RoundSettings = RoundSettings()
    """One round."""
    schedule: ScheduleSettings = ScheduleSettings()
    """When rounds start."""
    gate: GateSettings = GateSettings()
    """When a candidate serves."""
    registry: RegistrySettings = RegistrySettings()
    """Checkpoints."""
    serving: ServingSettings = ServingSettings()
    """Inference plane."""
    control: ControlSettings = ControlSettings()
    """Control plane."""
    observe: ObserveSettings = ObserveSettings()
    """Observer."""
    log: LogSettings = LogSettings()
    """Logs."""
