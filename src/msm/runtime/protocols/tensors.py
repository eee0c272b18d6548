"""Tensors on the wire: datatypes, shapes and the binary layout of the Open Inference Protocol v2.

Stands between the codecs (`oip_json`, `oip_grpc`) and NumPy. Every function checks sizes before it allocates, and
reads without a copy where the layout allows it. BYTES tensors are object arrays of `bytes`; BF16 tensors, which NumPy
lacks, are arrays of their 16 bits as uint16.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from msm.kit.errors import Internal, InvalidInput
from msm.runtime.signature import MAX_RANK

Array = npt.NDArray[Any]
Buffer = bytes | memoryview

DTYPES: Final[dict[str, np.dtype[Any]]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BYTES": np.dtype(object),
}
DATATYPES: Final[dict[np.dtype[Any], str]] = {
    dtype: name for name, dtype in DTYPES.items() if name not in ("BF16", "BYTES")
}
MAX_ELEMENTS: Final = 2**31 - 1
_LENGTH: Final = struct.Struct("<I")


def dtype_of(datatype: str, name: str) -> np.dtype[Any]:
    """The NumPy type of an OIP datatype. Raises InvalidInput naming the valid ones."""
    dtype = DTYPES.get(datatype)
    if dtype is None:
        raise InvalidInput(
            f"input {name!r} has datatype {datatype[:32]!r}, which is none of {', '.join(DTYPES)}",
            reason="unknown_datatype",
        )
    return dtype


def element_count(shape: Sequence[int], name: str) -> int:
    """How many elements a tensor of `shape` has. Raises InvalidInput for a shape no tensor can have."""
    if len(shape) > MAX_RANK:
        raise InvalidInput(
            f"input {name!r} has {len(shape)} dimensions, at most {MAX_RANK} are allowed",
            reason="too_many_dimensions",
        )
    if shape and min(shape) < 0:
        raise InvalidInput(
            f"input {name!r} has shape {_short(shape)}: a dimension must not be negative",
            reason="negative_dimension",
        )
    count = math.prod(shape)
    # A shape with a zero has no elements, but NumPy still multiplies the rest of it.
    if count > MAX_ELEMENTS or (not count and math.prod(filter(None, shape)) > MAX_ELEMENTS):
        raise InvalidInput(
            f"input {name!r} has shape {_short(shape)}, which is more than {MAX_ELEMENTS} elements",
            reason="too_many_elements",
        )
    return count


def count_mismatch(name: str, shape: Sequence[int], expected: int, got: int) -> InvalidInput:
    """The error for data that is longer or shorter than its shape says."""
    return InvalidInput(
        f"input {name!r} has shape {_short(shape)}, which needs {expected} values, but {got} came",
        reason="shape_mismatch",
    )


def _short(shape: Sequence[int]) -> str:
    text = str(list(shape))
    return text if len(text) <= 120 else text[:117] + "..."


def read_binary(name: str, datatype: str, shape: Sequence[int], data: Buffer) -> Array:
    """The tensor in `data` (little-endian, row-major; BYTES with 4-byte lengths) as a view where possible.

    Raises InvalidInput when the size does not fit the shape or an element is not valid.
    """
    dtype = dtype_of(datatype, name)
    count = element_count(shape, name)
    if datatype == "BYTES":
        return _read_strings(name, shape, count, data)
    need = count * dtype.itemsize
    if len(data) != need:
        raise InvalidInput(
            f"input {name!r} has shape {_short(shape)} of {datatype}, which needs {need} bytes, but {len(data)} came",
            reason="shape_mismatch",
        )
    array = np.frombuffer(data, dtype)
    if datatype == "BOOL" and count and array.view(np.uint8).max() > 1:
        raise InvalidInput(f"input {name!r} is BOOL and has a byte other than 0 and 1", reason="value_out_of_range")
    return array.reshape(shape)


def _read_strings(name: str, shape: Sequence[int], count: int, data: Buffer) -> Array:
    if len(data) < 4 * count:
        raise InvalidInput(
            f"input {name!r} has shape {_short(shape)} of BYTES, which needs at least {4 * count} bytes, "
            f"but {len(data)} came",
            reason="shape_mismatch",
        )
    elements: list[bytes] = []
    position, end = 0, len(data)
    while position < end and len(elements) < count:
        start = position + 4
        position = start + _LENGTH.unpack_from(data, position)[0] if start <= end else end + 1
        if position > end:
            raise InvalidInput(
                f"input {name!r}: the length of BYTES element {len(elements)} reaches beyond the end of the data",
                reason="bad_bytes_length",
            )
        elements.append(bytes(data[start:position]))
    if position != end or len(elements) != count:
        raise InvalidInput(
            f"input {name!r} has shape {_short(shape)}, which needs {count} BYTES elements, but "
            f"{'more' if position != end else len(elements)} came",
            reason="shape_mismatch",
        )
    return objects(elements).reshape(shape)


def objects(elements: Sequence[Any]) -> Array:
    """A flat object array of `elements`, which NumPy must not look into."""
    array = np.empty(len(elements), object)
    array[:] = elements
    return array


def write_binary(array: Array) -> bytes:
    """Inverse of `read_binary`: the wire bytes of an output."""
    if array.dtype == object:
        parts: list[bytes] = []
        for element in array.ravel().tolist():
            raw = as_bytes(element)
            parts += (_LENGTH.pack(len(raw)), raw)
        return b"".join(parts)
    return array.tobytes()


_LARGE: Final = 64 * 1024


def wire_view(array: Array) -> bytes | memoryview:
    """As `write_binary`, a view of a large array instead of a copy. The array must be contiguous."""
    if array.nbytes < _LARGE or array.dtype == object:
        return write_binary(array)
    return array.reshape(-1).view(np.uint8).data


def as_bytes(element: Any) -> bytes:
    """One BYTES element of a model's output. Raises Internal when it is neither bytes nor text."""
    if isinstance(element, bytes):
        return element
    if isinstance(element, str):
        return element.encode("utf-8", "surrogatepass")
    raise Internal(
        f"the model gave {type(element).__name__} as an element of BYTES, which must be bytes or text",
        reason="model_output_invalid",
    )


def wire_array(name: str, value: Any) -> tuple[str, Array]:
    """What a model gave for an output, as (datatype, array that the codecs can write).

    Lists and scalars become arrays, text becomes BYTES, all in row-major order without gaps. Raises Internal for a
    type that has no wire form.
    """
    if type(value) is not np.ndarray:
        try:
            value = np.asarray(value)
        except ValueError as error:
            raise Internal(f"output {name!r} of the model is ragged", reason="model_output_invalid") from error
    if not value.flags.c_contiguous:
        value = value.copy(order="C")
    datatype = DATATYPES.get(value.dtype)
    if datatype is not None:
        return datatype, value
    if value.dtype.kind in "USO":
        if value.dtype.kind != "O":
            value = value.astype(object)
        return "BYTES", value
    if value.dtype.name == "bfloat16":  # of the library ml_dtypes, which need not be known for that
        return "BF16", value.view(DTYPES["BF16"])
    native = value.dtype.newbyteorder("<")
    datatype = DATATYPES.get(native)
    if datatype is None:
        raise Internal(
            f"output {name!r} of the model has type {value.dtype}, which no tensor can have",
            reason="model_output_invalid",
        )
    return datatype, value.astype(native)
