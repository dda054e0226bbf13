"""Multipart forms as MIME allows them, and as it does not."""

import base64
import binascii

import pytest

from daemon.serving.api.multipart import image_part
from daemon.serving.errors import ApiError

CONTENT = bytes(range(256)) * 20 + b"\r\n--x\r\n--xyz"
"""Every byte, and the beginning of a boundary."""
TYPE = 'multipart/form-data; boundary="boundary:1"'
IMAGE = b'Content-Disposition: form-data; name="image"; filename="a.jpg"\r\n'


def _form(*parts: bytes, before: bytes = b"", after: bytes = b"") -> bytes:
    return before + b"".join(b"--boundary:1\r\n" + part + b"\r\n" for part in parts) + b"--boundary:1--\r\n" + after


@pytest.mark.parametrize(
    "body",
    [
        _form(IMAGE + b"\r\n" + CONTENT),
        _form(IMAGE.replace(b'; filename="a.jpg"', b"") + b"\r\n" + CONTENT),
        _form(IMAGE.upper().replace(b"IMAGE", b"image") + b"\r\n" + CONTENT),
        _form(b"Content-Type: image/jpeg\r\n" + IMAGE + b"Content-Transfer-Encoding: binary\r\n\r\n" + CONTENT),
        _form(IMAGE + b"\r\n" + CONTENT, before=b"a preamble\r\n", after=b"an epilogue"),
        _form(IMAGE + b"\r\n" + CONTENT, before=b"\r\n"),
        _form(b'Content-Disposition: form-data; name="note"\r\n\r\nx', IMAGE + b"\r\n" + CONTENT),
        _form(IMAGE + b"Content-Transfer-Encoding: base64\r\n\r\n" + base64.b64encode(CONTENT)),
        _form(
            IMAGE + b"Content-Transfer-Encoding: BASE64\r\n\r\n" + base64.encodebytes(CONTENT).replace(b"\n", b"\r\n")
        ),
        _form(IMAGE + b"Content-Transfer-Encoding: quoted-printable\r\n\r\n" + binascii.b2a_qp(CONTENT, istext=False)),
    ],
    ids=["plain", "no name", "upper case", "binary", "preamble", "empty line", "second", "base64", "lines", "quoted"],
)
def test_the_image_of_a_form_is_found_whole(body: bytes) -> None:
    assert image_part(TYPE, body) == CONTENT


@pytest.mark.parametrize(
    ("content_type", "body", "code"),
    [
        (TYPE, b"", "multipart_invalid"),
        (TYPE, b"nonsense", "multipart_invalid"),
        (TYPE, _form(IMAGE + b"\r\nabc")[:-6], "multipart_invalid"),
        (TYPE, _form(IMAGE + b"no colon\r\n\r\nabc"), "multipart_invalid"),
        (TYPE, _form(IMAGE + b"Content-Transfer-Encoding: base64\r\n\r\nabcde"), "multipart_invalid"),
        (TYPE, _form(IMAGE + b"Content-Transfer-Encoding: gzip\r\n\r\nabc"), "multipart_invalid"),
        (TYPE, _form(*[IMAGE + b"\r\nabc"] * 65), "multipart_invalid"),
        (TYPE, _form(IMAGE + b"A: " + b"x" * 100_000 + b"\r\n\r\nabc"), "multipart_invalid"),
        (TYPE, _form(*[IMAGE + b"\r\nabc"] * 2), "image_missing"),
        (TYPE, _form(b"\r\nabc"), "image_missing"),
        ("multipart/form-data", _form(IMAGE + b"\r\nabc"), "multipart_invalid"),
        ("multipart/form-data; boundary=" + "x" * 1000, _form(IMAGE + b"\r\nabc"), "multipart_invalid"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_broken_form_is_refused(content_type: str, body: bytes, code: str) -> None:
    with pytest.raises(ApiError) as caught:
        image_part(content_type, body)
    assert (caught.value.status, caught.value.code) == (400, code)
