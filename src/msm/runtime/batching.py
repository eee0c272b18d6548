"""Which waiting requests are run together, and how their tensors are joined and taken apart. Pure.

Nothing ever waits for a batch to fill: what arrived while the model was busy is the next batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from msm.kit.errors import Internal
from msm.runtime.protocols.tensors import DTYPES, Array
from msm.runtime.signature import Signature

Outputs = dict[str, tuple[str, Array]]
Kind = tuple[tuple[str, tuple[int, ...]], ...]


@dataclass(frozen=True, slots=True)
class Limits:
    """How large a batch may be. A single request may be larger: it is then run alone."""

    rows: int = 64
    bytes: int = 8 * 1024 * 1024


class Shape(msgspec.Struct, frozen=True, gc=False):
    """What of a request decides about joining: its rows, its size, and what must be equal to join (None: run alone)."""

    rows: int
    size: int
    kind: Kind | None


ALONE = Shape(0, 0, None)
_UNIFORM: Kind = ()


def shape_of(inputs: Mapping[str, Array], *, uniform: bool) -> Shape:
    """The `Shape` of a request to a version whose signature is `row_wise`; `uniform`: also of `fixed_rows`."""
    rows = -1
    size = 0
    for array in inputs.values():
        if rows not in (-1, array.shape[0]):
            return ALONE
        rows = array.shape[0]
        size += array.nbytes
    if rows <= 0:
        return ALONE
    if uniform:
        return Shape(rows, size, _UNIFORM)
    return Shape(rows, size, tuple((name, array.shape[1:]) for name, array in inputs.items()))


def cut(waiting: Iterable[Shape], limits: Limits) -> int:
    """How many of the waiting requests, from the oldest on, make the next batch: at least 1."""
    count = rows = size = 0
    kind: Kind | None = None
    for shape in waiting:
        rows += shape.rows
        size += shape.size
        if count and (shape.kind is None or shape.kind != kind or rows > limits.rows or size > limits.bytes):
            break
        kind = shape.kind
        count += 1
        if kind is None:
            break
    return count


def join(inputs: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    """The inputs of several requests as one, row after row. All have the same names."""
    return {name: np.concatenate([item[name] for item in inputs]) for name in inputs[0]}


def scatter(outputs: Outputs, rows: Sequence[int]) -> list[Outputs]:
    """The outputs of a batch as those of its requests, as views.

    Raises Internal when the model did not give one row for each row.
    """
    total = sum(rows)
    for name, (_, array) in outputs.items():
        if array.shape[:1] != (total,):
            raise Internal(
                f"output {name!r} of the model has shape {list(array.shape)} for {total} rows of input",
                reason="model_output_invalid",
            )
    parts: list[Outputs] = []
    low = 0
    for count in rows:
        high = low + count
        parts.append({name: (datatype, array[low:high]) for name, (datatype, array) in outputs.items()})
        low = high
    return parts


def empty_outputs(signature: Signature) -> Outputs | None:
    """The answer to a request of no rows, if the signature tells it: models themselves often refuse such input."""
    if not signature.row_wise or any(-1 in tensor.shape[1:] for tensor in signature.outputs):
        return None
    return {
        tensor.name: (tensor.datatype, np.empty((0, *tensor.shape[1:]), DTYPES[tensor.datatype]))
        for tensor in signature.outputs
    }
