"""What a JSON body of the inference protocol costs: memory of at most eight times its size, and what stays right."""

import json
import tracemalloc
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from daemon.serving.errors import ApiError
from daemon.serving.oip.tensors import InferRequest, infer_response, parse_infer, read_index
from daemon.serving.versions.slots import Resident

SIZE = 300_000
"""Of a body (bytes)."""
MOST = 8
"""Times its size that a body may take, itself not counted."""
SPARE = 50_000
"""What any request takes (bytes)."""


def _list(item: bytes) -> bytes:
    return b"[" + b",".join([item] * (SIZE // (len(item) + 1))) + b"]"


def _tensor(data: bytes, shape: bytes = b"[1,1,1,3]") -> bytes:
    return b'{"inputs":[{"name":"images","shape":%s,"datatype":"UINT8","data":%s}]}' % (shape, data)


def _keys() -> bytes:
    return b"{" + b",".join(b'"%x":[]' % number for number in range(SIZE // 10)) + b"}"


NESTED = b"[[" + b",".join([b"[" + b",".join([b"[1,2,3]"] * 100) + b"]"] * 300) + b"]]"
BODIES = {
    "inputs of objects": b'{"inputs":%s}' % _list(b"{}"),
    "inputs of lists": b'{"inputs":%s}' % _list(b"[]"),
    "inputs of numbers": b'{"inputs":%s}' % _list(b"0"),
    "valid inputs": b'{"inputs":%s}' % _list(b'{"name":"images","shape":[],"datatype":""}'),
    "outputs": b'{"inputs":[],"outputs":%s}' % _list(b"0"),
    "valid outputs": _tensor(b"[1,2,3]")[:-1] + b',"outputs":%s}' % _list(b'{"name":"labels"}'),
    "unknown member": b'{"inputs":[],"x":%s}' % _list(b"{}"),
    "parameters": b'{"inputs":[],"parameters":%s}' % _keys(),
    "classification": _tensor(b"[1,2,3]")[:-1]
    + b',"outputs":[{"name":"labels","parameters":{"classification":%s}}]}' % _list(b"{}"),
    "one key again": b"{" + b",".join([b'"inputs":[]'] * (SIZE // 12)) + b"}",
    "data of objects": _tensor(_list(b"{}")),
    "data of lists": _tensor(_list(b"[]")),
    "data of fractions": _tensor(_list(b"1.5")),
    "data of text": _tensor(_list(b'"a"')),
    "too many values": _tensor(_list(b"1")),
    "shape of numbers": _tensor(b"[1]", _list(b"1")),
    "shape of text": _tensor(b"[1]", _list(b'""')),
    "long number": _tensor(b"[1]", b"[" + b"1" * SIZE + b"]"),
    "deep": b'{"inputs":' + b"[" * SIZE,
    "flat image": _tensor(_list(b"7"), b"[1,%d,1,3]" % (SIZE // 6)),
    "nested image": _tensor(NESTED, b"[1,300,100,3]"),
    "spread image": _tensor(_list(b"   7   ").replace(b",", b" , "), b"[1,%d,1,3]" % (SIZE // 24)),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_body_takes_at_most_eight_times_its_size(name: str) -> None:
    body = BODIES[name]
    tracemalloc.start()
    try:
        for read in (lambda: parse_infer(body, None, 10**9, 64), lambda: read_index(body)):
            try:
                read()
            except ApiError as error:
                assert error.status in (400, 413)
                assert len(error.message) < 1000
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < MOST * len(body) + SPARE, f"{peak / len(body):.1f} times"


def test_more_images_than_wait_are_refused_before_they_are_cut() -> None:
    head = json.dumps(
        {
            "inputs": [
                {
                    "name": "images",
                    "shape": [SIZE, 1, 1, 3],
                    "datatype": "UINT8",
                    "parameters": {"binary_data_size": 3 * SIZE},
                }
            ]
        }
    ).encode()
    with pytest.raises(ApiError) as caught:
        parse_infer(head + bytes(3 * SIZE), str(len(head)), 10**9, 64)
    assert (caught.value.status, caught.value.code) == (413, "batch_too_large")


@pytest.mark.parametrize("layout", ["flat", "nested", "spread"])
def test_values_are_read_as_they_are_written(layout: str) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 300, 200, 3), np.uint8)
    values: Any = images.ravel().tolist() if layout == "flat" else images.tolist()
    data = json.dumps(values, indent=1 if layout == "spread" else None)
    np.testing.assert_array_equal(parse_infer(_tensor(data.encode(), b"[2,300,200,3]"), None, 10**9, 64).images, images)


def test_labels_are_written_as_they_are() -> None:
    labels = [np.random.default_rng(number).integers(0, 256, (300, 500), np.uint8) for number in range(3)]
    resident = cast(Resident, SimpleNamespace(version=7, digest="a" * 64))
    answer = infer_response(InferRequest('"data":[]}]}', np.zeros((3, 1, 1, 3), np.uint8), False), labels, resident)
    said = json.loads(bytes(answer.body))
    assert (said["id"], said["outputs"][0]["shape"]) == ('"data":[]}]}', [3, 300, 500])
    assert said["outputs"][0]["data"] == np.stack(labels).ravel().tolist()


@pytest.mark.parametrize("null", ["id", "parameters", "outputs"])
def test_optional_members_may_be_null(null: str) -> None:
    body: dict[str, Any] = json.loads(_tensor(b"[1,2,3]"))
    body |= {null: None}
    body["inputs"][0]["parameters"] = None
    assert parse_infer(json.dumps(body).encode(), None, 100, 64).images.tolist() == [[[[1, 2, 3]]]]


def test_bytes_that_belong_to_nothing_are_refused() -> None:
    body = _tensor(b"[1,2,3]")
    assert parse_infer(body, str(len(body)), 100, 64).images.size == 3
    with pytest.raises(ApiError, match="bytes follow"):
        parse_infer(body + b"\1\2\3", str(len(body)), 100, 64)
