"""The values of one tensor in JSON, read strictly: what is not of the datatype, or not of the shape, is refused.

Numbers of large tensors are tried by `numbers` first; what it does not take is read here, where every mistake has
its sentence.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cache
from typing import Annotated, Any, Final

import msgspec
import numpy as np

from msm.kit.errors import InvalidInput
from msm.runtime.protocols import call, numbers, tensors
from msm.runtime.protocols.tensors import Array

MAX_DEPTH: Final = 100
LARGE: Final = 4096
_AROUND_DATA: Final = 3  # the request, its list of inputs, and the input
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


def read(name: str, datatype: str, shape: Sequence[int], raw: memoryview, whole: bytes) -> Array:
    """The tensor of `shape` whose values are the JSON text `raw`: one flat list, or as many lists as dimensions.

    `whole` is the text of the request, for the place of a mistake. Raises InvalidInput.
    """
    dtype = tensors.dtype_of(datatype, name)
    refuse_bf16(name, datatype)
    count = tensors.element_count(shape, name)
    levels = levels_of(raw)
    if levels not in (1, len(shape)):
        raise _too_nested(name, shape, levels)
    values = _values(name, datatype, levels, raw, whole)
    if levels == 1 and len(values) != count:
        raise tensors.count_mismatch(name, shape, count, len(values))
    array = _as_array(name, datatype, dtype, values)
    if levels == 1:
        return array.reshape(shape)
    if array.shape != tuple(shape):
        raise InvalidInput(
            f"input {name!r} has shape {list(shape)}, but its data has shape {list(array.shape)}",
            reason="shape_mismatch",
        )
    return array


def read_nested(name: str, datatype: str, rank: int, raw: memoryview, whole: bytes) -> Array:
    """The tensor of `rank` dimensions whose values are the lists of lists in `raw`, in the shape that these have.

    Rank 0 is a single value. Raises InvalidInput.
    """
    dtype = tensors.dtype_of(datatype, name)
    refuse_bf16(name, datatype)
    if rank and datatype != "BYTES" and len(raw) >= LARGE:
        array = numbers.nested(bytes(raw), datatype)
        if array is not None and array.ndim == rank:
            return array
    levels = levels_of(raw)
    if levels > rank:
        if levels + _AROUND_DATA > MAX_DEPTH:
            raise too_deep()
        raise InvalidInput(
            f"input {name!r} has {rank} dimensions, but its data is {levels} lists deep", reason="shape_mismatch"
        )
    array = _as_array(name, datatype, dtype, _values(name, datatype, rank, raw, whole))
    if array.ndim != rank:  # lists of text that differ in length stay lists
        raise InvalidInput(f"input {name!r}: the lists of data have different lengths", reason="ragged")
    return array


def refuse_bf16(name: str, datatype: str) -> None:
    """Raises InvalidInput for the one datatype that JSON has no form for."""
    if datatype == "BF16":
        raise InvalidInput(f"input {name!r}: BF16 has no JSON form, send it as binary data", reason="binary_only")


def _values(name: str, datatype: str, levels: int, raw: memoryview, whole: bytes) -> Any:
    try:
        values = _decoder(datatype, levels).decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        problem = explain(error, raw, max(whole.find(bytes(raw[:4096])), 0))
        raise InvalidInput(f"input {name!r} of {datatype}: {problem.message}", reason=problem.reason) from error
    return _encoded(values) if datatype == "BYTES" else values


def _as_array(name: str, datatype: str, dtype: np.dtype[Any], values: Any) -> Array:
    try:
        return np.array(values, dtype)
    except OverflowError as error:
        raise InvalidInput(
            f"input {name!r} has a value that {datatype} cannot hold", reason="value_out_of_range"
        ) from error
    except ValueError as error:
        raise InvalidInput(f"input {name!r}: the lists of data have different lengths", reason="ragged") from error


def _too_nested(name: str, shape: Sequence[int], levels: int) -> InvalidInput:
    if levels + _AROUND_DATA > MAX_DEPTH:
        return too_deep()
    return InvalidInput(
        f"input {name!r}: data must be a flat list or {len(shape)} lists deep as its shape says",
        reason="shape_mismatch",
    )


def too_deep() -> InvalidInput:
    """The error for JSON with too many lists and objects around each other."""
    return InvalidInput(f"the JSON is nested more than {MAX_DEPTH} deep", reason="json_too_deep")


def _encoded(values: Any) -> Any:
    return [_encoded(value) for value in values] if type(values) is list else values.encode()


def levels_of(view: memoryview) -> int:
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


def explain(error: Exception, body: bytes | memoryview, offset: int) -> InvalidInput:
    """The caller's mistake behind a decoder's error; `offset` is where `body` begins in the request."""
    if isinstance(error, RecursionError) or depth(body) > MAX_DEPTH:
        return too_deep()
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
    """How deep arrays and objects nest in `body`, which need not be valid JSON. Uses no recursion, and a few arrays."""
    text = bytes(body)
    if b"\\" in text:
        text = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    marks = np.frombuffer(text, np.uint8)
    steps = ((marks == ord("[")) | (marks == ord("{"))).view(np.int8)
    steps -= ((marks == ord("]")) | (marks == ord("}"))).view(np.int8)
    quotes = np.cumsum(marks == ord('"'), dtype=np.uint8)  # may wrap: only odd or even matters
    steps[(quotes & 1).view(np.bool_)] = 0  # inside of a string
    return int(np.cumsum(steps, dtype=np.int32).max(initial=0))


def check_unique_keys(body: bytes) -> None:
    """Raises InvalidInput when an object of `body`, which the strict decoder took, has a key twice."""
    try:
        json.loads(body, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:  # what the strict decoder skipped can only be a doubled value
        raise InvalidInput("a key is there twice in one JSON object", reason="duplicate_key") from error


def _unique(pairs: list[tuple[str, Any]]) -> None:
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            raise InvalidInput(f"key {key[:100]!r} is there twice in one JSON object", reason="duplicate_key")
        seen.add(key)
