"""Settings of the network, of its optimizer, and of source training."""

import re
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, BeforeValidator, Field, JsonValue, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from configs.errors import nearest
from configs.section import ConfigPath, Fraction, NotNegative, Positive, PositiveInt, Section, bare_no

TrainedName = Literal["daformer", "deeplabv2", "deeplabv3plus", "unet", "light", "pyramid"]
NetworkName = Literal["daformer", "deeplabv2", "deeplabv3plus", "unet", "light", "pyramid", "huggingface"]
EncoderName = Literal[
    "mit_tiny", "mit_b0", "mit_b1", "mit_b2", "mit_b3", "mit_b4", "mit_b5",
    "resnet_tiny", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152",
    "dinov2_tiny", "dinov2_small", "dinov2_base", "dinov2_large",
    "dinov2_adapter_tiny", "dinov2_adapter_small", "dinov2_adapter_base", "dinov2_adapter_large",
    "dinov2_tokens_tiny", "dinov2_tokens_small", "dinov2_tokens_base", "dinov2_tokens_large",
    "dinov3_tiny", "dinov3_small", "dinov3_base", "dinov3_large",
    "dinov3_adapter_tiny", "dinov3_adapter_small", "dinov3_adapter_base", "dinov3_adapter_large",
    "dinov3_tokens_tiny", "dinov3_tokens_small", "dinov3_tokens_base", "dinov3_tokens_large",
    "dinov3_convnext_tiny", "dinov3_convnext_t", "dinov3_convnext_s", "dinov3_convnext_b", "dinov3_convnext_l",
    "unet_tiny", "unet_small", "unet_base",
]  # fmt: skip


OWN_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)
"""`package.module:callable`, which builds a network that mfmd does not know."""


def is_own(name: str) -> bool:
    """Return whether `name` of a network is a dotted path to a callable, not a word of mfmd's."""
    return OWN_NAME.fullmatch(name) is not None


def _is_word(name: str, words: tuple[str, ...]) -> str:
    if name in words or is_own(name):
        return name
    raise PydanticCustomError(
        "literal_error",
        "{what}",
        {
            "what": f"no network {name!r}{nearest(name, words)}; it is one of {', '.join(words)}, or a callable of a "
            "package of yours, `package.module:callable`"
        },
    )


def _is_known(name: str) -> str:
    return _is_word(name, get_args(NetworkName))


def _is_trained_here(name: str) -> str:
    return _is_word(name, get_args(TrainedName))


class _Layers(Section):
    """What an operator's network and the one in a manifest have in common."""

    name: Annotated[str, AfterValidator(_is_known)] = "daformer"
    """Decoder: DAFormer head, DeepLabV2 (dlv2red), DeepLabV3+, U-Net, VFM-UDA's light head or VFM-UDA++'s pyramid."""
    options: dict[str, JsonValue] = Field(default_factory=dict)
    """Keyword arguments of your own network's callable, beside `num_classes`."""
    encoder: EncoderName = "mit_b0"
    """Encoder: MiT, DINO, adapters, ConvNeXt or tokens for daformer, ResNet for the DeepLabs, DINO also for deeplabv2,
    unet_* or tokens for unet, DINO for light, adapters or ConvNeXt for pyramid. `*_tiny` are for small CPUs; of
    `*_tokens_*` the ViT is frozen and needs `pretrained`."""
    channels: PositiveInt = 256
    """Width of the decoder (channels); the papers use 256. Those of light and pyramid follow the encoder."""
    dropout: Fraction = 0.1
    """Dropout before the classifier, in decoders that have one (0-1)."""
    pretrained: ConfigPath | None = None
    """Local directory with encoder weights in Hugging Face format; None trains from scratch."""
    multi_resolution: bool = False
    """HRDA: the network sees the image at half size (context) and windows of it at full size (detail), fused by a
    learnt attention. An answer costs about 2.6 times the plain network's; a training pass at the same crop, half."""


class TokenSettings(Section):
    """Low-rank tokens in every block of a frozen ViT (`*_tokens_*`): Rein (Wei et al., CVPR 2024), as MFM-DA has them.

    Constants of MFM-DA (Jiang et al., arXiv 2503.00802, its code).
    """

    length: PositiveInt = 100
    """Tokens of a block."""
    rank: PositiveInt = 16
    """Rank of the matrix of a block's tokens."""
    scale: Positive = 0.001
    """First value of the factor, which is trained, on what the tokens add."""
    head_width: PositiveInt = 64
    """Channels of the finest level of the U-Net behind them; each deeper level has twice as many (64 to 512)."""


class _Rare(Section):
    """Rarely changed settings of the network."""

    output_stride: Literal[8, 16, 32] = 8
    """Stride of the deepest ResNet map; DeepLabV2 uses 8. MiT and DINOv2 ignore it."""
    encoder_module: str | None = None
    """Your own network, if it has no `encode` and `decode`: name of its submodule that turns images into maps."""
    decoder_module: str | None = None
    """Name of its submodule that turns what `encoder_module` returns into logits."""
    tokens: TokenSettings = TokenSettings()


class NetworkAdvanced(_Rare):
    """Rarely changed settings of the network."""


