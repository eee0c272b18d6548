"""Typed contents of gRPC tensors (`InferTensorContents`) as arrays, without a Python object for each number. Pure.

Protobuf writes a repeated number as one packed field: fixed-width numbers as they are in memory, integers and booleans
as varints (protobuf encoding, "Packed Repeated Fields"). A large field is therefore serialised again, which costs
little, and read as an array.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from msm.kit.errors import InvalidInput
from msm.runtime.protocols import oip_pb2 as pb
from msm.runtime.protocols import tensors
from msm.runtime.protocols.tensors import Array

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
_LARGE: Final = 256
_PIECE: Final = 64 * 1024
_FIXED: Final = ("FP32", "FP64")


def read(item: pb.ModelInferRequest.InferInputTensor) -> Array:
    """The tensor in an input's typed contents. Raises InvalidInput."""
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
    if datatype == "BYTES":
        return tensors.objects(list(values)).reshape(shape)
    array = packed(item.contents, datatype, count) if count > _LARGE else None
    if array is None:
        wide = np.fromiter(values, _wide(dtype), count)
        array = _narrow(name, datatype, wide)
    return array.reshape(shape)


def packed(contents: pb.InferTensorContents, datatype: str, count: int) -> Array | None:
    """The numbers of the only field of `contents`, None when it is not in the form that is read here."""
    data: bytes = contents.SerializeToString()
    size, start, shift = 0, 1, 0
    while start < 7:
        byte = data[start]
        size |= (byte & 0x7F) << shift
        start, shift = start + 1, shift + 7
        if byte < 0x80:
            break
    if data[0] & 7 != 2 or start + size != len(data):
        return None
    dtype = tensors.DTYPES[datatype]
    if datatype in _FIXED:
        return np.frombuffer(data, dtype, count, start) if size == count * dtype.itemsize else None
    array = np.empty(count, dtype)
    at = 0
    bytes_ = np.frombuffer(data, np.uint8, size, start)
    for low, high in _pieces(bytes_):
        values = _varints(bytes_[low:high])
        if at + len(values) > count:
            return None
        if dtype.kind == "b":
            array[at : at + len(values)] = values != 0
        else:
            signed = values.view(np.int64) if dtype.kind == "i" else values
            limits = np.iinfo(dtype)
            if len(signed) and (signed.min() < limits.min or signed.max() > limits.max):
                return None
            array[at : at + len(values)] = signed
        at += len(values)
    return array if at == count else None


def _pieces(data: Array) -> list[tuple[int, int]]:
    """Pieces of about 64 KiB that end where a varint does."""
    pieces: list[tuple[int, int]] = []
    low = 0
    while low < len(data):
        high = min(low + _PIECE, len(data))
        while high < len(data) and data[high - 1] & 0x80:
            high += 1
        pieces.append((low, high))
        low = high
    return pieces


def _varints(data: Array) -> Array:
    """The varints in `data` (uint8) as uint64: seven bits a byte, the lowest first, the last byte below 128."""
    last = data < 0x80
    if last.all():
        return data.astype(np.uint64)
    ends = np.flatnonzero(last)
    starts = np.empty_like(ends)
    starts[0] = 0
    starts[1:] = ends[:-1] + 1
    lengths = ends - starts + 1
    values = (data[starts] & 0x7F).astype(np.uint64)
    for place in range(1, min(int(lengths.max()), 10)):
        longer = np.flatnonzero(lengths > place)
        bits = (data[starts[longer] + place] & 0x7F).astype(np.uint64)
        values[longer] |= bits << np.uint64(7 * place)
    return values


def _wide(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return np.dtype(np.int64) if dtype.kind in "iu" and dtype.itemsize < 4 else dtype


def _narrow(name: str, datatype: str, wide: Array) -> Array:
    dtype = tensors.DTYPES[datatype]
    if wide.dtype == dtype:
        return wide
    limits = np.iinfo(dtype)
    if wide.size and (wide.min() < limits.min or wide.max() > limits.max):
        raise InvalidInput(f"input {name!r} has a value that {datatype} cannot hold", reason="value_out_of_range")
    return wide.astype(dtype)
