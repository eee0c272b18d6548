"""Open Inference Protocol v2 over gRPC: message framing, statuses, and ModelInfer as named tensors. Pure.

A gRPC call reaches the worker as an HTTP/1.1 request with one length-prefixed message as its body; the answer is
one such message in chunks, with the status in the trailers. A call that failed is answered by headers alone
("Trailers-Only" in the gRPC over HTTP/2 specification).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final, TypeVar, cast

import numpy as np
from google.protobuf.message import DecodeError, Message

from msm.kit.errors import DeadlineExceeded, Internal, InvalidInput, Unsupported
from msm.runtime.protocols import call, tensors
from msm.runtime.protocols import oip_pb2 as pb
from msm.runtime.protocols.call import InferenceCall, Sent, WantedOutput
from msm.runtime.protocols.tensors import Array

SERVICE: Final = "inference.GRPCInferenceService"
CONTENTS: Final = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
# Tags of length-delimited fields of ModelInferResponse.
_ID: Final = bytes((pb.ModelInferResponse.ID_FIELD_NUMBER << 3 | 2,))
_RAW: Final = bytes((pb.ModelInferResponse.RAW_OUTPUT_CONTENTS_FIELD_NUMBER << 3 | 2,))
_LEAST_S: Final = 1e-6  # no call is answered in less
_UNITS_S: Final = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
M = TypeVar("M", bound=Message)


def unframe(body: bytes) -> bytes:
    """The message in a body of exactly one frame. Raises Unsupported if it is compressed, Internal if it is broken."""
    if len(body) < 5:
        raise Internal(f"the body has {len(body)} bytes, a gRPC frame has at least 5", reason="invalid_frame")
    if body[0] == 1:
        raise Unsupported("compressed messages are not offered: send grpc-encoding identity", reason="compressed")
    size = int.from_bytes(body[1:5], "big")
    if body[0] or size != len(body) - 5:
        raise Internal(
            f"the gRPC frame says {size} bytes, but {len(body) - 5} came, for a call that takes one message",
            reason="invalid_frame",
        )
    return body[5:]


def frame(message: bytes) -> bytes:
    """A message as one frame, not compressed."""
    return b"\0%b%b" % (len(message).to_bytes(4, "big"), message)


def parse(kind: type[M], body: bytes) -> M:
    """The message of `kind` in a framed body. Raises Internal, as gRPC asks for a message that cannot be read."""
    try:
        return cast("M", kind.FromString(unframe(body)))
    except DecodeError as error:
        raise Internal(f"the body is not a {kind.DESCRIPTOR.name} message", reason="invalid_message") from error


def timeout_s(text: bytes) -> float:
    """Seconds of a `grpc-timeout` header. Raises DeadlineExceeded for one that is over already."""
    digits, unit = text[:-1], text[-1:].decode("latin-1")
    if not digits.isdigit() or len(digits) > 8 or unit not in _UNITS_S:
        raise Internal("header grpc-timeout must be up to 8 digits and a unit of HMSmun", reason="invalid_timeout")
    seconds = int(digits) * _UNITS_S[unit]
    if seconds < _LEAST_S:
        raise DeadlineExceeded("the deadline of the call was over when it came")
    return min(seconds, call.MAX_TIMEOUT_S)


def decode(message: pb.ModelInferRequest) -> InferenceCall:
    """An inference request. Raises InvalidInput. Tensors of raw contents are views of the message's bytes."""
    items = message.inputs
    if not items:
        raise InvalidInput("inputs is empty, at least one is needed", reason="no_inputs")
    call.check_count("inputs", len(items))
    raws = message.raw_input_contents
    if raws and len(raws) != len(items):
        raise InvalidInput(
            f"{len(items)} inputs, but {len(raws)} raw_input_contents: there must be one each",
            reason="raw_count_mismatch",
        )
    inputs: dict[str, Sent] = {}
    for index, item in enumerate(items):
        name = item.name
        if name in inputs:
            raise call.duplicate("input", name)
        call.check_name(name)
        inputs[name] = Sent(item.datatype, _raw(item, raws[index]) if raws else _typed(item))
    if message.id:
        call.check_id(message.id)
    timeout = call.timeout_of(_parameters(message.parameters)) if message.parameters else None
    outputs = _outputs(message.outputs) if message.outputs else None
    return InferenceCall(message.id, inputs, outputs, timeout, binary=True)


