"""Every mistake a REST body can hold is refused with its reason, and names what is wrong."""

from __future__ import annotations

import json

import pytest

from msm.kit.errors import InvalidInput
from msm.runtime.protocols import oip_json


def _body(**changes: object) -> bytes:
    item = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1.0, 2.0]} | changes
    return json.dumps({"inputs": [{key: value for key, value in item.items() if value is not None}]}).encode()


def _raw(item: bytes, rest: bytes = b"") -> bytes:
    return b'{"inputs":[{"name":"x",%b}]%b}' % (item, rest)


def _data(datatype: str, data: bytes, shape: bytes = b"[1]") -> bytes:
    return _raw(b'"shape":%b,"datatype":"%b","data":%b' % (shape, datatype.encode(), data))


GOOD = b'"shape":[1,2],"datatype":"FP32","data":[1,2]'

CASES: list[tuple[str, bytes, str, str]] = [
    ("empty", b"", "empty_body", "empty"),
    ("truncated", b'{"inputs":[', "invalid_json", r"byte 11"),
    ("trailing", b'{"inputs":[]} x', "invalid_json", r"byte 14"),
    ("two documents", b'{"inputs":[]}{}', "invalid_json", r"byte 13"),
    ("byte order mark", b'\xef\xbb\xbf{"inputs":[]}', "invalid_json", r"byte 0"),
    ("single quotes", b"{'inputs':[]}", "invalid_json", r"byte 1"),
    ("comment", b'{"inputs":[]} // x', "invalid_json", "byte"),
    ("list", b"[]", "expected_object", "object"),
    ("string", b'"x"', "expected_object", "object"),
    ("null", b"null", "expected_object", "object"),
    ("101 deep", _data("FP32", b"[" * 98 + b"1" + b"]" * 98), "json_too_deep", "100"),
    ("100 deep", _data("FP32", b"[" * 97 + b"1" + b"]" * 97), "shape_mismatch", "'x'"),
    ("deep data", _data("FP32", b"[" * 250_000 + b"]" * 250_000), "json_too_deep", "100"),
    ("deep objects", b'{"a":' * 250_000 + b"1" + b"}" * 250_000, "json_too_deep", "100"),
    ("NaN", _data("FP32", b"[NaN]"), "invalid_json", r"'x'.*NaN.*byte 61"),
    ("minus infinity", _data("FP32", b"[1,-Infinity]", b"[2]"), "invalid_json", "Infinity"),
    ("1e400", _data("FP64", b"[1e400]"), "value_out_of_range", "'x' of FP64"),
    ("1e39", _data("FP32", b"[1e39]"), "value_out_of_range", "'x' of FP32"),
    ("65520", _data("FP16", b"[65520]"), "value_out_of_range", "'x' of FP16"),
    ("5000 digits", _data("INT64", b"[" + b"9" * 5000 + b"]"), "value_out_of_range", "'x'"),
    ("INT8 300", _data("INT8", b"[300]"), "value_out_of_range", "127"),
    ("UINT8 -1", _data("UINT8", b"[-1]"), "value_out_of_range", "0"),
    ("INT64 2^63", _data("INT64", b"[9223372036854775808]"), "value_out_of_range", "'x'"),
    ("UINT64 2^64", _data("UINT64", b"[18446744073709551616]"), "value_out_of_range", "UINT64"),
    ("INT32 1.0", _data("INT32", b"[1.0]"), "invalid_request", "int.*float"),
    ("INT32 1e2", _data("INT32", b"[1e2]"), "invalid_request", "int.*float"),
    ("BOOL 1", _data("BOOL", b"[1]"), "invalid_request", "bool"),
    ("FP32 true", _data("FP32", b"[true]"), "invalid_request", "float.*bool"),
    ("FP32 null", _data("FP32", b"[null]"), "invalid_request", "null"),
    ("FP32 text", _data("FP32", b'["1"]'), "invalid_request", "str"),
    ("BYTES number", _data("BYTES", b"[1]"), "invalid_request", "str.*int"),
    ("lone surrogate", _data("BYTES", b'["\\ud800"]'), "invalid_json", "byte"),
    ("not UTF-8", _data("BYTES", b'["\xff"]'), "invalid_json", "UTF-8"),
    ("not UTF-8 in a name", b'{"inputs":[{"name":"\xff",%b}]}' % GOOD, "invalid_json", "UTF-8"),
    ("doubled shape", _raw(GOOD + b',"shape":[1,2]'), "duplicate_key", "'shape'"),
    ("doubled inputs", _raw(GOOD, b',"inputs":[{"name":"x",%b}]' % GOOD), "duplicate_key", "'inputs'"),
    ("doubled with an escape", _raw(GOOD + b',"sh\\u0061pe":[1,2]'), "duplicate_key", "'shape'"),
    ("doubled, first broken", _raw(b'"data":[[[1e999]]],' + GOOD), "duplicate_key", "twice"),
    ("doubled parameter", _raw(GOOD, b',"parameters":{"a":1,"a":2}'), "duplicate_key", "'a'"),
    ("doubled beside colons", _raw(GOOD, b',"id":"a:b:c","id":"d"'), "duplicate_key", "'id'"),
    ("unknown member", _raw(GOOD, b',"imputs":[]'), "invalid_request", "imputs"),
    ("unknown member of an input", _raw(GOOD + b',"dtype":"FP32"'), "invalid_request", "dtype"),
    ("inputs missing", b"{}", "invalid_request", "inputs"),
    ("inputs empty", b'{"inputs":[]}', "no_inputs", "inputs"),
    ("inputs an object", b'{"inputs":{}}', "invalid_request", "array"),
    ("1001 inputs", b'{"inputs":[%b]}' % b",".join([b'{"name":"x",%b}' % GOOD] * 1001), "too_many_inputs", "1001"),
    ("same input twice", b'{"inputs":[%b,%b]}' % ((b'{"name":"x",%b}' % GOOD,) * 2), "duplicate_input", "'x'"),
    ("shape missing", _body(shape=None), "invalid_request", "shape"),
    ("shape text", _body(shape="[1]"), "invalid_request", "shape"),
    ("shape fraction", _body(shape=[1.5]), "invalid_request", "shape"),
    ("shape true", _body(shape=[True]), "invalid_request", "shape"),
    ("33 dimensions", _body(shape=[1] * 33), "too_many_dimensions", "33"),
    ("negative", _body(shape=[-1, 2]), "negative_dimension", "-1"),
    ("element count wraps", _body(shape=[2**4, 2**60 + 2]), "too_many_elements", "'x'"),
    ("a million by a million", _body(shape=[10**6, 10**6], data=[1]), "too_many_elements", "'x'"),
    ("zero times huge", _body(shape=[0, 2**62, 2**62], data=[]), "too_many_elements", "'x'"),
    ("too few", _body(data=[1.0]), "shape_mismatch", "2 values, but 1"),
    ("too many", _body(data=[1.0] * 3), "shape_mismatch", "2 values, but 3"),
    ("nested otherwise", _body(shape=[1, 4], data=[[1, 2], [3, 4]]), "shape_mismatch", r"\[1, 4\].*\[2, 2\]"),
    ("ragged", _body(shape=[2, 2], data=[[1, 2], [3]]), "ragged", "'x'"),
    ("ragged text", _body(datatype="BYTES", shape=[2, 2], data=[["a", "b"], ["c"]]), "shape_mismatch", "'x'"),
    ("too nested", _body(data=[[[1, 2]]]), "shape_mismatch", "'x'"),
    ("data missing", _body(data=None), "missing_data", "'x'"),
    ("data an object", _body(data={"0": 1}), "invalid_request", "'x'"),
    ("datatype missing", _body(datatype=None), "invalid_request", "datatype"),
    ("datatype FLOAT", _body(datatype="FLOAT"), "unknown_datatype", "FLOAT.*FP32"),
    ("BF16", _body(datatype="BF16"), "binary_only", "BF16"),
    ("long id", _raw(GOOD, b',"id":"%b"' % (b"i" * 257)), "invalid_id", "256"),
    ("id with a line end", _raw(GOOD, b',"id":"a\\r\\nb"'), "invalid_id", "id"),
    ("id a number", _raw(GOOD, b',"id":5'), "invalid_request", "id"),
    ("timeout 0", _raw(GOOD, b',"parameters":{"timeout":0}'), "invalid_parameter", "timeout"),
    ("timeout text", _raw(GOOD, b',"parameters":{"timeout":"5"}'), "invalid_parameter", "timeout"),
    ("priority text", _raw(GOOD, b',"parameters":{"priority":"high"}'), "invalid_parameter", "priority"),
    ("nested parameter", _raw(GOOD, b',"parameters":{"p":[1]}'), "invalid_parameter", "'p'"),
    ("same output twice", _raw(GOOD, b',"outputs":[{"name":"y"},{"name":"y"}]'), "duplicate_output", "'y'"),
    ("classes", _raw(GOOD, b',"outputs":[{"name":"y","parameters":{"classification":1}}]'), "invalid_parameter", "y"),
    ("flag a number", _raw(GOOD, b',"parameters":{"binary_data_output":1}'), "invalid_parameter", "binary_data_output"),
    ("binary without header", _body(data=None, parameters={"binary_data_size": 8}), "invalid_header_length", "'x'"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "reason", "message"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_a_mistake_is_refused_with_its_reason(body: bytes, reason: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=f"(?s){message}") as refused:
        oip_json.decode(body)
    assert refused.value.reason == reason
    assert len(refused.value.message) < 500


def _binary(size: object, tail: bytes, datatype: str = "FP32", shape: list[int] | None = None) -> tuple[bytes, int]:
    item = {
        "name": "x", "shape": [2] if shape is None else shape, "datatype": datatype,
        "parameters": {"binary_data_size": size},
    }  # fmt: skip
    head = json.dumps({"inputs": [item]}).encode()
    return head + tail, len(head)


@pytest.mark.parametrize(
    ("size", "tail", "datatype", "shape", "reason"),
    [
        (4, bytes(4), "FP32", [2], "shape_mismatch"),
        (16, bytes(8), "FP32", [2], "binary_size_mismatch"),
        (8, bytes(9), "FP32", [2], "binary_size_mismatch"),
        (-8, bytes(8), "FP32", [2], "invalid_input"),
        (True, bytes(1), "BOOL", [1], "invalid_input"),
        ("8", bytes(8), "FP32", [2], "invalid_input"),
        (2, b"\1\2", "BOOL", [2], "value_out_of_range"),
        (8, bytes(8), "FP32", [2**62, 2**62], "too_many_elements"),
        (6, b"\5\0\0\0ab", "BYTES", [1], "bad_bytes_length"),
        (6, b"\xff\xff\xff\xffab", "BYTES", [1], "bad_bytes_length"),
        (6, b"\2\0\0\0ab", "BYTES", [2], "shape_mismatch"),
        (12, b"\2\0\0\0ab\2\0\0\0ab", "BYTES", [1], "shape_mismatch"),
        (4, bytes(4), "BYTES", [2_000_000_000], "shape_mismatch"),
        (8, b"\2\0\0\0ab\0\0", "BYTES", [2], "bad_bytes_length"),
    ],
)
def test_a_mistake_in_binary_data_is_refused(
    size: object, tail: bytes, datatype: str, shape: list[int], reason: str
) -> None:
    body, header = _binary(size, tail, datatype, shape)
    with pytest.raises(InvalidInput) as refused:
        oip_json.decode(body, header)
    assert refused.value.reason == reason


@pytest.mark.parametrize(
    "rest",
    [
        b',"id":"a:b"',
        b',"parameters":{"url":"http://x:1/","timeout":5}',
        b',"outputs":[{"name":"a:b"},{"name":"c","parameters":{"binary_data":false}}]',
    ],
)
def test_colons_in_text_are_not_taken_for_doubled_keys(rest: bytes) -> None:
    assert oip_json.decode(_raw(GOOD, rest)).inputs["x"].array.tolist() == [[1.0, 2.0]]
    text = _data("BYTES", b'["a:b","\\"shape\\":", "\\u0000"]', b"[3]")
    assert oip_json.decode(text).inputs["x"].array.tolist() == [b"a:b", b'"shape":', b"\0"]


def test_the_largest_values_of_a_type_pass() -> None:
    assert oip_json.decode(_data("FP16", b"[65504,-65504]", b"[2]")).inputs["x"].array.tolist() == [65504.0, -65504.0]
    assert oip_json.decode(_data("FP32", b"[3.4028235e38]")).inputs["x"].array[0] < float("inf")
    assert oip_json.decode(_data("UINT64", b"[18446744073709551615]")).inputs["x"].array[0] == 2**64 - 1
    assert oip_json.decode(_data("INT64", b"[-9223372036854775808]")).inputs["x"].array[0] == -(2**63)


def test_a_timeout_beyond_every_limit_is_clipped() -> None:
    assert oip_json.decode(_raw(GOOD, b',"parameters":{"timeout":1000000000000000000}')).timeout_s == 86_400
