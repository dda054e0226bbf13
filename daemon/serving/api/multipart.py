"""The `image` part of a multipart form (RFC 7578, RFC 2046), held in memory only."""

import binascii
from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from daemon.serving.errors import ApiError

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

IMAGE_FIELD = b"image"
MAX_PARTS = 64
PLAIN_ENCODINGS = (b"", b"binary", b"8bit", b"7bit")


def is_multipart(content_type: str) -> bool:
    """Return whether a body of this Content-Type is a multipart form."""
    return content_type.split(";")[0].strip().lower() == "multipart/form-data"


def image_part(content_type: str, body: bytes) -> bytes:
    """Return the content of the part named `image`, with or without a file name, its transfer encoding undone.

    Raises ApiError 400 multipart_invalid for a broken form, image_missing without such a part.
    """
    boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
    form = _Form()
    try:
        if not boundary:
            raise FormParserError("Content-Type names no boundary")
        MultipartParser(boundary, form.callbacks()).write(_without_preamble(body, b"--" + boundary))
    except (FormParserError, binascii.Error) as error:
        raise ApiError(400, "multipart_invalid", f"the multipart form is broken: {error}") from error
    if not form.complete:
        raise ApiError(400, "multipart_invalid", "the multipart form ends before its closing boundary")
    if len(form.images) != 1:
        raise ApiError(400, "image_missing", f"the form needs one part named `image`; it has {len(form.images)}")
    return form.images[0]


class _Form:
    """What the parser finds; only the content of images is kept."""

    def __init__(self) -> None:
        self.images: list[bytes] = []
        self.complete = False
        self._parts = 0
        self._name, self._value = bytearray(), bytearray()
        self._headers: dict[bytes, bytes] = {}
        self._content: bytearray | None = None

    def callbacks(self) -> "MultipartCallbacks":
        """Return what the parser calls."""
        return {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._name.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
            "on_header_end": self._end_header,
            "on_headers_finished": self._begin_content,
            "on_part_data": self._add,
            "on_part_end": self._end,
            "on_end": self._finish,
        }

    def _begin(self) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise FormParserError(f"more than {MAX_PARTS} parts")
        self._headers.clear()

    def _end_header(self) -> None:
        self._headers[bytes(self._name).lower()] = bytes(self._value)
        self._name.clear()
        self._value.clear()

    def _begin_content(self) -> None:
        named = parse_options_header(self._headers.get(b"content-disposition", b""))[1].get(b"name")
        self._content = bytearray() if named == IMAGE_FIELD else None

    def _add(self, data: bytes, start: int, end: int) -> None:
        if self._content is not None:
            self._content += memoryview(data)[start:end]

    def _end(self) -> None:
        if self._content is not None:
            encoding = self._headers.get(b"content-transfer-encoding", b"").strip().lower()
            self.images.append(_decoded(bytes(self._content), encoding))
            self._content = None

    def _finish(self) -> None:
        self.complete = True


def _decoded(content: bytes, encoding: bytes) -> bytes:
    """Undo a transfer encoding (RFC 2045, section 6); lines of any length."""
    if encoding in PLAIN_ENCODINGS:
        return content
    if encoding == b"base64":
        return binascii.a2b_base64(content)
    if encoding == b"quoted-printable":
        return binascii.a2b_qp(content)
    raise FormParserError(f"unknown Content-Transfer-Encoding {encoding[:32]!r}")


def _without_preamble(body: bytes, delimiter: bytes) -> bytes:
    """Return the body from its first delimiter on: what stands before it is no part (RFC 2046, section 5.1.1)."""
    if body.startswith(delimiter):
        return body
    start = body.find(b"\r\n" + delimiter)
    return body if start < 0 else body[start + 2 :]
