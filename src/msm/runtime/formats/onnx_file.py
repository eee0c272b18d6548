"""Looks into ONNX files without the ONNX library: is it one, and which other files does it name?

An ONNX file is a protobuf message whose tensors may say that their data are in another file. A path there that leaves
the model's folder would read foreign files, so it is refused before the runtime sees the model. The walk knows only
the fields that lead to tensors, skips all data by their lengths, and follows the field numbers of `onnx.proto`.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Final

from msm.kit.errors import LoadFailed

# Message → field number → message that lies there.
_FIELDS: Final[dict[str, dict[int, str]]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
_MODEL_FIELDS: Final = frozenset({1, 2, 3, 4, 5, 6, 7, 8, 14, 20, 25, 26})
_GRAPH: Final = 7
_OPSET: Final = 8
_MAX_DEPTH: Final = 100

Field = tuple[int, int, int]  # number, start and end of a length-delimited value


class _Malformed(Exception):
    """The bytes are not a protobuf message."""


def _varint(data: mmap.mmap, position: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while position < end and shift < 70:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise _Malformed


def _fields(data: mmap.mmap, position: int, end: int) -> Iterator[tuple[int, Field | None]]:
    """Each field of a message: its number, and its extent when it has a length."""
    while position < end:
        tag, position = _varint(data, position, end)
        number, kind = tag >> 3, tag & 7
        if kind == 0:
            _, position = _varint(data, position, end)
            yield number, None
        elif kind == 2:
            size, position = _varint(data, position, end)
            if size > end - position:
                raise _Malformed
            yield number, (number, position, position + size)
            position += size
        elif kind in (1, 5):
            position += 8 if kind == 1 else 4
            if position > end:
                raise _Malformed
            yield number, None
        else:
            raise _Malformed


def looks_like(file: Path) -> bool:
    """Whether the file is an ONNX model: a message with nothing but a model's fields, a graph and an operator set."""
    try:
        with file.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as data:
            if data[0] not in (0x08, 0x12, 0x1A, 0x3A, 0x42):
                return False
            numbers = {number for number, _ in _fields(data, 0, len(data))}
    except (OSError, ValueError, _Malformed):  # ValueError: an empty file can't be mapped
        return False
    return numbers <= _MODEL_FIELDS and _GRAPH in numbers and _OPSET in numbers


def check_external_data(file: Path) -> None:
    """Raises LoadFailed when the model names a data file outside of its folder."""
    root = file.parent.resolve()
    with file.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            locations = set(_locations(data))
        except _Malformed as error:
            raise LoadFailed("the ONNX file is broken", reason="corrupt_artifact") from error
    for location in locations:
        odd = "\\" in location or "\0" in location or PurePosixPath(location).is_absolute()
        if odd or not (root / location).resolve().is_relative_to(root):
            raise LoadFailed(
                f"the ONNX model takes data from {location[:100]!r}, which is outside of its folder",
                reason="external_data_outside",
            )


def _locations(data: mmap.mmap) -> Iterator[str]:
    """The paths of all external data of the model."""
    pending: list[tuple[str, int, int, int]] = [("model", 0, len(data), 0)]
    while pending:
        kind, start, end, depth = pending.pop()
        if depth > _MAX_DEPTH:
            raise LoadFailed(f"the graphs of the ONNX model nest more than {_MAX_DEPTH} deep", reason="too_deep")
        if kind == "entry":
            entry = {number: data[field[1] : field[2]] for number, field in _fields(data, start, end) if field}
            if entry.get(1) == b"location":
                yield entry.get(2, b"").decode("utf-8", "replace")
            continue
        inner = _FIELDS[kind]
        for number, field in _fields(data, start, end):
            if field is not None and number in inner:
                pending.append((inner[number], field[1], field[2], depth + 1))
