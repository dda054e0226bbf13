"""Messages of the Open Inference Protocol v2, as JSON: accepted requests, and answers.

Specification: kserve/open-inference-protocol, `specification/protocol/inference_rest.md`; repository, configuration and
binary tensors are Triton's extensions of it.
"""

from typing import Annotated, Any, Literal

import msgspec

from daemon.net.json_body import REFERENCE
from daemon.serving.api.problems import Message

MODEL = "segmentation"
INPUT = "images"
OUTPUT = "labels"
DATATYPE = "UINT8"
HEADER_LENGTH = "Inference-Header-Content-Length"
IMAGE_RANK = 4
IMAGE_CHANNELS = 3
LONGEST_ID = 4096
"""Longest id (characters): it comes back in the answer."""
EXTENSIONS = ("binary_tensor_data", "model_configuration", "model_repository")
CLIENT_HEADERS = {
    HEADER_LENGTH: {
        "description": "Bytes of the JSON part, where binary tensors follow it.",
        "schema": {"type": "integer"},
    }
}


def _later(schema: dict[str, Any]) -> msgspec.Meta:
    """Describe a member that stays text until its size is known: many values cost 20 times their text."""
    return msgspec.Meta(extra_json_schema=schema)


def _null() -> msgspec.Raw:
    return msgspec.Raw(b"null")


Shape = Annotated[msgspec.Raw, _later({"type": "array", "items": {"type": "integer"}, "minItems": 4, "maxItems": 4})]
Data = Annotated[msgspec.Raw, _later({"type": ["array", "null"]})]
Inputs = Annotated[
    msgspec.Raw,
    _later({"type": "array", "items": {"$ref": REFERENCE.format(name="InputTensor")}, "minItems": 1, "maxItems": 1}),
]
Outputs = Annotated[
    msgspec.Raw, _later({"type": ["array", "null"], "items": {"$ref": REFERENCE.format(name="OutputRequest")}})
]
Flag = Annotated[msgspec.Raw, _later({"type": ["integer", "boolean", "null"]})]


class TensorParameters(msgspec.Struct):
    """Parameters of an input that are understood; others are ignored, as the protocol says."""

    binary_data_size: int | None = None
    """Bytes of the tensor behind the JSON part."""


class OutputParameters(msgspec.Struct):
    """Parameters of a requested output that are understood."""

    binary_data: bool | None = None
    """Whether it is sent as bytes behind the JSON part."""
    classification: Flag = msgspec.field(default_factory=_null)
    """Not offered: a request that asks for it is refused."""


class RequestParameters(msgspec.Struct):
    """Parameters of a request that are understood."""

    binary_data_output: bool | None = None
    """Whether outputs are sent as bytes, unless they say it themselves."""


class InputTensor(msgspec.Struct):
    """One entry of `inputs`."""

    name: str
    shape: Shape
    """`[B, H, W, 3]`."""
    datatype: str
    data: Data = msgspec.field(default_factory=_null)
    """Integers from 0 to 255, flat or nested as `shape` says."""
    parameters: TensorParameters | None = None


class OutputRequest(msgspec.Struct):
    """One entry of `outputs`."""

    name: str
    parameters: OutputParameters | None = None


class InferBody(msgspec.Struct):
    """The JSON part of a request; unknown members are ignored, as the protocol says. Optional ones may be null."""

    inputs: Inputs
    id: Annotated[str, msgspec.Meta(max_length=LONGEST_ID)] | None = None
    """Comes back in the answer."""
    outputs: Outputs = msgspec.field(default_factory=_null)
    parameters: RequestParameters | None = None


class IndexBody(msgspec.Struct):
    """Request of the repository index."""

    ready: bool | None = None
    """Only versions that answer."""


READ_MESSAGES = (InferBody, InputTensor, OutputRequest, IndexBody)
"""What routes read themselves, within their limits; the OpenAPI page describes it."""


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
