"""From what a person types to the tensors of an inference request, guided by the model's signature. Pure.

Rows become tensors of the declared names and datatypes: one input takes the rows as they are, several inputs take a
column each. Shapes are checked by the model's worker; here only what cannot be written down at all is refused.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from msm.kit.errors import InvalidInput
from msm.resources.serving import Signature, Tensor
from msm.resources.text import shown

BINARY_HEADER = "inference-header-content-length"


@dataclass(frozen=True, slots=True)
class Body:
    """A request body and the header it needs besides."""

    content: bytes
    headers: dict[str, str]


def from_json(text: str | bytes, signature: Signature | None) -> Body:
    """The request of JSON: a whole protocol body as it is; else rows, an object of inputs, or a list of such."""
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidInput(f"the input is not JSON: {error}") from error
    if isinstance(value, dict) and isinstance(value.get("inputs"), list):
        return _body(value)
    inputs = _inputs(signature)
    if isinstance(value, dict):
        return _request([_tensor(tensor, value[tensor.name]) for tensor in _named(value, inputs)])
    if isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
        return _request(
            [_column(tensor, [row.get(tensor.name) for row in value]) for tensor in _named(value[0], inputs)]
        )
    if len(inputs) == 1:
        return _request([_tensor(inputs[0], value)])
    return _request(_columns(inputs, value))


def from_csv(text: str, signature: Signature | None) -> Body:
    """The request of a table: columns by their head, or all of them for the one input. Cells become what the datatype
    says."""
    inputs = _inputs(signature)
    rows = [row for row in csv.reader(io.StringIO(text)) if row]
    if not rows:
        raise InvalidInput("the table is empty")
    width = len(rows[0])
    for number, row in enumerate(rows, 1):
        if len(row) != width:
            raise InvalidInput(f"row {number} of the table has {len(row)} cells, the first has {width}")
    head = [cell.strip() for cell in rows[0]]
    names = {tensor.name for tensor in inputs if not tensor.optional}
    if names <= set(head):
        columns = {name: [row[index] for row in rows[1:]] for index, name in enumerate(head)}
        wanted = [tensor for tensor in inputs if tensor.name in columns]
        return _request([_column(tensor, _cells(tensor, columns[tensor.name])) for tensor in wanted])
    if len(inputs) > 1:
        raise InvalidInput(f"the table's head must name the inputs {', '.join(sorted(names))}; it is {shown(head)}")
    (tensor,) = inputs
    body = rows if _is_cell(tensor, rows[0]) else rows[1:]
    return _request([_tensor(tensor, [_cells(tensor, row) for row in body])])


def from_bytes(content: bytes, signature: Signature | None) -> Body:
    """The request of a file's bytes, for a model with one input of BYTES (one element) or UINT8 (one a byte)."""
    inputs = _inputs(signature)
    if len(inputs) != 1 or inputs[0].datatype not in ("BYTES", "UINT8"):
        kinds = ", ".join(f"{tensor.name} {tensor.datatype}" for tensor in inputs)
        raise InvalidInput(f"a file can only be sent to a model with one input of BYTES or UINT8; this one has {kinds}")
    tensor = inputs[0]
    if tensor.datatype == "BYTES":
        data, shape = len(content).to_bytes(4, "little") + content, [1] * max(1, len(tensor.shape))
    else:
        data, shape = content, [1] * (len(tensor.shape) - 1) + [len(content)]
    described = {
        "name": tensor.name, "datatype": tensor.datatype, "shape": shape,
        "parameters": {"binary_data_size": len(data)},
    }  # fmt: skip
    head = msgspec.json.encode({"inputs": [described]})
    headers = {BINARY_HEADER: str(len(head)), "content-type": "application/octet-stream"}
    return Body(head + data, headers)


