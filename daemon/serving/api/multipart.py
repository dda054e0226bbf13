"""The `image` part of a multipart form, held in memory only."""

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import Field, File, FormParser, parse_options_header

from daemon.serving.errors import ApiError

IMAGE_FIELD = b"image"
MAX_FIELDS_SEEN = 64


def is_multipart(content_type: str) -> bool:
    """Return whether a body of this Content-Type is a multipart form."""
    return content_type.split(";")[0].strip().lower() == "multipart/form-data"


def image_part(content_type: str, body: bytes) -> bytes:
    """Return the content of the part named `image`, with or without a file name.

    Raises ApiError 400 multipart_invalid for a broken form, image_missing without such a part.
    """
    _, options = parse_options_header(content_type)
    parts: list[Field | File] = []
    complete: list[bool] = []

    def on_part(part: Field | File) -> None:
        if len(parts) == MAX_FIELDS_SEEN:
            raise FormParserError(f"more than {MAX_FIELDS_SEEN} parts")
        parts.append(part)

    try:
        parser = FormParser(
            "multipart/form-data",
            on_part,
            on_part,
            on_end=lambda: complete.append(True),
            boundary=options.get(b"boundary"),
            config={"MAX_MEMORY_FILE_SIZE": len(body) + 1},  # never a temporary file: the body is in memory already
        )
        parser.write(body)
        parser.finalize()
    except (FormParserError, ValueError) as error:
        raise ApiError(400, "multipart_invalid", f"the multipart form is broken: {error}") from error
    if not complete:
        raise ApiError(400, "multipart_invalid", "the multipart form ends before its closing boundary")
    found = [_content(part) for part in parts if part.field_name == IMAGE_FIELD]
    if len(found) != 1:
        raise ApiError(400, "image_missing", f"the form needs one part named `image`; it has {len(found)}")
    return found[0]


def _content(part: Field | File) -> bytes:
    if isinstance(part, Field):
        return part.value or b""
    part.file_object.seek(0)
    return part.file_object.read()
