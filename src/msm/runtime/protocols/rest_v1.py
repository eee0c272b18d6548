"""KServe v1: `POST /v1/models/NAME:predict` with rows (`instances`) or columns (`inputs`). Pure.

The protocol names no datatypes and no shapes, so the version's signature does: every value is read as the datatype of
its input, and as many lists deep as its shape is long. Text is a JSON string or, for bytes that are no text,
`{"b64": "..."}`.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
import orjson

from msm.kit.errors import InvalidInput, Unsupported
from msm.runtime.protocols import call, json_values, tensors
from msm.runtime.protocols.call import InferenceCall, Sent
from msm.runtime.protocols.tensors import Array
from msm.runtime.signature import Signature, Tensor


class _Request(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    instances: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    inputs: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    signature_name: str | msgspec.UnsetType = msgspec.UNSET
    parameters: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET


_REQUEST: Final = msgspec.json.Decoder(_Request)
_B64: Final = b'"b64"'


class _Base64(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    b64: str


class _Texts(NamedTuple):
    """The JSON text of each input's values, and how many keys the objects around them have."""

    texts: dict[str, memoryview]
    keys: int = 0


def decode(body: bytes, signature: Signature) -> InferenceCall:
    """A prediction request for a version of `signature`. Raises InvalidInput; Unsupported without a signature."""
    if not signature.inputs:
        raise Unsupported(
            "the model declares no inputs, which the v1 protocol needs: use /v2/models/NAME/infer",
            reason="form_not_offered",
        )
    request = _parse(body)
    rows, columns = request.instances, request.inputs
    if (rows is msgspec.UNSET) == (columns is msgspec.UNSET):
        raise InvalidInput("the request needs either instances (rows) or inputs (columns)", reason="no_inputs")
    if columns is not msgspec.UNSET:
        found = _columns(signature, columns, body)
    elif rows is not msgspec.UNSET:
        found = _rows(signature, rows, body)
    inputs = {
        tensor.name: Sent(tensor.datatype, _read(tensor, found.texts[tensor.name], body))
        for tensor in signature.inputs
        if tensor.name in found.texts
    }
    _refuse_doubled(body, request, signature, found)
    parameters = request.parameters or {}
    if not parameters:
        return InferenceCall("", inputs)
    return InferenceCall("", inputs, timeout_s=call.timeout_of(parameters), priority=call.priority_of(parameters))


def _parse(body: bytes) -> _Request:
    if not body:
        raise InvalidInput("the body is empty, a JSON object is needed", reason="empty_body")
    try:
        return _REQUEST.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise json_values.explain(error, body, 0) from error


def _refuse_doubled(body: bytes, request: _Request, signature: Signature, found: _Texts) -> None:
    """Raises InvalidInput for a doubled key: looked for when the body has more colons than keys and texts explain."""
    keys = found.keys + 1 + (request.signature_name is not msgspec.UNSET)
    keys += 0 if request.parameters is msgspec.UNSET else 1 + len(request.parameters)
    colons = body.count(b":")
    for tensor in signature.inputs:
        if tensor.datatype == "BYTES" and tensor.name in found.texts:
            colons -= bytes(found.texts[tensor.name]).count(b":")
    if colons != keys:
        json_values.check_unique_keys(body)


def _single(signature: Signature) -> Tensor | None:
    """The input that values without a name are for."""
    needed = [tensor for tensor in signature.inputs if not tensor.optional] or list(signature.inputs)
    return needed[0] if len(needed) == 1 else None


def _columns(signature: Signature, raw: msgspec.Raw, body: bytes) -> _Texts:
    view = memoryview(raw)
    if view[0] == ord("{") and not _is_base64(view):
        members = _members(signature, raw, body)
        return _Texts({name: memoryview(value) for name, value in members.items()}, len(members))
    return _Texts({_only(signature).name: view})


def _rows(signature: Signature, raw: msgspec.Raw, body: bytes) -> _Texts:
    view = memoryview(raw)
    start = bytes(view[:64]).lstrip(b"[ \t\r\n")
    if start[:1] != b"{" or _is_base64(memoryview(start)):
        return _Texts({_only(signature).name: view})
    kind = _row_type(tuple(tensor.name for tensor in signature.inputs))
    try:
        rows = msgspec.json.decode(view, type=list[kind])  # type: ignore[valid-type]
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise json_values.explain(error, view, max(body.find(bytes(view[:4096])), 0)) from error
    texts: dict[str, memoryview] = {}
    keys = 0
    for tensor, field in zip(signature.inputs, kind.__struct_fields__, strict=True):
        values = [value for row in rows if (value := getattr(row, field)) is not msgspec.UNSET]
        if len(values) not in (0, len(rows)) or (not values and not tensor.optional):
            raise InvalidInput(
                f"input {tensor.name!r} is missing in {len(rows) - len(values)} of {len(rows)} instances",
                reason="missing_input",
            )
        if values:
            texts[tensor.name] = memoryview(_list_of(values))
            keys += len(values)
    return _Texts(texts, keys)


