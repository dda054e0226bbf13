"""Open Inference Protocol v2 on the wire: images `[B, H, W, 3]` in, labels `[B, H, W]` out, as JSON or binary tensors.

Specification: kserve/open-inference-protocol, `specification/protocol/inference_rest.md`. Binary tensors are Triton's
"binary tensor data extension", which its clients use by default: the JSON part comes first, its length stands in the
header `Inference-Header-Content-Length`, and the tensor's bytes follow.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import msgspec
import numpy as np
from fastapi import Response
from numpy.typing import NDArray

from daemon.net.json_body import InvalidBody, read_json
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
    IndexBody,
    InferAnswer,
    InferBody,
    InputTensor,
    OutputRequest,
    OutputTensor,
)
from daemon.serving.versions.slots import Resident

T = TypeVar("T")
LARGEST_SHAPE = 256
"""Largest shape as text (bytes)."""
LARGEST_REQUEST = 64 * 1024
"""Largest list of outputs as text (bytes)."""
VALUES_AT_ONCE = 128 * 1024
"""Values or bytes that one call converts: a call holds all threads for some milliseconds."""
TEXTS = np.array([f"{value}," for value in range(256)], "S4")
"""Every label as JSON writes it, with a comma; shorter ones end in null bytes."""


@dataclass(frozen=True, slots=True)
class InferRequest:
    """A parsed request."""

    id: str | None
    images: NDArray[np.uint8]
    """[B, H, W, 3]."""
    binary: bool
    """Whether the labels go back as binary."""


def parse_infer(body: bytes, header_length: str | None, max_pixels: int, max_images: int) -> InferRequest:
    """Parse the request in `body`, in memory of at most six times its size.

    Raises ApiError 400 with a code for the invalid part, 413 beyond `max_pixels` or `max_images`.
    """
    text, tail = _split(body, header_length)
    message = _read(text, InferBody)
    tensor = _only_input(message.inputs)
    everywhere = message.parameters is not None and message.parameters.binary_data_output
    wanted = [everywhere if said is None else said for said in _outputs(message.outputs)] or [everywhere]
    return InferRequest(message.id, _read_tensor(tensor, tail, max_pixels, max_images), any(wanted))


def _only_input(inputs: msgspec.Raw) -> InputTensor:
    try:
        [tensor] = read_json(inputs, tuple[InputTensor], "inputs")
    except InvalidBody as error:
        if "of length 1" in str(error):
            raise ApiError(
                400, "wrong_input_name", f"expected one input named {INPUT!r}, got another number"
            ) from error
        raise ApiError(400, error.code, str(error)) from error
    if tensor.name != INPUT:
        raise ApiError(400, "wrong_input_name", f"expected one input named {INPUT!r}, got {tensor.name[:32]!r}")
    return tensor


def _outputs(outputs: msgspec.Raw) -> list[bool | None]:
    """Return for each requested output whether it is wanted as bytes; None where it does not say."""
    asked = bytes(outputs)
    if len(asked) > LARGEST_REQUEST:
        raise ApiError(413, "body_too_large", f"outputs: more than {LARGEST_REQUEST} bytes")
    wanted = [] if asked == b"null" else _read(asked, list[OutputRequest], "outputs")
    for output in wanted:
        if output.name != OUTPUT:
            raise ApiError(400, "wrong_output_name", f"there is one output, {OUTPUT!r}; asked for {output.name!r:.64}")
        if output.parameters and bytes(output.parameters.classification) not in (b"null", b"0", b"false"):
            raise ApiError(400, "unsupported_parameter", f"output {OUTPUT!r}: classification is not offered")
    return [output.parameters.binary_data if output.parameters else None for output in wanted]


def infer_response(request: InferRequest, labels: list[Labels], resident: Resident) -> Response:
    """Return the answer with these labels of `resident`."""
    stacked, headers = np.stack(labels), version_headers(resident)  # [B, H, W]
    output = OutputTensor(name=OUTPUT, datatype=DATATYPE, shape=list(stacked.shape))
    answer = InferAnswer(model_name=MODEL, model_version=str(resident.version), id=request.id, outputs=[output])
    if not request.binary:
        output.data = []
        head, _, end = answer.model_dump_json(exclude_none=True).encode().rpartition(b"]}]}")
        return Response(
            b"".join((head, _as_text(stacked), b"]}]}", end)), headers=headers, media_type="application/json"
        )
    output.parameters = {"binary_data_size": stacked.nbytes}
    head = answer.model_dump_json(exclude_none=True).encode()
    headers[HEADER_LENGTH] = str(len(head))
    return Response(head + stacked.tobytes(), headers=headers, media_type="application/octet-stream")


def _as_text(labels: NDArray[np.uint8]) -> bytes:
    """Return labels in row-major order as JSON writes them, without brackets; in parts, so that other threads run."""
    parts = np.split(labels.ravel(), range(VALUES_AT_ONCE, labels.size, VALUES_AT_ONCE))
    return b"".join(TEXTS[part].tobytes().replace(b"\0", b"") for part in parts)[:-1]


def read_index(body: bytes) -> IndexBody:
    """Read a request of the repository index; an empty one asks for all. Raises ApiError 400."""
    return _read(body or b"{}", IndexBody)


def _split(body: bytes, header_length: str | None) -> tuple[bytes, bytes | None]:
    """Return JSON part and binary part; the latter is None for a request in plain JSON."""
    if header_length is None:
        return body, None
    if not header_length.isdecimal() or len(header_length) > len(str(len(body))) or int(header_length) > len(body):
        raise ApiError(
            400, "wrong_header_length", f"{HEADER_LENGTH} is {header_length[:32]!r}; the body has {len(body)} bytes"
        )
    length = int(header_length)
    return body[:length], body[length:]


def _read(text: bytes, kind: type[T], place: str = "") -> T:
    try:
        return read_json(text, kind, place)
    except InvalidBody as error:
        raise ApiError(400, error.code, str(error)) from error


def _read_tensor(tensor: InputTensor, tail: bytes | None, max_pixels: int, max_images: int) -> NDArray[np.uint8]:
    if tensor.datatype != DATATYPE:
        raise ApiError(400, "wrong_datatype", f"input {INPUT!r} must be {DATATYPE}, got {tensor.datatype[:32]!r}")
    shape = _shape(bytes(tensor.shape))
    if math.prod(shape[:3]) > max_pixels:
        message = f"shape {shape} exceeds {max_pixels} pixels in one request (watch.max_pixels)"
        raise ApiError(413, "too_many_pixels", message)
    if shape[0] > max_images:
        message = f"{shape[0]} images at once; at most {max_images} (serving.advanced.queue_images)"
        raise ApiError(413, "batch_too_large", message)
    declared = tensor.parameters.binary_data_size if tensor.parameters else None
    if declared is not None:
        if bytes(tensor.data) != b"null":
            raise ApiError(400, "wrong_data", f"input {INPUT!r} has data as well as binary_data_size; send one of them")
        return _from_binary(shape, declared, tail)
    if tail:
        raise ApiError(
            400, "wrong_data", f"{len(tail)} bytes follow the JSON part, but no binary_data_size says of what"
        )
    return _from_text(bytes(tensor.data), shape)


def _shape(text: bytes) -> list[int]:
    wrong = f"input {INPUT!r} must be [B, H, W, 3] with sizes of 1 or more, got {text[:64].decode(errors='replace')}"
    if len(text) > LARGEST_SHAPE:
        raise ApiError(400, "wrong_shape", wrong)
    shape = _read(text, list[int], "inputs[0].shape")
    if len(shape) != IMAGE_RANK or shape[-1] != IMAGE_CHANNELS or min(shape) < 1:
        raise ApiError(400, "wrong_shape", wrong)
    return shape


def _from_binary(shape: list[int], declared: int, tail: bytes | None) -> NDArray[np.uint8]:
    expected, size = math.prod(shape), len(tail) if tail is not None else 0
    if declared != expected or size != expected:
        message = f"shape {shape} is {expected} bytes; binary_data_size is {declared}, {size} bytes follow"
        raise ApiError(400, "wrong_data", message)
    return np.frombuffer(tail or b"", np.uint8).reshape(shape)


def _from_text(text: bytes, shape: list[int]) -> NDArray[np.uint8]:
    """Return the values of a JSON list that is flat, or nested exactly as `shape` says. Raises ApiError 400 wrong_data.

    The list is never built: brackets and commas are compared with those of the shape, and numpy reads the numbers.
    """
    if text == b"null":
        raise ApiError(400, "wrong_data", f"input {INPUT!r} has no data")
    outline, size = text.translate(None, b"0123456789 \t\r\n"), math.prod(shape)
    if outline.translate(None, b"[],"):
        raise ApiError(400, "wrong_data", f"input {INPUT!r}: data must be integers from 0 to 255")
    commas = outline.count(b",")
    if commas + 1 != size:
        raise ApiError(400, "wrong_data", f"data has {commas} commas, the shape {shape} says {size} values")
    if outline not in (_outline([size]), _outline(shape)):
        raise ApiError(400, "wrong_data", f"data is neither flat nor nested as the shape {shape} says")
    numbers = text.translate(None, b"[] \t\r\n")
    values, start = np.empty(size, np.uint8), 0
    for part in _in_parts(numbers):
        read = np.fromstring(part, np.int64, sep=",")
        if read.max() > 255:
            raise ApiError(400, "wrong_data", f"input {INPUT!r}: data must be integers from 0 to 255")
        values[start : start + read.size] = read
        start += read.size
    return values.reshape(shape)


def _outline(shape: list[int]) -> bytes:
    """Return the brackets and commas of a list of this shape."""
    outline = b""
    for side in reversed(shape):
        outline = b"[" + (outline + b",") * (side - 1) + outline + b"]"
    return outline


def _in_parts(numbers: bytes) -> Iterator[bytes]:
    """Cut numbers at commas; between two parts other threads run."""
    start = 0
    while start < len(numbers):
        end = numbers.find(b",", start + VALUES_AT_ONCE)
        end = len(numbers) if end < 0 else end
        yield numbers[start:end]
        start = end + 1
