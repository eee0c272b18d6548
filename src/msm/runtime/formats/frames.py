"""Named inputs as the columns of a data frame, and text as Python strings: what models of tables take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from msm.kit.errors import InvalidInput
from msm.runtime.formats.base import Array


def frame(names: Sequence[str], inputs: dict[str, Array]) -> Any:
    """A pandas data frame with the inputs as columns, in the order of `names`; one that did not come is left out.

    Each is [rows] or [rows, 1]. Raises InvalidInput for another shape, for columns of different lengths, or for text
    that is not UTF-8.
    """
    import pandas as pd

    columns: dict[str, Any] = {}
    rows = None
    for name in names:
        column = inputs.get(name)
        if column is None:
            continue
        if column.ndim == 0 or column.size != column.shape[0]:
            raise InvalidInput(
                f"input {name!r} is a column, it must have one value in each row", reason="shape_mismatch"
            )
        if rows not in (None, column.shape[0]):
            raise InvalidInput(
                f"input {name!r} has {column.shape[0]} rows, the inputs before it have {rows}", reason="shape_mismatch"
            )
        rows = column.shape[0]
        flat = column.reshape(-1)
        columns[name] = text(name, flat) if flat.dtype == object else flat
    return pd.DataFrame(columns)


def text(name: str, array: Array) -> Array:
    """BYTES as strings, in the same shape; numbers among them stay. Raises InvalidInput unless they are UTF-8."""
    try:
        decoded = [item.decode() if isinstance(item, bytes) else item for item in array.reshape(-1).tolist()]
    except UnicodeDecodeError as error:
        raise InvalidInput(f"text input {name!r} holds bytes that are not UTF-8", reason="not_text") from error
    strings = np.empty(len(decoded), object)
    strings[:] = decoded
    return strings.reshape(array.shape)


def strings(name: str, array: Array) -> list[str]:
    """A BYTES input as a flat list of strings. Raises InvalidInput unless all are UTF-8."""
    return [str(item) for item in text(name, array).reshape(-1).tolist()]
