"""Messages of the Open Inference Protocol v2, as JSON: accepted requests, and answers.

Specification: kserve/open-inference-protocol, `specification/protocol/inference_rest.md`; repository, configuration and
binary tensors are Triton's extensions of it.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from daemon.serving.api.problems import Message

MODEL = "segmentation"
INPUT = "images"
OUTPUT = "labels"
DATATYPE = "UINT8"
HEADER_LENGTH = "Inference-Header-Content-Length"
IMAGE_RANK = 4
IMAGE_CHANNELS = 3
EXTENSIONS = ("binary_tensor_data", "model_configuration", "model_repository")
CLIENT_HEADERS = {
    HEADER_LENGTH: {
        "description": "Bytes of the JSON part, where binary tensors follow it.",
        "schema": {"type": "integer"},
    }
}


def _encodable(text: str) -> str:
    """Refuse a lone surrogate, which JSON can name but no answer can hold."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        message = f"holds half a character at position {error.start}, which UTF-8 cannot express"
        raise PydanticCustomError("half_a_character", message) from error
    return text


class InputTensor(Message):
    """One entry of `inputs`."""

    name: str
    shape: list[int]
    datatype: str
    data: list[Any] | None = None
    parameters: dict[str, Any] = Field(default_factory=dict)


class OutputRequest(Message):
    """One entry of `outputs`."""

    name: str
    parameters: dict[str, Any] = Field(default_factory=dict)


class InferBody(Message):
    """The JSON part of a request; unknown members are ignored, as the protocol says."""

    id: Annotated[str, AfterValidator(_encodable)] | None = None
    """Comes back in the answer."""
    inputs: list[InputTensor]
    outputs: list[OutputRequest] = Field(default_factory=list)
    parameters: dict[str, Any] = Field(default_factory=dict)


class IndexBody(Message):
    """Request of the repository index."""

    ready: bool = False
    """Only versions that answer."""


INPUT_MODELS = (InferBody, IndexBody)
"""What the OpenAPI page describes although routes read it themselves, within their limits."""


class ServerMetadata(Message):
    """Name and extensions of the server."""

    name: str
    version: str
    extensions: list[str]


class ServerLive(Message):
    """The process answers."""

    live: bool


class ServerReady(Message):
    """Whether requests are answered."""

    ready: bool


class ModelReady(Message):
    """Whether the model answers."""

    name: str
    ready: bool


class TensorMetadata(Message):
    """A tensor of the model; -1 is any size."""

    name: str
    datatype: str
    shape: list[int]


class VersionParameters(Message):
    """What is special to one version."""

    version: int
    sha256: str
    """Hex SHA-256 of its weights."""
    created: float
    """When it was made (Unix time, seconds)."""
    input_height: int
    """Rows of the network's input (pixels)."""
    input_width: int
    """Columns of the network's input (pixels)."""
    classes: list[str]
    """Names in index order."""


class ModelMetadata(Message):
    """The model, or one version of it."""

    name: str
    versions: list[str]
    """Versions in memory, the serving one first."""
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]
    parameters: VersionParameters | None
    """About the version asked for, or the one that serves; none before the first."""


class OutputTensor(Message):
    """Labels `[B, H, W]`, flat in row-major order, or their size (bytes) where binary data follows."""

    name: str
    datatype: str
    shape: list[int]
    data: list[int] | None = None
    parameters: dict[str, int] | None = None


class InferAnswer(Message):
    """The JSON part of an answer."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[OutputTensor]


class IndexEntry(Message):
    """A version in the repository."""

    name: str
    version: str
    state: Literal["READY", "UNAVAILABLE"]
    reason: str
    """Why it does not answer; empty if it does."""


class ModelConfig(Message):
    """The model's configuration in Triton's words."""

    name: str
    platform: str
    max_batch_size: int
    input: list[dict[str, Any]]
    output: list[dict[str, Any]]
