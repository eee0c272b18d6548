"""What is fuzzed: each codec as a function of bytes, and valid bodies to begin with.

A codec may refuse what it gets with an MsmError that is the caller's fault, and nothing else; what it takes must be
tensors that its signature's check can judge and that can be told again.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from msm.kit.errors import Internal, InvalidInput, MsmError, Unsupported
from msm.runtime.protocols import (
    arrow_body,
    csv_body,
    image_body,
    oip_grpc,
    oip_json,
    raw_body,
    rest_v1,
    tensors,
)
from msm.runtime.protocols import oip_pb2 as pb
from msm.runtime.protocols.call import InferenceCall, Sent
from msm.runtime.signature import Signature, Tensor
from msm.runtime.validate import check_inputs

TABLE = Signature((Tensor("x", "FP32", (-1, 4)),))
MIXED = Signature((Tensor("n", "INT64", (-1, 1)), Tensor("s", "BYTES", (-1,)), Tensor("b", "BOOL", (-1,), True)))
PICTURE = Signature((Tensor("x", "UINT8", (1, -1, -1, 3)),))
SIGNATURES = (TABLE, MIXED)


@dataclass(frozen=True)
class Codec:
    """A codec: `read` takes a body, `seeds` are valid ones. `unbounded`: its memory follows another limit."""

    read: Callable[[bytes], None]
    seeds: tuple[bytes, ...]
    unbounded: bool = False


def _judge(call: InferenceCall) -> None:
    """The tensors that came are sound: they can be judged, joined and written."""
    for sent in call.inputs.values():
        assert sent.array.dtype == tensors.DTYPES[sent.datatype]
        if sent.array.size < 10_000:  # what writing takes is not the reader's
            tensors.write_binary(sent.array)


def _checked(signature: Signature, inputs: dict[str, Sent]) -> None:
    _judge(InferenceCall("", inputs))
    check_inputs(signature, frozenset({"FP64", "FP32"}), inputs)


def read_json(data: bytes) -> None:
    _judge(oip_json.decode(data))


def read_large_json(data: bytes) -> None:
    """As `read_json`, with so much white space in front that the large way is taken: both ways must agree."""
    told: list[object] = []
    for body in (data, data.replace(b'"data"', b'"data"' + b" " * 5000, 1)):
        try:
            call = oip_json.decode(body)
            told.append([(name, sent.datatype, sent.array.tolist()) for name, sent in call.inputs.items()])
        except MsmError as error:
            told.append(error.reason)
    if b'"data"' in data and len(data) < 4000 and b'\\"data' not in data:
        assert repr(told[0]) == repr(told[1]) or data.count(b'"data"') > 1 or isinstance(told[0], str), told


def read_binary(data: bytes) -> None:
    _judge(oip_json.decode(data[1:], data[0] if data else 0))


def read_grpc(data: bytes) -> None:
    message, raws = oip_grpc.parse_infer(oip_grpc.frame(data))
    _judge(oip_grpc.decode(message, raws))
    found = oip_grpc._split_raw(memoryview(data))  # the way of large messages takes what the plain one takes
    if found is not None:
        rest = pb.ModelInferRequest.FromString(found[0])
        assert [bytes(raw) for raw in found[1]] == list(message.raw_input_contents)
        assert rest.inputs == message.inputs


def read_frame(data: bytes) -> None:
    oip_grpc.parse(pb.ModelInferRequest, data)


def read_v1(data: bytes) -> None:
    for signature in SIGNATURES:
        try:
            _checked(signature, rest_v1.decode(data, signature).inputs)
        except (InvalidInput, Unsupported):
            continue


def read_csv(data: bytes) -> None:
    for signature in SIGNATURES:
        try:
            _checked(signature, csv_body.decode(data, signature))
        except (InvalidInput, Unsupported):
            continue


def read_raw(data: bytes) -> None:
    for signature in SIGNATURES:
        try:
            _checked(signature, raw_body.decode(data, signature))
        except (InvalidInput, Unsupported):
            continue


def read_arrow(data: bytes) -> None:
    for signature in SIGNATURES:
        try:
            _checked(signature, arrow_body.decode(data, signature))
        except (InvalidInput, Unsupported):
            continue


def read_image(data: bytes) -> None:
    _checked(PICTURE, image_body.decode(data, PICTURE))


REFUSALS = (InvalidInput, Unsupported)
FRAME_REFUSALS = (InvalidInput, Unsupported, Internal)  # gRPC asks for INTERNAL when a message cannot be read


def _json(datatype: str, shape: list[int], data: object, **more: object) -> bytes:
    item = {"name": "x", "datatype": datatype, "shape": shape, "data": data}
    return json.dumps({"inputs": [item], **more}).encode()


def _message() -> bytes:
    message = pb.ModelInferRequest(model_name="m", id="1")
    message.inputs.add(name="x", datatype="FP32", shape=[1, 2]).contents.fp32_contents.extend([1, 2])
    message.inputs.add(name="i", datatype="INT8", shape=[300]).contents.int_contents.extend(range(-100, 200))
    return message.SerializeToString()


def _raw_message() -> bytes:
    message = pb.ModelInferRequest(model_name="m", raw_input_contents=[bytes(8), b"\1\0\0\0a"])
    message.inputs.add(name="x", datatype="FP32", shape=[1, 2])
    message.inputs.add(name="s", datatype="BYTES", shape=[1])
    return message.SerializeToString()


def _picture(form: str) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).save(out, form)
    return out.getvalue()


_FLOATS = _json("FP32", [2, 2], [[1.5, -2e3], [0, 1]], id="a", parameters={"timeout": 5}, outputs=[{"name": "y"}])
_BINARY = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[2],"parameters":{"binary_data_size":8}}]}'
_STRINGS = b'{"inputs":[{"name":"x","datatype":"BYTES","shape":[1],"parameters":{"binary_data_size":5}}]}'
_ROWS = b'{"instances":[{"n":[1],"s":"a:b"},{"n":[2],"s":{"b64":"/w=="}}]}'
_SHORT = np.arange(4, dtype=np.float32)

CODECS: dict[str, Codec] = {
    "json": Codec(read_json, (_FLOATS, _json("BYTES", [1], ["ü\0:"]), _json("UINT64", [1], [2**64 - 1]))),
    "large_json": Codec(read_large_json, (_FLOATS, _json("FP16", [400], [0.5] * 400)), unbounded=True),
    "binary": Codec(
        read_binary,
        (bytes([len(_BINARY)]) + _BINARY + bytes(8), bytes([len(_STRINGS)]) + _STRINGS + b"\1\0\0\0a"),
    ),
    "grpc": Codec(read_grpc, (_message(), _raw_message())),
    "frame": Codec(read_frame, (oip_grpc.frame(_message()),)),
    "v1": Codec(read_v1, (b'{"instances":[[1,2,3,4]]}', _ROWS, b'{"inputs":{"n":[[1]],"s":["a"],"b":[true]}}')),
    "csv": Codec(read_csv, (b"a,b,c,d\n1,2.5,-3,4e0\n", b'n,s,b\r\n1,"a,""b""",true\r\n')),
    "raw": Codec(read_raw, (bytes(16), bytes(7))),
    "arrow": Codec(
        read_arrow,
        (
            arrow_body.encode({"x": ("FP32", _SHORT.reshape(1, 4))}),
            arrow_body.encode({"n": ("INT64", np.ones(1, np.int64)), "s": ("BYTES", tensors.objects([b"a"]))}),
        ),
        unbounded=True,  # of NumPy's memory; Arrow's own is watched in the test of bombs
    ),
    "image": Codec(read_image, tuple(_picture(form) for form in ("PNG", "JPEG", "BMP", "GIF", "WEBP")), unbounded=True),
}
