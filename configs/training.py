"""Settings of networks and of their training: source training and rounds."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from configs.section import ConfigPath, Fraction, NotNegative, Positive, PositiveInt, Section, bare_no

EncoderName = Literal[
    "mit_tiny", "mit_b0", "mit_b1", "mit_b2", "mit_b3", "mit_b4", "mit_b5",
    "resnet_tiny", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152",
    "dinov2_tiny", "dinov2_small", "dinov2_base", "dinov2_large",
]  # fmt: skip


class NetworkSettings(Section):
    """Architecture of the segmentation network; recorded in every checkpoint's manifest."""

    name: Literal["daformer", "deeplabv2", "deeplabv3plus", "huggingface"] = "daformer"
    """Decoder: DAFormer head, DeepLabV2 (dlv2red) or DeepLabV3+; `huggingface` only through `mfmd import`."""
    encoder: EncoderName = "mit_b0"
    """Encoder: MiT or DINOv2 for daformer, ResNet for the DeepLabs, DINOv2 also for deeplabv2; `*_tiny` are presets for
    small CPUs."""
    channels: PositiveInt = 256
    """Width of the decoder (channels); the papers use 256."""
    dropout: Fraction = 0.1
    """Dropout before the classifier of decoders that have one (0-1)."""
    output_stride: Literal[8, 16, 32] = 8
    """Stride of the deepest ResNet map; DeepLabV2 uses 8. MiT and DINOv2 ignore it."""
    pretrained: ConfigPath | None = None
    """Local directory with encoder weights in Hugging Face format; none trains from scratch."""
    multi_resolution: bool = False
    """HRDA: the network sees the image at half size (context) and windows of it at full size (detail), fused by a
    learnt attention. An answer costs about 2.6 times the plain network's; a training pass at the same crop, half."""
    hf_config: dict[str, Any] | None = None
    """Hugging Face config of an imported model (`huggingface` only); written by `mfmd import`."""
    hf_preprocessor: dict[str, Any] | None = None
    """Hugging Face preprocessor config of an imported model: how it wants pixels scaled; none: ImageNet statistics."""


class OptimSettings(Section):
    """AdamW with linear warm-up and polynomial decay."""

    learning_rate: Positive = 6e-5
    """Learning rate of the encoder."""
    head_multiplier: Positive = 10.0
    """The decoder learns this many times faster than the encoder."""
    weight_decay: NotNegative = 0.01
    """Weight decay; norm layers and biases get none."""
    warmup_steps: Annotated[int, Field(ge=0)] = 50
    """Steps of linear warm-up from zero."""
    power: NotNegative = 1.0
    """Exponent of the polynomial decay to zero; 0 keeps the rate constant."""
    clip_norm: NotNegative = 0.0
    """Clip the gradient to this L2 norm; 0 does not clip."""


class PretrainSettings(Section):
    """Supervised training on source images (`mfmd pretrain`)."""

    steps: PositiveInt = 4000
    """Optimizer steps."""
    batch_size: PositiveInt = 8
    """Images a step."""
    crop_height: Annotated[int, Field(ge=32)] = 512
    """Crop height (pixels); 32 is one cell of the deepest map."""
    crop_width: Annotated[int, Field(ge=32)] = 512
    """Crop width (pixels)."""
    min_scale: Positive = 0.75
    """Smallest random rescaling of an image before cropping."""
    max_scale: Positive = 1.5
    """Largest random rescaling."""
    jitter: Fraction = 0.2
    """Strength of colour jitter (brightness, contrast, saturation, hue)."""
    jitter_probability: Fraction = 1.0
    """Probability that an image is jittered (0-1)."""
    gamma: NotNegative = 0.0
    """Each image is raised to a power between 1 / (1 + gamma) and 1 + gamma, so that light varies; 0 is off."""
    grayscale_probability: Fraction = 0.0
    """Probability that an image loses its colour (0-1)."""
    blur_probability: Fraction = 0.0
    """Probability of Gaussian blur (sigma 0.15-1.15 pixels) on an image (0-1)."""
    class_balance: NotNegative = 0.0
    """Exponent e of the class weights (median frequency / frequency)^e in the loss; 0 weighs every pixel alike, 1 is
    the median-frequency balancing of SegNet (Badrinarayanan 2015). Small networks from scratch never learn rare classes
    without it."""
    mixed_precision: Annotated[Literal["no", "bf16"], BeforeValidator(bare_no)] = "no"
    """Precision of the forward pass; bf16 saves a third of the time on CPUs that know it (AVX-512 BF16) and on GPUs."""
    optim: OptimSettings = OptimSettings(learning_rate=6e-4, head_multiplier=1.0, warmup_steps=100)
    """Optimizer."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of weights, crops and augmentation."""


class RoundSettings(Section):
    """One self-training round."""

    steps: PositiveInt = 1000
    """Step budget; the round ends at the first budget reached."""
    max_seconds: Positive = 3600.0
    """Time budget of the training part (seconds)."""
    batch_size: PositiveInt = 2
    """Source images and target images a step, each, per process."""
    crop_height: Annotated[int, Field(ge=32)] = 512
    """Crop height (pixels); 32 is one cell of the deepest map."""
    crop_width: Annotated[int, Field(ge=32)] = 512
    """Crop width (pixels)."""
    optim: OptimSettings = OptimSettings()
    """Optimizer."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed; the round number is added to it."""
    processes: PositiveInt = 1
    """Processes started by `accelerate launch`."""
    mixed_precision: Annotated[Literal["no", "bf16", "fp16"], BeforeValidator(bare_no)] = "no"
    """Precision of the forward passes."""
    accelerate_config: ConfigPath | None = None
    """Accelerate config file for several GPUs or machines; replaces `processes` and `mixed_precision`."""
    device: Literal["auto", "cpu"] = "auto"
    """`auto` uses a GPU when there is one."""
    threads: Annotated[int, Field(ge=0)] = 0
    """CPU threads of a round; 0 leaves torch's choice."""
    save_steps: Annotated[int, Field(ge=0)] = 200
    """Save the whole training state every this many steps, so that a killed round goes on from there; 0 never saves
    before the end."""
    inherit: bool = True
    """Start from the training state (teacher, Rebuilder, optimizer, counters) of the round that made the serving
    version; off, and after a rollback, a round starts clean from the serving weights."""
    gradient_accumulation: PositiveInt = 1
    """Batches whose gradients make one optimizer step."""
    gradient_checkpointing: bool = False
    """Recompute the encoder's activations in the backward pass: less memory on large networks, 15 to 33 % more time."""
    channels_last: bool = True
    """Images and weights channels-last in memory."""
    compile: bool = False
    """Compile student and teacher with torch.compile; pays off on GPUs and long rounds only."""
    sync_batch_norm: bool = True
    """With several processes, normalise over the batches of all of them."""
    loss_limit: Positive = 50.0
    """A loss above this ends the round as failed, like one that is not finite (nats)."""
    score_images: PositiveInt = 64
    """Most source validation images and hold-out frames used for scoring (images)."""
    keep_folders: PositiveInt = 20
    """Round folders kept on disk."""
