"""The three forms of a tensor carry the same values, and every codec gives back what it was given."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import descriptor_pb2
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from msm.http.status import percent_encode
from msm.kit.errors import DeadlineExceeded, Internal, InvalidInput, Unsupported
from msm.runtime.protocols import grpc_contents, oip_grpc, oip_json, tensors
from msm.runtime.protocols import oip_pb2 as pb
from msm.runtime.protocols.tensors import Array

NUMERIC = [name for name in tensors.DTYPES if name not in ("BF16", "BYTES")]
SHAPES = npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)


@st.composite
def numeric(draw: st.DrawFn, *, finite: bool = True) -> tuple[str, Array]:
    datatype = draw(st.sampled_from(NUMERIC))
    dtype = tensors.DTYPES[datatype]
    elements = None
    if dtype.kind == "f":
        elements = npst.from_dtype(dtype, allow_nan=not finite, allow_infinity=not finite)
    return datatype, draw(npst.arrays(dtype, SHAPES, elements=elements))


@st.composite
def text(draw: st.DrawFn) -> tuple[str, Array]:
    shape = draw(SHAPES)
    count = math.prod(shape)
    values = draw(st.lists(st.text(max_size=5), min_size=count, max_size=count))
    return "BYTES", tensors.objects([value.encode() for value in values]).reshape(shape)


def same(left: Array, right: Array) -> None:
    assert left.shape == right.shape
    assert left.dtype == right.dtype
    if left.dtype == object:
        assert left.tolist() == right.tolist()
    else:
        assert left.tobytes() == right.tobytes()


def by_json(datatype: str, array: Array, *, nested: bool = False) -> Array:
    values = array if array.dtype != object else np.vectorize(lambda b: b.decode(), otypes=[object])(array)
    data = values.tolist() if nested else values.reshape(-1).tolist()
    item = {"name": "x", "datatype": datatype, "shape": list(array.shape), "data": data}
    return oip_json.decode(json.dumps({"inputs": [item]}).encode()).inputs["x"].array


@given(st.one_of(numeric(), text()))
def test_json_gives_the_values_that_went_in(case: tuple[str, Array]) -> None:
    datatype, array = case
    same(by_json(datatype, array), array)


@given(st.one_of(numeric(), text()))
def test_nested_json_is_flat_json(case: tuple[str, Array]) -> None:
    datatype, array = case
    if array.ndim and array.size:
        same(by_json(datatype, array, nested=True), array)


@given(st.one_of(numeric(finite=False), text()))
def test_binary_gives_the_values_that_went_in(case: tuple[str, Array]) -> None:
    datatype, array = case
    same(tensors.read_binary("x", datatype, list(array.shape), tensors.write_binary(array)), array)


@given(st.one_of(numeric(), text()))
def test_protobuf_contents_are_json_and_binary(case: tuple[str, Array]) -> None:
    datatype, array = case
    typed = pb.ModelInferRequest(id="i")
    item = typed.inputs.add(name="x", datatype=datatype, shape=array.shape)
    raw = pb.ModelInferRequest.FromString(typed.SerializeToString())
    raw.raw_input_contents.append(tensors.write_binary(array))
    same(oip_grpc.decode(raw).inputs["x"].array, array)
    if datatype == "FP16":
        return
    getattr(item.contents, grpc_contents.CONTENTS[datatype]).extend(array.reshape(-1).tolist())
    same(oip_grpc.decode(typed).inputs["x"].array, array)


@given(numeric(finite=False), st.text(max_size=20))
def test_a_binary_answer_is_read_back(case: tuple[str, Array], ident: str) -> None:
    datatype, array = case
    body, size = oip_json.encode(oip_json.answer_prefix("m", "v"), ident, {"y": (datatype, array)}, {"y": True})
    answer = json.loads(body[:size])
    assert (answer["model_name"], answer.get("id", "")) == ("m", ident)
    out = answer["outputs"][0]
    assert size is not None
    assert out["parameters"]["binary_data_size"] == len(body) - size
    same(tensors.read_binary("y", out["datatype"], out["shape"], body[size:]), array)


@given(st.one_of(numeric(finite=False), text()))
def test_a_json_answer_is_valid_json_with_null_for_what_json_lacks(case: tuple[str, Array]) -> None:
    datatype, array = case
    body, size = oip_json.encode(oip_json.answer_prefix("m", "v"), "", {"y": (datatype, array)}, None)
    assert size is None
    out = json.loads(body, parse_constant=lambda token: pytest.fail(token))["outputs"][0]
    assert out["shape"] == list(array.shape)
    for got, want in zip(out["data"], array.reshape(-1).tolist(), strict=True):
        if isinstance(want, float):
            finite = math.isfinite(want)
            assert (got is None) != finite
            if finite:
                assert array.dtype.type(got) == array.dtype.type(want)
        else:
            assert got == (want.decode() if isinstance(want, bytes) else want)


@given(st.lists(st.one_of(numeric(finite=False), text()), min_size=1, max_size=3), st.text(max_size=200))
def test_a_grpc_answer_is_read_back_by_protobuf(cases: list[tuple[str, Array]], ident: str) -> None:
    outputs = {f"y{index}": case for index, case in enumerate(cases)}
    message = pb.ModelInferResponse.FromString(oip_grpc.encode("m", "v", ident, outputs))
    assert (message.model_name, message.model_version, message.id) == ("m", "v", ident)
    for out, raw in zip(message.outputs, message.raw_output_contents, strict=True):
        same(tensors.read_binary(out.name, out.datatype, list(out.shape), raw), outputs[out.name][1])


def test_binary_tensors_are_views_of_the_body() -> None:
    values = np.arange(1000, dtype=np.float32)
    head = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1000],"parameters":{"binary_data_size":4000}}]}'
    array = oip_json.decode(head + values.tobytes(), len(head)).inputs["x"].array
    assert not array.flags.owndata
    np.testing.assert_array_equal(array, values)


def test_bf16_passes_as_its_bits_in_binary_form_only() -> None:
    array = tensors.read_binary("x", "BF16", [2], b"\x80\x3f\x00\x40")
    assert array.tolist() == [0x3F80, 0x4000]
    assert tensors.write_binary(array) == b"\x80\x3f\x00\x40"


@given(st.text(max_size=50))
def test_grpc_messages_survive_percent_encoding(message: str) -> None:
    encoded = percent_encode(message)
    assert all(0x20 <= byte <= 0x7E for byte in encoded)
    from urllib.parse import unquote_to_bytes

    assert unquote_to_bytes(encoded) == message.encode("utf-8", "replace")


@settings(max_examples=50)
@given(st.binary(max_size=300))
def test_frames_hold_one_message(message: bytes) -> None:
    assert oip_grpc.unframe(oip_grpc.frame(message)) == message
    with pytest.raises(Internal):
        oip_grpc.unframe(oip_grpc.frame(message) + b"x")


def test_broken_and_compressed_frames_are_told_apart() -> None:
    with pytest.raises(Unsupported):
        oip_grpc.unframe(b"\1\0\0\0\0")
    for body in (b"", b"\0\0\0", b"\2\0\0\0\0", b"\0\0\0\0\5x"):
        with pytest.raises(Internal):
            oip_grpc.unframe(body)
    with pytest.raises(Internal, match="ModelInferRequest"):
        oip_grpc.parse(pb.ModelInferRequest, oip_grpc.frame(b"\xff\xff"))


@pytest.mark.parametrize(("text", "seconds"), [(b"1S", 1), (b"250m", 0.25), (b"2M", 120), (b"99999999H", 86_400)])
def test_grpc_timeouts(text: bytes, seconds: float) -> None:
    assert oip_grpc.timeout_s(text) == pytest.approx(seconds)


def test_bad_and_past_grpc_timeouts() -> None:
    with pytest.raises(DeadlineExceeded):
        oip_grpc.timeout_s(b"0n")
    for text in (b"", b"5", b"S", b"5x", b"-5S", b"123456789S"):
        with pytest.raises(Internal):
            oip_grpc.timeout_s(text)


def _message(datatype: str = "FP32", shape: tuple[int, ...] = (2,), **contents: object) -> pb.ModelInferRequest:
    message = pb.ModelInferRequest()
    item = message.inputs.add(name="x", datatype=datatype, shape=shape)
    for name, values in contents.items():
        getattr(item.contents, name).extend(values)
    return message


def _with(message: pb.ModelInferRequest, **members: object) -> pb.ModelInferRequest:
    message.MergeFrom(pb.ModelInferRequest(**members))
    return message


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (pb.ModelInferRequest(), "no_inputs"),
        (_with(_message(), raw_input_contents=[bytes(8), bytes(8)]), "raw_count_mismatch"),
        (_with(_message(fp32_contents=[1, 2]), raw_input_contents=[bytes(8)]), "ambiguous_data"),
        (_with(_message(), raw_input_contents=[bytes(4)]), "shape_mismatch"),
        (_message("INT64", fp32_contents=[1, 2]), "wrong_contents"),
        (_message("INT8", int_contents=[300, 1]), "value_out_of_range"),
        (_message("UINT16", uint_contents=[70_000, 1]), "value_out_of_range"),
        (_message("FP16", fp32_contents=[1, 2]), "binary_only"),
        (_message("BF16", fp32_contents=[1, 2]), "binary_only"),
        (_message("FLOAT", fp32_contents=[1, 2]), "unknown_datatype"),
        (_message(fp32_contents=[1]), "shape_mismatch"),
        (_message(shape=(-1, 2), fp32_contents=[1, 2]), "negative_dimension"),
        (_message(shape=(2**40, 2**40), fp32_contents=[1]), "too_many_elements"),
        (_with(_message(fp32_contents=[1, 2]), inputs=_message(fp32_contents=[1, 2]).inputs), "duplicate_input"),
        (_with(_message(fp32_contents=[1, 2]), id="a\nb"), "invalid_id"),
        (
            _with(_message(fp32_contents=[1, 2]), parameters={"timeout": pb.InferParameter(string_param="1")}),
            "invalid_parameter",
        ),
    ],
)
def test_a_mistake_in_a_grpc_request_is_refused(message: pb.ModelInferRequest, reason: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        oip_grpc.decode(message)
    assert refused.value.reason == reason


def test_the_generated_module_is_up_to_date_with_the_proto(tmp_path: Path) -> None:
    source = Path(oip_json.__file__).parents[3]
    out = tmp_path / "oip.bin"
    subprocess.run(
        [
            sys.executable, "-m", "grpc_tools.protoc", f"-I{source}", f"--descriptor_set_out={out}",
            str(source / "msm/runtime/protocols/oip.proto"),
        ],
        check=True,
    )  # fmt: skip
    fresh = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file[0]
    committed = descriptor_pb2.FileDescriptorProto.FromString(pb.DESCRIPTOR.serialized_pb)
    assert fresh.package == committed.package
    assert _without_json_names(fresh.message_type) == _without_json_names(committed.message_type)


def _without_json_names(messages: Iterable[descriptor_pb2.DescriptorProto]) -> list[str]:
    return [re.sub(r" *json_name: .*\n", "", str(message)) for message in messages]


def test_the_messages_are_those_of_other_clients() -> None:
    from tritonclient.grpc import service_pb2 as other

    for name in ("ModelInferRequest", "ModelInferResponse", "ModelMetadataResponse", "InferParameter"):
        theirs = {
            (field.number, field.name, field.type) for field in other.DESCRIPTOR.message_types_by_name[name].fields
        }
        ours = {(field.number, field.name, field.type) for field in pb.DESCRIPTOR.message_types_by_name[name].fields}
        assert ours <= theirs
