"""Tables as text (`text/csv`): the first row names the inputs, or the columns of the only input. Pure, no pandas.

Columns belong to inputs by name when every name is an input's; each such input is one column, of shape [-1] or
[-1, 1]. Else the model must have one input of shape [-1, n], and the columns are its n columns in the order in which
they come. Numbers are read all at once when they are written as JSON writes them; other spellings (quoted, with blanks,
NaN) go through the `csv` module cell by cell.
"""

from __future__ import annotations

import csv
import io
from array import array as packed
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
import orjson

from msm.kit.errors import InvalidInput, Unsupported
from msm.runtime.protocols import call, numbers, tensors
from msm.runtime.protocols.call import Sent
from msm.runtime.protocols.tensors import DTYPES, Array
from msm.runtime.signature import Signature, Tensor

MAX_COLUMNS: Final = 100_000
_NUMBER: Final = b"0123456789+-.eE"
_TRUTH: Final = {"true": True, "false": False, "1": True, "0": False, "True": True, "False": False}
_QUOTED: Final = (b",", b'"', b"\n", b"\r")


def decode(body: bytes, signature: Signature) -> dict[str, Sent]:
    """The inputs in a table. Raises InvalidInput naming line and column; Unsupported without a fitting signature."""
    if not body:
        raise InvalidInput("the body is empty, a row with the names of the columns is needed", reason="empty_body")
    head, _, rest = body.partition(b"\n")
    names = _names(head, body)
    inputs = {tensor.name: tensor for tensor in signature.inputs}
    if all(name in inputs for name in names):
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise call.duplicate("input", twice)
        columns = [inputs[name] for name in names]
        for tensor in columns:
            if tensor.shape[1:] not in ((), (1,)) or not tensor.shape:
                if len(names) == 1 == len(signature.inputs):
                    break  # a single input of one column that happens to have the input's name
                raise InvalidInput(
                    f"input {tensor.name!r} has shape {list(tensor.shape)}, a column of text/csv is one value a row",
                    reason="shape_mismatch",
                )
        else:
            return _separate(columns, rest, body)
    return _table(signature, names, rest, body)


def _names(head: bytes, body: bytes) -> list[str]:
    """The names in the first row. A quoted name may hold a line end: then the whole is read by the csv module."""
    try:
        text = head.decode()
        row = next(csv.reader([text.rstrip("\r")], strict=True), []) if b'"' not in head else next(_reader(body), [])
    except (UnicodeDecodeError, csv.Error) as error:
        raise InvalidInput(f"the first row is not text/csv in UTF-8: {error}", reason="invalid_csv") from error
    if len(row) > MAX_COLUMNS:
        raise InvalidInput(f"{len(row)} columns came, at most {MAX_COLUMNS} are allowed", reason="too_many_columns")
    return row


def _table(signature: Signature, names: list[str], rest: bytes, body: bytes) -> dict[str, Sent]:
    """All columns as one tensor."""
    if len(signature.inputs) != 1:
        known = {tensor.name for tensor in signature.inputs}
        if not known:
            raise Unsupported("the model declares no inputs, which text/csv needs", reason="form_not_offered")
        unknown = next((name for name in names if name not in known), "")
        raise InvalidInput(
            f"column {call.told(unknown)[:100]!r} is no input, the inputs are {', '.join(map(repr, known))[:500]}",
            reason="unknown_input",
        )
    (tensor,) = signature.inputs
    width = len(names)
    if len(tensor.shape) != 2 or tensor.shape[1] not in (-1, width):
        raise InvalidInput(
            f"input {tensor.name!r} must have shape {list(tensor.shape)}, got a table of {width} columns",
            reason="shape_mismatch",
        )
    _refuse_bf16(tensor)
    array = _numbers(rest, tensor.datatype, width) if b'"' not in body else None
    if array is None:
        columns = _cells([tensor] * width, body)
        array = np.stack(columns, axis=1)
    return {tensor.name: Sent(tensor.datatype, array)}


def _separate(columns: list[Tensor], rest: bytes, body: bytes) -> dict[str, Sent]:
    """Each column as a tensor of its own."""
    for tensor in columns:
        _refuse_bf16(tensor)
    datatypes = {tensor.datatype for tensor in columns}
    table = _numbers(rest, datatypes.pop(), len(columns)) if len(datatypes) == 1 and b'"' not in body else None
    arrays = (
        _cells(columns, body)
        if table is None
        else [np.ascontiguousarray(table[:, place]) for place in range(len(columns))]
    )
    return {
        tensor.name: Sent(tensor.datatype, array.reshape(-1, 1) if len(tensor.shape) == 2 else array)
        for tensor, array in zip(columns, arrays, strict=True)
    }


def _refuse_bf16(tensor: Tensor) -> None:
    if tensor.datatype == "BF16":
        raise InvalidInput(
            f"input {tensor.name!r}: BF16 has no text form, send it as binary data", reason="binary_only"
        )