def _raw(item: pb.ModelInferRequest.InferInputTensor, raw: bytes) -> Array:
    if item.HasField("contents") and item.contents.ListFields():
        raise InvalidInput(f"input {item.name!r} has both contents and raw_input_contents", reason="ambiguous_data")
    return tensors.read_binary(item.name, item.datatype, list(item.shape), raw)


def _typed(item: pb.ModelInferRequest.InferInputTensor) -> Array:
    name, datatype, shape = item.name, item.datatype, list(item.shape)
    dtype = tensors.dtype_of(datatype, name)
    count = tensors.element_count(shape, name)
    field = CONTENTS.get(datatype)
    if field is None:
        raise InvalidInput(f"input {name!r}: {datatype} goes into raw_input_contents only", reason="binary_only")
    for other, _ in item.contents.ListFields():
        if other.name != field:
            raise InvalidInput(
                f"input {name!r} of {datatype} must be in {field}, but {other.name} came", reason="wrong_contents"
            )
    values = getattr(item.contents, field)
    if len(values) != count:
        raise tensors.count_mismatch(name, shape, count, len(values))
    return _from_values(name, datatype, dtype, values).reshape(shape)


def _from_values(name: str, datatype: str, dtype: np.dtype[Any], values: Any) -> Array:
    if datatype == "BYTES":
        return tensors.objects(list(values))
    if datatype not in ("INT8", "INT16", "UINT8", "UINT16"):
        return np.fromiter(values, dtype, len(values))
    wide = np.fromiter(values, np.int64, len(values))
    limits = np.iinfo(dtype)
    if wide.size and (wide.min() < limits.min or wide.max() > limits.max):
        raise InvalidInput(f"input {name!r} has a value that {datatype} cannot hold", reason="value_out_of_range")
    return wide.astype(dtype)


def _parameters(items: Mapping[str, pb.InferParameter]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, parameter in items.items():
        choice = parameter.WhichOneof("parameter_choice")
        found[key] = None if choice is None else getattr(parameter, choice)
    return found


def _outputs(items: Any) -> tuple[WantedOutput, ...]:
    call.check_count("outputs", len(items))
    wanted: dict[str, WantedOutput] = {}
    for item in items:
        if item.name in wanted:
            raise call.duplicate("output", item.name)
        if "classification" in item.parameters:
            raise InvalidInput(f"output {item.name!r}: classification is not offered", reason="invalid_parameter")
        wanted[item.name] = WantedOutput(item.name, True)
    return tuple(wanted.values())


def encode(model: str, version: str, call_id: str, outputs: Mapping[str, tuple[str, Array]]) -> bytes:
    """A ModelInferResponse with raw contents.

    Two serialised messages one after the other are one message with the fields of both (protobuf encoding,
    "Last One Wins"), so that all but the id and the values is made once for each shape.
    """
    shape = tuple([(name, datatype, array.shape) for name, (datatype, array) in outputs.items()])
    parts = [_response_head(model, version, shape)]
    if call_id:
        parts.append(field(_ID, call_id.encode()))
    parts += [field(_RAW, tensors.write_binary(array)) for _, array in outputs.values()]
    return b"".join(parts)


def field(tag: bytes, value: bytes) -> bytes:
    """A length-delimited protobuf field."""
    left = len(value)
    if left < 0x80:
        return b"%b%c%b" % (tag, left, value)
    size = bytearray()
    while left >= 0x80:
        size.append(left & 0x7F | 0x80)
        left >>= 7
    size.append(left)
    return b"%b%b%b" % (tag, bytes(size), value)


@lru_cache(maxsize=4096)
def _response_head(model: str, version: str, outputs: tuple[tuple[str, str, tuple[int, ...]], ...]) -> bytes:
    message = pb.ModelInferResponse(model_name=model, model_version=version)
    for name, datatype, shape in outputs:
        message.outputs.add(name=name, datatype=datatype, shape=shape)
    head: bytes = message.SerializeToString()
    return head