def _list_of(values: list[msgspec.Raw]) -> bytearray:
    """The JSON list of these values. (A join would keep a record of 80 bytes for each of them.)"""
    text = bytearray(b"[")
    for value in values:
        text += value
        text += b","
    text[-1:] = b"]"
    return text


def _only(signature: Signature) -> Tensor:
    tensor = _single(signature)
    if tensor is None:
        names = ", ".join(repr(item.name[:100]) for item in signature.inputs[:20])
        raise InvalidInput(f"the model has several inputs, so values need their names: {names}", reason="missing_input")
    return tensor


def _members(signature: Signature, raw: msgspec.Raw, body: bytes) -> dict[str, msgspec.Raw]:
    kind = _row_type(tuple(tensor.name for tensor in signature.inputs))
    try:
        row = msgspec.json.decode(raw, type=kind)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise json_values.explain(error, memoryview(raw), max(body.find(bytes(raw)[:4096]), 0)) from error
    found = zip(signature.inputs, (getattr(row, field) for field in kind.__struct_fields__), strict=True)
    return {tensor.name: value for tensor, value in found if value is not msgspec.UNSET}


@lru_cache(maxsize=1024)
def _row_type(names: tuple[str, ...]) -> type[Any]:
    """A struct with one raw field for each input: small in memory, and strict about names."""
    fields = {f"f{index}": name for index, name in enumerate(names)}
    return msgspec.defstruct(
        "instance",
        [(field, msgspec.Raw | msgspec.UnsetType, msgspec.UNSET) for field in fields],
        rename=fields,
        forbid_unknown_fields=True,
        gc=False,
    )


def _is_base64(view: memoryview) -> bool:
    return bytes(view[:32]).lstrip(b"{ \t\r\n").startswith(_B64)


def _read(tensor: Tensor, raw: memoryview, body: bytes) -> Array:
    rank = len(tensor.shape)
    if tensor.datatype == "BYTES" and _B64 in bytes(raw):
        return _bytes(tensor, raw, rank)
    return json_values.read_nested(tensor.name, tensor.datatype, rank, raw, body)


def _bytes(tensor: Tensor, raw: memoryview, rank: int) -> Array:
    kind: Any = str | _Base64
    for _ in range(rank):
        kind = list[kind]
    try:
        array = np.array(_plain(msgspec.json.decode(raw, type=kind)), object)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        problem = json_values.explain(error, raw, 0)
        raise InvalidInput(f"input {tensor.name!r} of BYTES: {problem.message}", reason=problem.reason) from error
    except binascii.Error as error:
        raise InvalidInput(f"input {tensor.name!r} has a b64 that is not base64", reason="invalid_base64") from error
    except ValueError as error:
        raise InvalidInput(f"input {tensor.name!r}: the lists have different lengths", reason="ragged") from error
    if array.ndim != rank:
        raise InvalidInput(f"input {tensor.name!r}: the lists have different lengths", reason="ragged")
    return array


def _plain(value: Any) -> Any:
    if type(value) is list:
        return [_plain(item) for item in value]
    return base64.b64decode(value.b64, validate=True) if type(value) is _Base64 else value.encode()


def encode(outputs: Mapping[str, tuple[str, Array]]) -> bytes:
    """`{"predictions": [...]}`: the values of a single output, else an object of all outputs for each row.

    Outputs that are not of the same number of rows are told as one object of whole tensors. NaN and infinities become
    null, bytes that are not UTF-8 `{"b64": "..."}`. Raises InvalidInput for BF16, which has no JSON form.
    """
    for name, (datatype, _) in outputs.items():
        if datatype == "BF16":
            raise InvalidInput(f"output {name!r} of BF16 has no JSON form: use /v2 in binary", reason="binary_only")
    value: Any
    if len(outputs) == 1:
        ((_, array),) = outputs.values()
        value = _told(array)
    else:
        told = {name: _told(array) for name, (_, array) in outputs.items()}
        counts = {array.shape[:1] for _, array in outputs.values()}
        value = told
        if len(counts) == 1 and () not in counts:
            lists = [column if isinstance(column, list) else column.tolist() for column in told.values()]
            value = [dict(zip(told, row, strict=True)) for row in zip(*lists, strict=True)]
    return b'{"predictions":%b}' % orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)


def _told(array: Array) -> Any:
    """The values as the encoder takes them: an array, or what it is made of when that is text or a single number."""
    if array.dtype == object:
        return _text(array.tolist())
    return array if array.ndim else array.tolist()


def _text(value: Any) -> Any:
    if type(value) is list:
        return [_text(item) for item in value]
    raw = tensors.as_bytes(value)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return {"b64": base64.b64encode(raw).decode()}