def _numbers(rest: bytes, datatype: str, width: int) -> Array | None:
    """The table of plain numbers in `rest` (the rows behind the names), or None if it is anything else.

    The commas and line ends that are left without the numbers prove that every row is of the same width.
    """
    if datatype in ("BYTES", "BOOL"):
        return None
    if b"\r" in rest:
        rest = rest.replace(b"\r\n", b"\n")
    rest = rest.removesuffix(b"\n")
    marks = rest.translate(None, _NUMBER)
    rows, odd = divmod(len(marks) + 1, width)
    if not rest or odd or marks != (b"," * (width - 1) + b"\n") * (rows - 1) + b"," * (width - 1):
        return None
    text = rest.replace(b"\n", b",")
    array = numbers.flat(text, 0, len(text), datatype, rows * width)
    return None if array is None else array.reshape(rows, width)


def _reader(body: bytes) -> Any:
    return csv.reader(io.TextIOWrapper(io.BytesIO(body), "utf-8", newline=""), strict=True)


def _cells(columns: list[Tensor], body: bytes) -> list[Array]:
    """The columns, cell by cell, each in a packed array while it grows (text in a list)."""
    readers = [_converter(tensor.datatype) for tensor in columns]
    kept: list[Any] = [[] if tensor.datatype == "BYTES" else packed(_kind(tensor.datatype)) for tensor in columns]
    rows = _reader(body)
    try:
        next(rows)
        for row in rows:
            if not row:
                continue
            if len(row) != len(columns):
                raise InvalidInput(
                    f"line {rows.line_num} has {len(row)} columns, the first row names {len(columns)}", reason="ragged"
                )
            for place, cell in enumerate(row):
                kept[place].append(readers[place](cell))
    except (ValueError, OverflowError, KeyError) as error:
        if isinstance(error, UnicodeDecodeError):
            raise InvalidInput(f"the body is not UTF-8: {error.reason}", reason="invalid_csv") from error
        tensor = columns[place]
        raise InvalidInput(
            f"input {tensor.name!r}, line {rows.line_num}, column {place + 1}: {call.told(cell[:50])!r} is no "
            f"{tensor.datatype}",
            reason="invalid_value",
        ) from error
    except csv.Error as error:
        raise InvalidInput(f"line {rows.line_num} is not text/csv: {error}", reason="invalid_csv") from error
    return [
        tensors.objects(values) if tensor.datatype == "BYTES" else _narrow(tensor, np.array(values))
        for tensor, values in zip(columns, kept, strict=True)
    ]


def _kind(datatype: str) -> str:
    """The code of the widest packed array of a datatype's kind."""
    kind = DTYPES[datatype].kind
    return {"f": "d", "b": "B", "u": "Q", "i": "q"}[kind]


def _converter(datatype: str) -> Callable[[str], Any]:
    kind = DTYPES[datatype].kind
    if datatype == "BYTES":
        return str.encode
    if kind == "b":
        return lambda cell: _TRUTH[cell.strip()]
    return float if kind == "f" else _integer


def _integer(cell: str) -> int:
    if len(cell) > 40:
        raise ValueError(cell)
    return int(cell)


def _narrow(tensor: Tensor, values: Array) -> Array:
    """The values in the tensor's own type. Raises InvalidInput for one that it cannot hold; NaN and inf may be sent."""
    dtype = DTYPES[tensor.datatype]
    with np.errstate(over="ignore"):
        array = values.astype(dtype)
    lost = (array != values).any() if dtype.kind in "iu" else (np.isinf(array) & ~np.isinf(values)).any()
    if dtype.kind != "b" and lost:
        raise InvalidInput(
            f"input {tensor.name!r} has a value that {tensor.datatype} cannot hold", reason="value_out_of_range"
        )
    return array


def encode(outputs: Mapping[str, tuple[str, Array]]) -> bytes:
    """A table with a column for each output, or for each column of one (`name_0`, `name_1`, ...). NaN is an empty cell.

    Raises InvalidInput for outputs of more than two dimensions, of different numbers of rows, or that are no text.
    """
    names: list[bytes] = []
    columns: list[list[bytes]] = []
    rows = {array.shape[:1] for _, array in outputs.values()}
    for name, (datatype, array) in outputs.items():
        if len(rows) > 1 or array.ndim not in (1, 2) or datatype == "BF16":
            raise InvalidInput(
                f"output {name!r} of {datatype} has shape {list(array.shape)}, which text/csv cannot hold beside the "
                "others: accept application/json",
                reason="output_not_tabular",
            )
        if array.ndim == 1:
            names.append(_quoted(name.encode()))
            columns.append(_column(name, array))
            continue
        for place in range(array.shape[1]):
            names.append(_quoted(f"{name}_{place}".encode()))
            columns.append(_column(name, array[:, place]))
    lines = [b",".join(row) for row in zip(*columns, strict=True)]
    return b"\r\n".join([b",".join(names), *lines, b""])


def _column(name: str, array: Array) -> list[bytes]:
    if array.dtype == object:
        cells = [tensors.as_bytes(element) for element in array.tolist()]
        try:
            b"\n".join(cells).decode()
        except UnicodeDecodeError as error:
            raise InvalidInput(
                f"output {name!r} holds bytes that are not UTF-8: ask for it as binary data", reason="output_not_text"
            ) from error
        return [_quoted(cell) for cell in cells]
    if not array.size:
        return []
    text = orjson.dumps(np.ascontiguousarray(array), option=orjson.OPT_SERIALIZE_NUMPY)
    return text[1:-1].replace(b"null", b"").split(b",")


def _quoted(cell: bytes) -> bytes:
    if any(mark in cell for mark in _QUOTED) or not cell:
        return b'"%b"' % cell.replace(b'"', b'""')
    return cell
