"""Open Inference Protocol v2 on the wire: images `[B, H, W, 3]` in, labels `[B, H, W]` out, as JSON or binary tensors.

Specification: kserve/open-inference-protocol, `specification/protocol/inference_rest.md`. Binary tensors are Triton's
"binary tensor data extension", which its clients use by default: the JSON part comes first, its length stands in the
header `Inference-Header-Content-Length`, and the tensor's bytes follow.
"""

import json
import math
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeVar

import numpy as np
from fastapi import Response
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from daemon.serving.batcher import Labels
from daemon.serving.errors import ApiError
from daemon.serving.middleware import version_headers
from daemon.serving.oip.messages import (
    DATATYPE,
    HEADER_LENGTH,
    IMAGE_CHANNELS,
    IMAGE_RANK,
    INPUT,
    MODEL,
    OUTPUT,
    InferAnswer,
    InferBody,
    InputTensor,
    OutputTensor,
)
from daemon.serving.versions.slots import Resident

Message = TypeVar("Message", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class InferRequest:
    """A parsed request."""

    id: str | None
    images: NDArray[np.uint8]
    """[B, H, W, 3]."""
    binary: bool
    """Whether the labels go back as binary."""


def parse_infer(body: bytes, header_length: str | None, max_pixels: int) -> InferRequest:
    """Parse the request in `body`. Raises ApiError 400 with a code for the invalid part, 413 beyond `max_pixels`."""
    text, tail = _split(body, header_length)
    message = read_json(text, InferBody)
    if len(message.inputs) != 1 or message.inputs[0].name != INPUT:
        names = [tensor.name[:32] for tensor in message.inputs[:4]]
        raise ApiError(400, "wrong_input_name", f"expected one input named {INPUT!r}, got {names}")
    for output in message.outputs:
        if output.name != OUTPUT:
            raise ApiError(400, "wrong_output_name", f"there is one output, {OUTPUT!r}; asked for {output.name!r:.64}")
        if output.parameters.get("classification"):
            raise ApiError(400, "unsupported_parameter", f"output {OUTPUT!r}: classification is not offered")
    images = _read_tensor(message.inputs[0], tail, max_pixels)
    everywhere = message.parameters.get("binary_data_output", False)
    wanted = [output.parameters.get("binary_data", everywhere) for output in message.outputs] or [everywhere]
    return InferRequest(message.id, images, any(wanted))


def infer_response(request: InferRequest, labels: list[Labels], resident: Resident) -> Response:
    """Return the answer with these labels of `resident`."""
    stacked, headers = np.stack(labels), version_headers(resident)  # [B, H, W]
    output = OutputTensor(name=OUTPUT, datatype=DATATYPE, shape=list(stacked.shape))
    answer = InferAnswer(model_name=MODEL, model_version=str(resident.version), id=request.id, outputs=[output])
    if not request.binary:
        output.data = stacked.ravel().tolist()
        return Response(answer.model_dump_json(exclude_none=True), headers=headers, media_type="application/json")
    output.parameters = {"binary_data_size": stacked.nbytes}
    head = answer.model_dump_json(exclude_none=True).encode()
    headers[HEADER_LENGTH] = str(len(head))
    return Response(head + stacked.tobytes(), headers=headers, media_type="application/octet-stream")


def _split(body: bytes, header_length: str | None) -> tuple[bytes, bytes | None]:
    """Return JSON part and binary part; the latter is None for a request in plain JSON."""
    if header_length is None:
        return body, None
    if not header_length.isdecimal() or len(header_length) > len(str(len(body))) or int(header_length) > len(body):
        raise ApiError(
            400, "wrong_header_length", f"{HEADER_LENGTH} is {header_length!r}; the body has {len(body)} bytes"
        )
    length = int(header_length)
    return body[:length], body[length:]


def read_json(text: bytes, kind: type[Message]) -> Message:
    """Parse the message in `text`. Raises ApiError 400 invalid_json, invalid_request (names the field)."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise ApiError(400, "invalid_json", "the JSON is nested too deeply") from None
    except ValueError as error:
        raise ApiError(400, "invalid_json", f"the body is not JSON: {error}") from error
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "body"
        raise ApiError(400, "invalid_request", f"{field}: {first['msg']}") from error


def _read_tensor(tensor: InputTensor, tail: bytes | None, max_pixels: int) -> NDArray[np.uint8]:
    if tensor.datatype != DATATYPE:
        raise ApiError(400, "wrong_datatype", f"input {INPUT!r} must be {DATATYPE}, got {tensor.datatype[:32]!r}")
    shape = tensor.shape
    if len(shape) != IMAGE_RANK or shape[-1] != IMAGE_CHANNELS or min(shape) < 1:
        raise ApiError(
            400, "wrong_shape", f"input {INPUT!r} must be [B, H, W, 3] with sizes of 1 or more, got {str(shape)[:64]}"
        )
    if math.prod(shape[:3]) > max_pixels:  # the product itself may have too many digits to be written down
        message = f"shape {str(shape)[:64]} exceeds {max_pixels} pixels in one request (watch.max_pixels)"
        raise ApiError(413, "too_many_pixels", message)
    if "binary_data_size" in tensor.parameters:
        return _from_binary(tensor, tail)
    return _from_list(tensor)


def _from_binary(tensor: InputTensor, tail: bytes | None) -> NDArray[np.uint8]:
    expected, declared = math.prod(tensor.shape), tensor.parameters["binary_data_size"]
    size = len(tail) if tail is not None else 0
    if declared != expected or size != expected:
        raise ApiError(
            400,
            "wrong_data",
            f"shape {tensor.shape} is {expected} bytes; binary_data_size is {declared!r:.32}, {size} bytes follow",
        )
    return np.frombuffer(tail or b"", np.uint8).reshape(tensor.shape)


def _from_list(tensor: InputTensor) -> NDArray[np.uint8]:
    """Return the values, flat or nested as the shape says.

    numpy does not infer their type: it would give every value the room of the longest text among them, gigabytes for a
    small body.
    """
    if tensor.data is None:
        raise ApiError(400, "wrong_data", f"input {INPUT!r} has no data")
    values = _flat(tensor.data, tensor.shape)
    if not set(map(type, values)) <= {int}:
        raise ApiError(400, "wrong_data", f"input {INPUT!r}: data must be integers from 0 to 255")
    try:
        return np.frombuffer(bytes(values), np.uint8).reshape(tensor.shape)
    except ValueError as error:
        raise ApiError(400, "wrong_data", f"input {INPUT!r}: data must be integers from 0 to 255") from error


def _flat(data: list[Any], shape: list[int]) -> list[Any]:
    """Return all values of a list that is flat, or nested exactly as `shape` says. Raises ApiError 400 wrong_data."""
    inner = shape[1:] if data and isinstance(data[0], list) else []
    size = shape[0] if inner else math.prod(shape)
    if len(data) != size:
        raise ApiError(400, "wrong_data", f"data holds {len(data)} values, the shape {shape} says {size}")
    for side in inner:
        if not all(isinstance(row, list) and len(row) == side for row in data):
            raise ApiError(400, "wrong_data", f"data is neither flat nor nested as the shape {shape} says")
        data = list(chain.from_iterable(data))
    return data