def _inputs(signature: Signature | None) -> tuple[Tensor, ...]:
    if signature is None or not signature.inputs:
        raise InvalidInput(
            "the inputs of this version are not known; give the whole request body: "
            '--json \'{"inputs": [{"name": …, "shape": …, "datatype": …, "data": …}]}\''
        )
    required = tuple(tensor for tensor in signature.inputs if not tensor.optional)
    return signature.inputs if len(required) != 1 or len(signature.inputs) == 1 else required


def _named(given: dict[str, Any], inputs: Sequence[Tensor]) -> list[Tensor]:
    known = {tensor.name for tensor in inputs}
    strange = [name for name in given if name not in known]
    missing = [tensor.name for tensor in inputs if tensor.name not in given and not tensor.optional]
    if strange or missing:
        what = f"{shown(strange[0])} is none of them" if strange else f"{shown(missing[0])} is missing"
        raise InvalidInput(f"the inputs of this version are {', '.join(sorted(known))}; {what}")
    return [tensor for tensor in inputs if tensor.name in given]


def _columns(inputs: Sequence[Tensor], value: Any) -> list[dict[str, Any]]:
    """Rows of lists for several inputs: a column each, in the declared order."""
    rows = value if isinstance(value, list) else []
    if not rows or any(not isinstance(row, list) or len(row) != len(inputs) for row in rows):
        names = ", ".join(tensor.name for tensor in inputs)
        raise InvalidInput(f"this version has {len(inputs)} inputs ({names}): give an object, or rows of {len(inputs)}")
    return [_column(tensor, [row[index] for row in rows]) for index, tensor in enumerate(inputs)]


def _column(tensor: Tensor, values: list[Any]) -> dict[str, Any]:
    """One value a row: a tensor of the rows, with the further dimensions of 1 that the signature has."""
    if len(tensor.shape) == 2 and all(not isinstance(value, list) for value in values):
        return _tensor(tensor, [[value] for value in values])
    return _tensor(tensor, values)


def _tensor(tensor: Tensor, value: Any) -> dict[str, Any]:
    """The tensor of nested lists. Where dimensions are missing in front, the value is a batch of one."""
    shape, data = [], [value]
    while data and isinstance(data[0], list):
        lengths = {len(item) if isinstance(item, list) else -1 for item in data}
        if len(lengths) != 1 or -1 in lengths:
            raise InvalidInput(f"the rows for input {shown(tensor.name)} are not all of the same length")
        shape.append(lengths.pop())
        data = [each for item in data for each in item]
    if any(isinstance(each, list | dict) or each is None for each in data):
        raise InvalidInput(f"the values for input {shown(tensor.name)} are not all numbers, strings or truth values")
    while len(shape) < len(tensor.shape):
        shape.insert(0, 1)
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": shape or [1], "data": data}


def _cells(tensor: Tensor, cells: Iterable[str]) -> list[Any]:
    convert = _converter(tensor.datatype)
    values = []
    for cell in cells:
        try:
            values.append(convert(cell.strip()))
        except ValueError as error:
            raise InvalidInput(f"the cell {shown(cell)} is not {tensor.datatype}, as input {tensor.name} is") from error
    return values


def _converter(datatype: str) -> Callable[[str], Any]:
    if datatype == "BYTES":
        return str
    if datatype == "BOOL":
        return _truth
    return float if datatype.startswith(("FP", "BF")) else int


def _truth(cell: str) -> bool:
    known = {"true": True, "1": True, "false": False, "0": False}
    if cell.lower() not in known:
        raise ValueError(cell)
    return known[cell.lower()]


def _is_cell(tensor: Tensor, row: Sequence[str]) -> bool:
    """Whether a row holds values and not the names of columns. Of text nobody can tell: then it is a row."""
    try:
        _cells(tensor, row)
    except InvalidInput:
        return False
    return True


def _request(inputs: list[dict[str, Any]]) -> Body:
    return _body({"inputs": inputs})


def _body(value: dict[str, Any]) -> Body:
    return Body(msgspec.json.encode(value), {"content-type": "application/json"})
