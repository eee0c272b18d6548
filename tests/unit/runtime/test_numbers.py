"""The quick ways for large tensors take what the strict ones take, and nothing else."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from msm.kit.errors import InvalidInput
from msm.runtime.protocols import grpc_contents, numbers, oip_grpc, oip_json, tensors
from msm.runtime.protocols import oip_pb2 as pb
from msm.runtime.signature import Signature, Tensor
from msm.runtime.validate import check_outputs
from tests.unit.runtime.test_codecs import NUMERIC, numeric, same


@given(numeric())
def test_lists_of_numbers_are_read_in_their_shape(case):
    datatype, array = case
    if array.size and array.ndim:
        flat = json.dumps(array.ravel().tolist()).encode()
        same(numbers.flat(flat, 1, len(flat) - 1, datatype, array.size), array.ravel())
        same(numbers.nested(json.dumps(array.tolist()).encode(), datatype), array)


def _large(datatype: str) -> tensors.Array:
    random = np.random.default_rng(1)
    dtype = tensors.DTYPES[datatype]
    if dtype.kind == "f":
        return (random.standard_normal((40, 5, 30)) * 100).astype(dtype)
    low, high = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    kind = np.int64 if dtype.kind == "b" else dtype
    return random.integers(low, high, (40, 5, 30), kind, endpoint=True).astype(dtype)


@pytest.mark.parametrize("datatype", NUMERIC)
@pytest.mark.parametrize("nested", [True, False])
def test_a_large_tensor_is_read_as_a_small_one(datatype, nested):
    array = _large(datatype)
    data = array.tolist() if nested else array.ravel().tolist()
    item = {"name": "x", "datatype": datatype, "shape": list(array.shape), "data": data}
    small = {"name": "s", "datatype": "BYTES", "shape": [1], "data": ['"data":[1]:']}
    for separators in ((",", ":"), (", ", ": ")):
        body = json.dumps({"inputs": [item, small], "id": "1"}, separators=separators).encode()
        call = oip_json.decode(body)
        same(call.inputs["x"].array, array)
        assert call.inputs["s"].array.tolist() == [b'"data":[1]:']


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda b: b.replace(b"[0.5,", b"[NaN,", 1), "invalid_json"),
        (lambda b: b.replace(b"[0.5,", b"[1e39,", 1), "value_out_of_range"),
        (lambda b: b.replace(b"[0.5,", b"[true,", 1), "invalid_request"),
        (lambda b: b.replace(b"[0.5,", b"[0.5,0.5,", 1), "shape_mismatch"),
        (lambda b: b.replace(b"0.5]", b"0.5,]", 1), "invalid_json"),
        (lambda b: b.replace(b'"shape"', b'"data":[1],"shape"', 1), "duplicate_key"),
        (lambda b: b.replace(b"{", b'{"parameters":{"data":[%b1]},' % (b"1," * 2000), 1), "invalid_parameter"),
        (lambda b: b.replace(b",0.5,", b",[0.5],", 1), "invalid_request"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_large_tensor_is_told_as_in_a_small_one(change, reason):
    item = {"name": "x", "datatype": "FP32", "shape": [3000], "data": [0.5] * 3000}
    body = json.dumps({"inputs": [item]}, separators=(",", ":")).encode()
    with pytest.raises(InvalidInput) as refused:
        oip_json.decode(change(body))
    assert refused.value.reason == reason


@pytest.mark.parametrize("datatype", [name for name in NUMERIC if name != "FP16"])
def test_large_typed_contents_are_read_at_once(datatype):
    array = _large(datatype)
    message = pb.ModelInferRequest()
    item = message.inputs.add(name="x", datatype=datatype, shape=array.shape)
    getattr(item.contents, grpc_contents.CONTENTS[datatype]).extend(array.ravel().tolist())
    assert grpc_contents.packed(item.contents, datatype, array.size) is not None
    same(oip_grpc.decode(message).inputs["x"].array, array)


def test_large_raw_contents_are_views_of_the_body():
    array = np.arange(50_000, dtype=np.float32)
    message = pb.ModelInferRequest(model_name="m", raw_input_contents=[array.tobytes()])
    message.inputs.add(name="x", datatype="FP32", shape=array.shape)
    body = oip_grpc.frame(message.SerializeToString())
    found = oip_grpc.decode(*oip_grpc.parse_infer(body)).inputs["x"].array
    start = np.frombuffer(body, np.uint8).__array_interface__["data"][0]
    assert start < found.__array_interface__["data"][0] < start + len(body)
    same(found, array)


@given(st.lists(st.integers(0, 2**16 - 1), max_size=5))
def test_bf16_goes_out_in_binary_form_only(bits):
    signature = Signature(outputs=(Tensor("y", "BF16", (-1,)),))
    outputs = check_outputs(signature, {"y": np.array(bits, np.uint16)})
    body, size = oip_json.encode(oip_json.answer_prefix("m", "v"), "", outputs, {"y": True})
    assert body[size:] == np.array(bits, "<u2").tobytes()
    assert pb.ModelInferResponse.FromString(oip_grpc.encode("m", "v", "", outputs)).outputs[0].datatype == "BF16"
    with pytest.raises(InvalidInput, match="BF16"):
        oip_json.encode(oip_json.answer_prefix("m", "v"), "", outputs, None)
