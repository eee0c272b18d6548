"""Open Inference Protocol v2 over REST: JSON, and the binary tensor extension in both directions. Pure.

Strict: an unknown or doubled key, a token that JSON does not have (NaN, Infinity), a number that the datatype cannot
hold, and data that contradicts its shape are errors of the caller.

Doubled keys. The decoder takes the last of two equal keys silently. Looking for them with a second parse would cost
more than the first one, so keys are counted instead: each key is followed by one colon outside of strings, so when the
body has exactly as many colons as the decoded request has keys, none was doubled. Colons in strings (a text tensor is
subtracted first) make the counts differ; only then a full, exact check runs.

Large tensors of numbers. They are cut out of the text first: what stands between `"data":[` and the first `]` is a list
of numbers or it is no JSON, so the text around it, with a mark in its place, is decoded as any small request, and the
numbers go to `numbers`. If anything about either is odd, the request is decoded again in the plain way, which knows
every mistake and its place.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final, NamedTuple

import msgspec
import orjson

from msm.kit.errors import InvalidInput
from msm.runtime.protocols import call, json_values, numbers, tensors
from msm.runtime.protocols.call import InferenceCall, Sent, WantedOutput
from msm.runtime.protocols.tensors import Array

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
_LARGE_DATA: Final = re.compile(rb'"data"[ \t\r\n]*:[ \t\r\n]*(\[+)[ \t\r\n]*(?=[-0-9])')
_MARK: Final = b'"\\u0000'


class _Cut(NamedTuple):
    """A request without its large tensors: `spans` tells by each mark in `text` where in the request they are.

    A span is taken out when its input has it: one that is left was not the data of an input.
    """

    text: bytes
    spans: dict[bytes, tuple[int, int]]


class _OddError(Exception):
    """What was cut out is not what it seemed to be."""


def decode(body: bytes, header_length: int | None = None) -> InferenceCall:
    """An inference request from a REST body. `header_length`: bytes of JSON before the binary data, if there are any.

    Raises InvalidInput. Tensors are views of `body` where they came as binary data.
    """
    head, tail = (body, None) if header_length is None else _split(body, header_length)
    if len(head) > json_values.LARGE:
        cut = _cut(head)
        if cut is not None:
            try:
                return _decode(head, cut, tail)
            except (InvalidInput, _OddError):
                pass  # the plain way finds the same, and where it is
    return _decode(head, None, tail)


def _cut(head: bytes) -> _Cut | None:
    """`head` without its large tensors of numbers, None if it has none."""
    parts: list[bytes] = []
    spans: dict[bytes, tuple[int, int]] = {}
    at = 0
    while found := _LARGE_DATA.search(head, at):
        brackets = found[1]
        end = head.find(b"]" * len(brackets), found.end()) + len(brackets)
        if end < len(brackets):
            break
        if end - found.start(1) > json_values.LARGE // 4:
            mark = b'%b%d"' % (_MARK, len(spans))
            spans[mark] = (found.start(1), end)
            parts += (head[at : found.start(1)], mark)
        else:
            parts.append(head[at:end])
        at = end
    if not spans:
        return None
    text = b"".join((*parts, head[at:]))
    return _Cut(text, spans) if text.count(_MARK) == len(spans) else None


def _decode(head: bytes, cut: _Cut | None, tail: memoryview | None) -> InferenceCall:
    text = head if cut is None else cut.text
    request = _parse(text)
    if not request.inputs:
        raise InvalidInput("inputs is empty, at least one is needed", reason="no_inputs")
    call.check_count("inputs", len(request.inputs))
    inputs: dict[str, Sent] = {}
    taken = 0
    for item in request.inputs:
        if item.name in inputs:
            raise call.duplicate("input", item.name)
        call.check_name(item.name)
        if item.data is not msgspec.UNSET and item.parameters is msgspec.UNSET:
            array = _json_tensor(item, item.data, head, cut)
        else:
            array, taken = _tensor(item, (head, cut), tail, taken)
        inputs[item.name] = Sent(item.datatype, array)
    if tail is not None and taken != len(tail):
        raise InvalidInput(
            f"{len(tail)} bytes of binary data came, but the inputs' binary_data_size sum to {taken}",
            reason="binary_size_mismatch",
        )
    if cut is not None and cut.spans:
        raise _OddError
    _refuse_doubled_keys(text, request)
    return _call(request, inputs)


def _call(request: _Request, inputs: dict[str, Sent]) -> InferenceCall:
    ident = request.id if request.id is not msgspec.UNSET else ""
    if ident:
        call.check_id(ident)
    if request.parameters is msgspec.UNSET and request.outputs is msgspec.UNSET:
        return InferenceCall(ident, inputs)
    parameters = request.parameters or {}
    outputs = _outputs(request.outputs) if request.outputs else None
    binary = _flag(parameters, "binary_data_output") or False
    return InferenceCall(ident, inputs, outputs, call.timeout_of(parameters), binary, call.priority_of(parameters))


def _json_tensor(item: _Input, raw: msgspec.Raw, head: bytes, cut: _Cut | None) -> Array:
    """The values of an input that came as JSON. Raises InvalidInput, or _OddError when they were cut out wrongly."""
    view = memoryview(raw)
    if cut is None or len(view) > 32 or (span := cut.spans.pop(bytes(view), None)) is None:
        return json_values.read(item.name, item.datatype, item.shape, view, head)
    start, end = span
    array: Array | None
    if head.startswith(b"[[", start):
        array = numbers.nested(head[start:end], item.datatype)
    else:
        count = tensors.element_count(item.shape, item.name)
        array = numbers.flat(head, start + 1, end - 1, item.datatype, count)
        if array is not None:
            return array.reshape(item.shape)
    if array is None or array.shape != tuple(item.shape):
        raise _OddError
    return array


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
        raise json_values.explain(error, body, 0) from error


def _tensor(item: _Input, source: tuple[bytes, _Cut | None], tail: memoryview | None, taken: int) -> tuple[Array, int]:
    """The values of one input, and how much of the binary data is used up after it."""
    parameters = item.parameters
    size = None if parameters is msgspec.UNSET else parameters.get("binary_data_size")
    if size is None:
        if item.data is msgspec.UNSET:
            raise InvalidInput(f"input {item.name!r} has neither data nor binary_data_size", reason="missing_data")
        return _json_tensor(item, item.data, *source), taken
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
    json_values.check_unique_keys(body)


def _keys(parameters: _Parameters) -> int:
    """How many keys the parameters take in the body. Raises InvalidInput for one that is not a scalar."""
    for key, value in parameters.items():
        if not isinstance(value, _SCALARS):
            raise InvalidInput(
                f"parameter {key[:100]!r} must be a string, a number or a boolean", reason="invalid_parameter"
            )
    return 1 + len(parameters)


def encode(
    prefix: bytes, call_id: str, outputs: Mapping[str, tuple[str, Array]], binary: Mapping[str, bool] | None
) -> tuple[bytes, int | None]:
    """The body of an answer, and the length of its JSON part when binary data follow (else None).

    As `encode_parts`, in one piece.
    """
    text, blobs = encode_parts(prefix, call_id, outputs, binary)
    return b"".join((text, *blobs)), len(text) if blobs else None


def encode_parts(
    prefix: bytes, call_id: str, outputs: Mapping[str, tuple[str, Array]], binary: Mapping[str, bool] | None
) -> tuple[bytes, list[bytes | memoryview]]:
    """The JSON of an answer, and the pieces of binary data that follow it.

    `prefix` is `answer_prefix` of the version; `binary` tells which outputs go as binary data, None: no one. NaN and
    infinities, which JSON lacks, become null there. Arrays must be contiguous; large ones are not copied. Raises
    InvalidInput for text that is not UTF-8 and for BF16, which need binary data.
    """
    texts: list[bytes] = []
    blobs: list[bytes | memoryview] = []
    for name, (datatype, array) in outputs.items():
        if binary is not None and binary[name]:
            blob = tensors.wire_view(array)
            blobs.append(blob)
            texts.append(
                b'%b"parameters":{"binary_data_size":%d}}' % (_output_prefix(name, datatype, array.shape), len(blob))
            )
        else:
            texts.append(b'%b"data":%b}' % (_output_prefix(name, datatype, array.shape), _data(name, datatype, array)))
    ident = b'"id":%b,' % orjson.dumps(call_id) if call_id else b""
    text = b'%b%b"outputs":[%b]}' % (prefix, ident, b",".join(texts))
    return text, blobs


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


def _data(name: str, datatype: str, array: Array) -> bytes:
    flat = array.reshape(-1)
    if flat.dtype != object:
        if datatype == "BF16":
            raise InvalidInput(
                f"output {name!r} of BF16 has no JSON form: ask for it as binary data", reason="binary_only"
            )
        return orjson.dumps(flat, option=orjson.OPT_SERIALIZE_NUMPY)
    try:
        return orjson.dumps([tensors.as_bytes(element).decode() for element in flat.tolist()])
    except UnicodeDecodeError as error:
        raise InvalidInput(
            f"output {name!r} holds bytes that are not UTF-8: ask for it as binary data", reason="output_not_text"
        ) from error
