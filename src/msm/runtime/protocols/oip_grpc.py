"""Open Inference Protocol v2 over gRPC: message framing, statuses, and ModelInfer as named tensors. Pure.

A gRPC call reaches the worker as an HTTP/1.1 request with one length-prefixed message as its body; the answer is
one such message in chunks, with the status in the trailers. A call that failed is answered by headers alone
("Trailers-Only" in the gRPC over HTTP/2 specification).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, TypeVar, cast

from google.protobuf.message import DecodeError, Message

from msm.kit.errors import DeadlineExceeded, Internal, InvalidInput, Unsupported
from msm.runtime.protocols import call, grpc_contents, tensors
from msm.runtime.protocols import oip_pb2 as pb
from msm.runtime.protocols.call import InferenceCall, Sent, WantedOutput
from msm.runtime.protocols.tensors import Array

SERVICE: Final = "inference.GRPCInferenceService"
# Tags of length-delimited fields of ModelInferResponse.
_ID: Final = bytes((pb.ModelInferResponse.ID_FIELD_NUMBER << 3 | 2,))
_RAW: Final = bytes((pb.ModelInferResponse.RAW_OUTPUT_CONTENTS_FIELD_NUMBER << 3 | 2,))
_RAW_INPUT: Final = pb.ModelInferRequest.RAW_INPUT_CONTENTS_FIELD_NUMBER << 3 | 2
_LARGE: Final = 64 * 1024
_LEAST_S: Final = 1e-6  # no call is answered in less
_UNITS_S: Final = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
M = TypeVar("M", bound=Message)


def unframe(body: bytes) -> bytes:
    """The message in a body of exactly one frame. Raises Unsupported if it is compressed, Internal if it is broken."""
    return bytes(unframe_view(body))


def unframe_view(body: bytes) -> memoryview:
    """As `unframe`, without a copy."""
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
    return memoryview(body)[5:]


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


def parse_infer(body: bytes) -> tuple[pb.ModelInferRequest, Sequence[bytes | memoryview]]:
    """A framed inference request, and its raw contents: as views of `body` when they are large."""
    if len(body) > _LARGE:
        found = _split_raw(unframe_view(body))
        if found is not None:
            try:
                return pb.ModelInferRequest.FromString(found[0]), found[1]
            except DecodeError:
                pass  # below it is refused as it came
    message = parse(pb.ModelInferRequest, body)
    return message, message.raw_input_contents


def _split_raw(message: memoryview) -> tuple[bytes, list[memoryview]] | None:
    """The raw contents of a serialised request, and the rest of it. None for what is too odd to be taken apart.

    Fields of one message may come in any order, and a message without some of them is one too (protobuf encoding).
    """
    rest: list[memoryview] = []
    raws: list[memoryview] = []
    at, size = 0, len(message)
    while at < size:
        tag = message[at]
        if tag & 7 != 2 or tag & 0x80 or len(rest) + len(raws) > call.MAX_TENSORS:  # all fields are length-delimited
            return None
        length, start = _varint(message, at + 1)
        end = start + length
        if start == 0 or end > size:
            return None
        if tag == _RAW_INPUT:
            raws.append(message[start:end])
        else:
            rest.append(message[at:end])
        at = end
    return b"".join(rest), raws


def _varint(data: memoryview | bytes, at: int) -> tuple[int, int]:
    """A number of up to 35 bits and where it ends; (0, 0) when there is none."""
    value = 0
    for place, byte in enumerate(data[at : at + 5]):
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return value, at + place + 1
    return 0, 0


def decode(message: pb.ModelInferRequest, raws: Sequence[bytes | memoryview] | None = None) -> InferenceCall:
    """An inference request, with its raw contents if they were split off. Raises InvalidInput.

    Tensors of raw contents are views of these.
    """
    items = message.inputs
    if not items:
        raise InvalidInput("inputs is empty, at least one is needed", reason="no_inputs")
    call.check_count("inputs", len(items))
    if raws is None:
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
        inputs[name] = Sent(item.datatype, _raw(item, raws[index]) if raws else grpc_contents.read(item))
    if message.id:
        call.check_id(message.id)
    timeout, priority = None, call.DEFAULT_PRIORITY
    if message.parameters:
        parameters = _parameters(message.parameters)
        timeout, priority = call.timeout_of(parameters), call.priority_of(parameters)
    outputs = _outputs(message.outputs) if message.outputs else None
    return InferenceCall(message.id, inputs, outputs, timeout, binary=True, priority=priority)


def _raw(item: pb.ModelInferRequest.InferInputTensor, raw: bytes | memoryview) -> Array:
    if item.HasField("contents") and item.contents.ListFields():
        raise InvalidInput(f"input {item.name!r} has both contents and raw_input_contents", reason="ambiguous_data")
    return tensors.read_binary(item.name, item.datatype, list(item.shape), raw)


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
    """A ModelInferResponse with raw contents, as `encode_parts`, in one piece."""
    return b"".join(encode_parts(model, version, call_id, outputs))


def encode_parts(
    model: str, version: str, call_id: str, outputs: Mapping[str, tuple[str, Array]]
) -> list[bytes | memoryview]:
    """A ModelInferResponse with raw contents, in pieces. Arrays must be contiguous; large ones are not copied.

    Two serialised messages one after the other are one message with the fields of both (protobuf encoding,
    "Last One Wins"), so that all but the id and the values is made once for each shape.
    """
    shape = tuple([(name, datatype, array.shape) for name, (datatype, array) in outputs.items()])
    parts: list[bytes | memoryview] = [_response_head(model, version, shape)]
    if call_id:
        parts += _field(_ID, call_id.encode())
    for _, array in outputs.values():
        parts += _field(_RAW, tensors.wire_view(array))
    return parts


def field(tag: bytes, value: bytes) -> bytes:
    """A length-delimited protobuf field."""
    return b"".join(_field(tag, value))


def _field(tag: bytes, value: bytes | memoryview) -> tuple[bytes, bytes | memoryview]:
    """A length-delimited protobuf field: what stands before the value, and the value."""
    left = len(value)
    if left < 0x80:
        return b"%b%c" % (tag, left), value
    size = bytearray()
    while left >= 0x80:
        size.append(left & 0x7F | 0x80)
        left >>= 7
    size.append(left)
    return b"%b%b" % (tag, bytes(size)), value


@lru_cache(maxsize=4096)
def _response_head(model: str, version: str, outputs: tuple[tuple[str, str, tuple[int, ...]], ...]) -> bytes:
    message = pb.ModelInferResponse(model_name=model, model_version=version)
    for name, datatype, shape in outputs:
        message.outputs.add(name=name, datatype=datatype, shape=shape)
    head: bytes = message.SerializeToString()
    return head