class NetworkSettings(_Layers):
    """The segmentation network that `mfmd pretrain` trains."""

    name: Annotated[
        str,
        AfterValidator(_is_trained_here),
        WithJsonSchema({"anyOf": [{"enum": list(get_args(TrainedName))}, {"type": "string"}]}),
    ] = "daformer"
    """Decoder: DAFormer head, DeepLabV2 (dlv2red), DeepLabV3+, U-Net, VFM-UDA's light head or VFM-UDA++'s pyramid.
    `package.module:callable` is a network of your own; mfmd runs that package's code. `mfmd import` takes Hugging Face
    models."""
    advanced: NetworkAdvanced = NetworkAdvanced()

    @model_validator(mode="after")
    def _own_settings_belong_to_an_own_network(self) -> Self:
        one, other = self.advanced.encoder_module, self.advanced.decoder_module
        if (one is None) != (other is None):
            raise ValueError("advanced.encoder_module and advanced.decoder_module belong together; set both or neither")
        if not is_own(self.name):
            if self.options or one is not None:
                raise ValueError(
                    "options, advanced.encoder_module and advanced.decoder_module belong to a network of your own "
                    f"(`name: package.module:callable`), not to {self.name!r}; delete them"
                )
            return self
        if self.pretrained is not None:
            raise ValueError("pretrained: weights of a built-in encoder; a network of your own begins as it is built")
        if self.multi_resolution:
            raise ValueError("multi_resolution: HRDA takes the built-in networks only; set it to false")
        return self

    @model_validator(mode="after")
    def _a_frozen_encoder_has_weights(self) -> Self:
        if "_tokens_" in self.encoder and not is_own(self.name) and self.pretrained is None:
            raise ValueError(
                f"pretrained: the ViT of encoder {self.encoder!r} is frozen, so it must come with weights; name its "
                f"directory, or set encoder to {self.encoder.replace('_tokens', '')!r}, which trains"
            )
        return self

    def architecture(self) -> "Architecture":
        """Return what a manifest records of it."""
        values = self.model_dump(exclude={"advanced"})
        return Architecture.model_validate({**values, **self.advanced.model_dump()})


class Architecture(_Layers, _Rare):
    """What a network is built from; every manifest records one. Not settings: nobody writes it by hand."""

    hf_config: dict[str, Any] | None = None
    """Hugging Face config of an imported model (`huggingface` only)."""
    hf_preprocessor: dict[str, Any] | None = None
    """Its preprocessor config: how it scales pixels; None: ImageNet statistics."""


class OptimAdvanced(Section):
    """Rarely changed settings of the optimizer."""

    warmup_steps: Annotated[int, Field(ge=0)] = 50
    """Steps of linear warm-up from zero."""
    weight_decay: NotNegative = 0.01
    """Weight decay; norm layers and biases have none."""
    power: NotNegative = 1.0
    """Exponent of the polynomial decay to zero; 0 keeps the rate constant."""
    clip_norm: NotNegative = 0.0
    """Clip the gradient to this L2 norm; 0 does not clip."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Each layer of a DINO encoder learns this many times as fast as the next deeper one, the last one at the encoder's
    rate; 1 treats all alike, VFM-UDA++ has 0.9."""


class OptimSettings(Section):
    """AdamW with linear warm-up and polynomial decay."""

    learning_rate: Positive = 6e-5
    """Learning rate of the encoder."""
    head_multiplier: Positive = 10.0
    """The decoder learns this many times faster than the encoder."""
    advanced: OptimAdvanced = OptimAdvanced()


class PretrainAdvanced(Section):
    """Rarely changed settings of source training."""

    min_scale: Positive = 0.75
    """Smallest random rescaling of an image before cropping."""
    max_scale: Positive = 1.5
    """Largest random rescaling."""
    jitter: Fraction = 0.2
    """Strength of colour jitter (brightness, contrast, saturation, hue)."""
    class_balance: NotNegative = 0.0
    """Exponent e of the class weights (median frequency / frequency)^e in the loss: 0 weighs every pixel alike, 1 is
    the median-frequency balancing of SegNet (Badrinarayanan 2015). Small networks trained from scratch need it to learn
    rare classes."""
    mixed_precision: Annotated[Literal["no", "bf16"], BeforeValidator(bare_no)] = "no"
    """Precision of the forward pass; bf16 saves a third of the time on GPUs and on CPUs with AVX-512 BF16."""
    jitter_probability: Fraction = 1.0
    """Probability that an image is jittered (0-1)."""
    gamma: NotNegative = 0.0
    """Each image is raised to a power between 1 / (1 + gamma) and 1 + gamma, so that light varies; 0 is off."""
    grayscale_probability: Fraction = 0.0
    """Probability that an image loses its colour (0-1)."""
    blur_probability: Fraction = 0.0
    """Probability of Gaussian blur (sigma 0.15-1.15 pixels) on an image (0-1)."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of weights, crops and augmentation."""


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
    optim: OptimSettings = OptimSettings(
        learning_rate=6e-4, head_multiplier=1.0, advanced=OptimAdvanced(warmup_steps=100)
    )
    advanced: PretrainAdvanced = PretrainAdvanced()
