"""Open Inference Protocol v2 over REST: JSON, and the binary tensor extension in both directions. Pure.

Strict: an unknown or doubled key, a token that JSON does not have (NaN, Infinity), a number that the datatype cannot
hold, and data that contradicts its shape are errors of the caller.

Doubled keys. The decoder takes the last of two equal keys silently. Looking for them with a second parse would cost
more than the first one, so keys are counted instead: each key is followed by one colon outside of strings, so when the
body has exactly as many colons as the decoded request has keys, none was doubled. Colons in strings (a text tensor is
subtracted first) make the counts differ; only then a full, exact check runs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache, lru_cache
from typing import Annotated, Any, Final

import msgspec
import numpy as np
import orjson

from msm.kit.errors import InvalidInput
from msm.runtime.protocols import call, tensors
from msm.runtime.protocols.call import InferenceCall, Sent, WantedOutput
from msm.runtime.protocols.tensors import Array

MAX_DEPTH: Final = 100
_AROUND_DATA: Final = 3  # the request, its list of inputs, and the input
_Parameters = dict[str, Any]
_SCALARS: Final = (str, int, float, bool, type(None))


class _Input(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    name: str
    shape: list[int]
    datatype: str
    data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    parameters: _Parameters | msgspec.UnsetType = msgspec.UNSET


class _Output(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    name: str
    parameters: _Parameters | msgspec.UnsetType = msgspec.UNSET


class _Request(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    inputs: list[_Input]
    id: str | msgspec.UnsetType = msgspec.UNSET
    parameters: _Parameters | msgspec.UnsetType = msgspec.UNSET
    outputs: list[_Output] | msgspec.UnsetType = msgspec.UNSET


_REQUEST: Final = msgspec.json.Decoder(_Request)
# The bound of a float type is where rounding to it would give infinity, not its largest value.
_ELEMENTS: Final[dict[str, Any]] = {
    "BOOL": bool,
    "BYTES": str,
    "FP16": Annotated[float, msgspec.Meta(gt=-65520.0, lt=65520.0)],
    "FP32": Annotated[float, msgspec.Meta(gt=-3.4028235677973366e38, lt=3.4028235677973366e38)],
    "FP64": float,
    "UINT64": Annotated[int, msgspec.Meta(ge=0)],
    **{
        f"{kind}{bits}": Annotated[int, msgspec.Meta(ge=low, le=low + 2**bits - 1)]
        for bits in (8, 16, 32, 64)
        for kind, low in (("UINT", 0), ("INT", -(2 ** (bits - 1))))
        if (kind, bits) != ("UINT", 64)
    },
}
_OPENING: Final = re.compile(rb"(?:[ \t\r\n]*\[)+")
_OFFSET: Final = re.compile(r"\(byte (\d+)\)")
_NOT_NUMBERS: Final = re.compile(rb"-?(NaN|Infinity)")
_NAMES: Final = re.compile(rb'"name"\s*:\s*"([^"\\]{1,100})"')
_STRINGS: Final = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)


def decode(body: bytes, header_length: int | None = None) -> InferenceCall:
    """An inference request from a REST body. `header_length`: bytes of JSON before the binary data, if there are any.

    Raises InvalidInput. Tensors are views of `body` where they came as binary data.
    """
    head, tail = (body, None) if header_length is None else _split(body, header_length)
    request = _parse(head)
    if not request.inputs:
        raise InvalidInput("inputs is empty, at least one is needed", reason="no_inputs")
    call.check_count("inputs", len(request.inputs))
    inputs: dict[str, Sent] = {}
    taken = 0
    for item in request.inputs:
        if item.name in inputs:
            raise call.duplicate("input", item.name)
        call.check_name(item.name)
        array, taken = _tensor(item, head, tail, taken)
        inputs[item.name] = Sent(item.datatype, array)
    if tail is not None and taken != len(tail):
        raise InvalidInput(
            f"{len(tail)} bytes of binary data came, but the inputs' binary_data_size sum to {taken}",
            reason="binary_size_mismatch",
        )
    _refuse_doubled_keys(head, request)
    text = request.id if request.id is not msgspec.UNSET else ""
    if text:
        call.check_id(text)
    if request.parameters is msgspec.UNSET and request.outputs is msgspec.UNSET:
        return InferenceCall(text, inputs)
    parameters = request.parameters or {}
    outputs = _outputs(request.outputs) if request.outputs else None
    binary = _flag(parameters, "binary_data_output") or False
    return InferenceCall(text, inputs, outputs, call.timeout_of(parameters), binary)


def _split(body: bytes, header_length: int) -> tuple[bytes, memoryview]:
    if header_length > len(body):
        raise InvalidInput(
            f"Inference-Header-Content-Length is {header_length}, but the body has {len(body)} bytes",
            reason="invalid_header_length",
        )
    return body[:header_length], memoryview(body)[header_length:]


def _parse(body: bytes) -> _Request:
    if not body:
        raise InvalidInput("the body is empty, a JSON object is needed", reason="empty_body")
    try:
        return _REQUEST.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise _explain(error, body, 0) from error


def _explain(error: Exception, body: bytes | memoryview, offset: int) -> InvalidInput:
    """The caller's mistake behind a decoder's error; `offset` is where `body` begins in the request."""
    if isinstance(error, RecursionError) or depth(body) > MAX_DEPTH:
        return InvalidInput(f"the JSON is nested more than {MAX_DEPTH} deep", reason="json_too_deep")
    text = str(error)
    if isinstance(error, msgspec.ValidationError):
        reason = "expected_object" if text.startswith("Expected `object`") and "at `" not in text else "invalid_request"
        if "out of range" in text or text.startswith(("Expected `int` ", "Expected `float` ")):
            reason = "value_out_of_range"
        return InvalidInput(call.told(text.replace("`", "'")), reason=reason)
    if isinstance(error, UnicodeDecodeError):
        return InvalidInput(f"the JSON holds text that is not UTF-8: {error.reason}", reason="invalid_json")
    found = _OFFSET.search(text)
    # The decoder counts what follows the document from 1.
    place = len(body) if found is None else int(found[1]) - ("trailing" in text)
    text = text.partition(" (byte")[0].removeprefix("JSON is malformed: ")
    token = _NOT_NUMBERS.search(body, max(0, place - 1), place + len(b"Infinity"))
    if token is not None:
        text = f"{token[1].decode()} is not a number of JSON, send it as binary data"
    names = _NAMES.findall(body, 0, place)
    where = f" after {names[-1].decode('utf-8', 'replace')!r}" if names else ""
    return InvalidInput(f"invalid JSON{where}: {text} (byte {offset + place})", reason="invalid_json")


def depth(body: bytes | memoryview) -> int:
    """How deep arrays and objects nest in `body`, which need not be valid JSON. Uses no recursion."""
    bare = np.frombuffer(_STRINGS.sub(b'""', body), np.uint8)
    opened = (bare == ord("[")) | (bare == ord("{"))
    closed = (bare == ord("]")) | (bare == ord("}"))
    levels = np.cumsum(opened.astype(np.int32) - closed)
    return int(levels.max(initial=0))


def _tensor(item: _Input, head: bytes, tail: memoryview | None, taken: int) -> tuple[Array, int]:
    """The values of one input, and how much of the binary data is used up after it."""
    parameters = item.parameters
    size = None if parameters is msgspec.UNSET else parameters.get("binary_data_size")
    if size is None:
        if item.data is msgspec.UNSET:
            raise InvalidInput(f"input {item.name!r} has neither data nor binary_data_size", reason="missing_data")
        return _json_tensor(item, item.data, head), taken
    if type(size) is not int or size < 0:
        raise InvalidInput(f"input {item.name!r}: binary_data_size must be an integer of at least 0")
    if item.data is not msgspec.UNSET:
        raise InvalidInput(f"input {item.name!r} has both data and binary_data_size", reason="ambiguous_data")
    if tail is None:
        raise InvalidInput(
            f"input {item.name!r} has binary_data_size, but there is no header Inference-Header-Content-Length",
            reason="invalid_header_length",
        )
    end = taken + size
    if end > len(tail):
        raise InvalidInput(
            f"input {item.name!r}: binary_data_size {call.told(str(size))} is more than the {len(tail) - taken} bytes "
            "that are left",
            reason="binary_size_mismatch",
        )
    return tensors.read_binary(item.name, item.datatype, item.shape, tail[taken:end]), end


def _json_tensor(item: _Input, raw: msgspec.Raw, head: bytes) -> Array:
    name, datatype, shape = item.name, item.datatype, item.shape
    dtype = tensors.dtype_of(datatype, name)
    if datatype == "BF16":
        raise InvalidInput(f"input {name!r}: BF16 has no JSON form, send it as binary data", reason="binary_only")
    count = tensors.element_count(shape, name)
    view = memoryview(raw)
    levels = _levels(view)
    if levels not in (1, len(shape)):
        raise _too_nested(name, shape, levels)
    try:
        values = _decoder(datatype, levels).decode(view)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        problem = _explain(error, view, max(head.find(bytes(view[:4096])), 0))
        raise InvalidInput(f"input {name!r} of {datatype}: {problem.message}", reason=problem.reason) from error
    if levels == 1 and len(values) != count:
        raise tensors.count_mismatch(name, shape, count, len(values))
    if datatype == "BYTES":
        values = _encoded(values)
    try:
        array = np.array(values, dtype)
    except OverflowError as error:
        raise InvalidInput(
            f"input {name!r} has a value that {datatype} cannot hold", reason="value_out_of_range"
        ) from error
    except ValueError as error:
        raise InvalidInput(f"input {name!r}: the lists of data have different lengths", reason="ragged") from error
    if levels == 1:
        return array.reshape(shape)
    if array.shape != tuple(shape):
        raise InvalidInput(
            f"input {name!r} has shape {list(shape)}, but its data has shape {list(array.shape)}",
            reason="shape_mismatch",
        )
    return array


def _too_nested(name: str, shape: list[int], levels: int) -> InvalidInput:
    if levels + _AROUND_DATA > MAX_DEPTH:
        return InvalidInput(f"the JSON is nested more than {MAX_DEPTH} deep", reason="json_too_deep")
    return InvalidInput(
        f"input {name!r}: data must be a flat list or {len(shape)} lists deep as its shape says",
        reason="shape_mismatch",
    )


def _encoded(values: list[Any]) -> list[Any]:
    return [_encoded(value) if type(value) is list else value.encode() for value in values]


def _levels(view: memoryview) -> int:
    """How many lists `view` opens before its first element."""
    if len(view) > 1 and view[0] == 0x5B and view[1] > 0x20 and view[1] != 0x5B:
        return 1
    match = _OPENING.match(view)
    return 1 if match is None else match[0].count(b"[")


@cache
def _decoder(datatype: str, levels: int) -> msgspec.json.Decoder[Any]:
    kind: Any = _ELEMENTS[datatype]
    for _ in range(levels):
        kind = list[kind]
    return msgspec.json.Decoder(kind)


def _outputs(items: list[_Output]) -> tuple[WantedOutput, ...]:
    call.check_count("outputs", len(items))
    wanted: dict[str, WantedOutput] = {}
    for item in items:
        if item.name in wanted:
            raise call.duplicate("output", item.name)
        parameters = item.parameters or {}
        if "classification" in parameters:
            raise InvalidInput(f"output {item.name!r}: classification is not offered", reason="invalid_parameter")
        wanted[item.name] = WantedOutput(item.name, _flag(parameters, "binary_data"))
    return tuple(wanted.values())


def _flag(parameters: Mapping[str, Any], name: str) -> bool | None:
    value = parameters.get(name)
    if value is not None and type(value) is not bool:
        raise InvalidInput(f"parameter {name!r} must be true or false", reason="invalid_parameter")
    return value


def _refuse_doubled_keys(body: bytes, request: _Request) -> None:
    """Raises InvalidInput when an object of `body` has a key twice (see the head of this module)."""
    colons = body.count(b":")
    keys = 1 + (request.id is not msgspec.UNSET)
    if request.parameters is not msgspec.UNSET:
        keys += _keys(request.parameters)
    for item in request.inputs:
        keys += 3 + (item.data is not msgspec.UNSET)
        if item.parameters is not msgspec.UNSET:
            keys += _keys(item.parameters)
        if item.datatype == "BYTES" and item.data is not msgspec.UNSET:
            colons -= bytes(item.data).count(b":")
    if request.outputs is not msgspec.UNSET:
        keys += 1 + len(request.outputs)
        keys += sum(_keys(item.parameters) for item in request.outputs if item.parameters is not msgspec.UNSET)
    if colons == keys:
        return
    try:
        json.loads(body, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:  # what the strict decoder skipped can only be a doubled value
        raise InvalidInput("a key is there twice in one JSON object", reason="duplicate_key") from error


def _keys(parameters: _Parameters) -> int:
    """How many keys the parameters take in the body. Raises InvalidInput for one that is not a scalar."""
    for key, value in parameters.items():
        if not isinstance(value, _SCALARS):
            raise InvalidInput(
                f"parameter {key[:100]!r} must be a string, a number or a boolean", reason="invalid_parameter"
            )
    return 1 + len(parameters)


def _unique(pairs: list[tuple[str, Any]]) -> None:
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            raise InvalidInput(f"key {key[:100]!r} is there twice in one JSON object", reason="duplicate_key")
        seen.add(key)


def encode(
    prefix: bytes, call_id: str, outputs: Mapping[str, tuple[str, Array]], binary: Mapping[str, bool] | None
) -> tuple[bytes, int | None]:
    """The body of an answer, and the length of its JSON part when binary data follow (else None).

    `prefix` is `answer_prefix` of the version; `binary` tells which outputs go as binary data, None: no one. NaN and
    infinities, which JSON lacks, become null there. Arrays must be contiguous. Raises InvalidInput for text that is
    not UTF-8, which needs binary data.
    """
    parts: list[bytes] = []
    blobs: list[bytes] = []
    for name, (datatype, array) in outputs.items():
        if binary is not None and binary[name]:
            blob = tensors.write_binary(array)
            blobs.append(blob)
            parts.append(
                b'%b"parameters":{"binary_data_size":%d}}' % (_output_prefix(name, datatype, array.shape), len(blob))
            )
        else:
            parts.append(b'%b"data":%b}' % (_output_prefix(name, datatype, array.shape), _data(name, array)))
    ident = b'"id":%b,' % orjson.dumps(call_id) if call_id else b""
    text = b'%b%b"outputs":[%b]}' % (prefix, ident, b",".join(parts))
    if not blobs:
        return text, None
    return b"".join((text, *blobs)), len(text)


def answer_prefix(model: str, version: str) -> bytes:
    """The beginning of every answer of a version."""
    return b'{"model_name":%b,"model_version":%b,' % (orjson.dumps(model), orjson.dumps(version))


@lru_cache(maxsize=4096)
def _output_prefix(name: str, datatype: str, shape: tuple[int, ...]) -> bytes:
    return b'{"name":%b,"datatype":"%b","shape":%b,' % (
        orjson.dumps(name),
        datatype.encode(),
        orjson.dumps(list(shape)),
    )


def _data(name: str, array: Array) -> bytes:
    flat = array.reshape(-1)
    if flat.dtype != object:
        return orjson.dumps(flat, option=orjson.OPT_SERIALIZE_NUMPY)
    try:
        return orjson.dumps([tensors.as_bytes(element).decode() for element in flat.tolist()])
    except UnicodeDecodeError as error:
        raise InvalidInput(
            f"output {name!r} holds bytes that are not UTF-8: ask for it as binary data", reason="output_not_text"
        ) from error
