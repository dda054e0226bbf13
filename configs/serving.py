"""Settings of both HTTP servers, of masks for users without HTTP, and of mirrors of what serves."""

from typing import Annotated, Literal, Self

from pydantic import Field, SecretStr, model_validator

from configs.section import ConfigPath, Fraction, Port, PositiveInt, Section


class ServingAdvanced(Section):
    """Rarely changed settings of the inference plane."""

    max_delay_ms: Annotated[float, Field(ge=0)] = 5.0
    """Longest wait for a batch to fill (milliseconds)."""
    public: bool = False
    """Answer anybody on a public address without a token: in a container or a trusted network."""
    queue_images: PositiveInt = 64
    """Images that may wait; beyond this the answer is 503 with Retry-After."""
    max_body_bytes: PositiveInt = 32 * 1024 * 1024
    """Largest request body (bytes)."""
    request_seconds: Annotated[float, Field(gt=0)] = 60.0
    """Longest duration of a request, its body included (seconds); after it the answer is 408 or 503."""
    follow_seconds: Annotated[float, Field(gt=0)] = 0.2
    """How often the serving ref is read (seconds)."""
    channels_last: bool = False
    """Memory format of images; the weights of convolutions always have it."""
    fold_batch_norm: bool = True
    """Run a convolution and the BatchNorm after it as one layer: faster, with the same logits except for rounding."""
    compile: bool = False
    """torch.compile the network, once a served shape, before a version serves (needs a C++ compiler on a CPU). On a GPU
    batches of several images run as without it."""
    window: Literal["resize", "slide"] = "resize"
    """How an image of any size is fitted to the network: resize scales it to fit the input; slide scales its short side
    only and averages the logits of overlapping windows."""
    window_overlap: Annotated[float, Field(ge=0, lt=1)] = 0.33
    """Share of a window that the next one covers again."""


class ServingSettings(Section):
    """The inference plane (`mfmd serve`)."""

    enabled: bool = True
    """Off: `mfmd run` starts no inference plane; run `mfmd serve` elsewhere."""
    host: str = "127.0.0.1"
    """Address to bind. A public one needs `token` or `token_file` (a proxy that checks users sends it), or
    `advanced.public`."""
    port: Port = 8009
    """TCP port; 0 lets the system choose."""
    token: SecretStr | None = None
    """Bearer token that every request but health and metrics must carry; better given as MFMD_SERVING__TOKEN."""
    token_file: ConfigPath | None = None
    """File that holds the token."""
    certificate: ConfigPath | None = None
    """TLS certificate chain (PEM); with `key` the plane speaks HTTPS only."""
    key: ConfigPath | None = None
    """Private key of the certificate (PEM)."""
    device: Literal["auto", "cpu"] = "auto"
    """`auto` uses a GPU when there is one."""
    threads: Annotated[int, Field(ge=0)] = 0
    """CPU threads of a forward pass; 0 leaves torch's choice."""
    precision: Literal["float32", "bf16", "fp16"] = "float32"
    """Numbers that the forward pass computes with (autocast); the weights stay float32. fp16 is for GPUs."""
    max_batch_images: PositiveInt = 4
    """Most images in one forward pass."""
    shadow_fraction: Fraction = 0.0
    """Share of live requests that also run on the version in the shadow; their agreement is recorded."""
    advanced: ServingAdvanced = ServingAdvanced()

    @model_validator(mode="after")
    def _certificate_has_its_key(self) -> Self:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("serving.certificate and serving.key go together; set both or neither")
        return self


class MasksAdvanced(Section):
    """Rarely changed settings of masks."""

    again: bool = False
    """Rewrite all masks when another version serves."""


class MasksSettings(Section):
    """Masks as files: each image of the drop folder gets one, written by `mfmd masks`, which `mfmd run` starts."""

    folder: ConfigPath | None = None
    """Where masks are written, sub-folders as in the drop folder; none: no masks. Needs `watch.after_commit: keep`."""
    kind: Literal["index", "color", "overlay"] = "index"
    """index: class indices; color: the class list's colours; overlay: colours over the image."""
    advanced: MasksAdvanced = MasksAdvanced()


class PublishSettings(Section):
    """Copies of what serves, made on every promotion and rollback, for servers that run already."""

    triton: ConfigPath | None = None
    """Folder of a Triton model repository: `mfmd/N/model.onnx` (extra `onnx`) and `mfmd/config.pbtxt`."""
    huggingface: ConfigPath | None = None
    """Folder for copies as Hugging Face directories (models that came as one); load `current` in it."""


class ControlAdvanced(Section):
    """Rarely changed settings of the control plane."""

    hosts: tuple[str, ...] = ()
    """Names under which a reverse proxy passes requests on, such as `mfmd.example`. On a loopback address the plane
    otherwise answers only under an IP address, `localhost`, or a name without a dot."""


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
    certificate: ConfigPath | None = None
    """TLS certificate chain (PEM); with `key` the control plane speaks HTTPS only."""
    key: ConfigPath | None = None
    """Private key of the certificate (PEM)."""
    advanced: ControlAdvanced = ControlAdvanced()

    @model_validator(mode="after")
    def _certificate_has_its_key(self) -> Self:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("control.certificate and control.key go together; set both or neither")
        return self
