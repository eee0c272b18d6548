"""Does the converted model answer as the original does? Pure: compares what both gave for the same rows."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from msm.kit.errors import MsmError
from msm.runtime.formats.base import Array
from msm.runtime.signature import Signature, Tensor
from msm.runtime.validate import check_outputs


@dataclass(frozen=True, slots=True)
class Tolerance:
    """Scores agree when |a - b| <= atol + rtol * |a|, a being the original's. Labels have no tolerance."""

    rtol: float = 1e-5
    atol: float = 1e-6


TOLERANCE: Final = Tolerance()


@dataclass(frozen=True, slots=True)
class Comparison:
    """`largest` is the largest difference of scores, absolute for those up to 1 and relative above; `why` tells of the
    first disagreement."""

    rows: int = 0
    largest: float = 0.0
    why: str | None = None

    @property
    def agrees(self) -> bool:
        return self.why is None

    def and_then(self, other: Comparison) -> Comparison:
        """Both comparisons in one."""
        return Comparison(self.rows + other.rows, max(self.largest, other.largest), self.why or other.why)


def compare(
    signature: Signature,
    exact: Collection[str],
    want: Mapping[str, Any],
    got: Mapping[str, Any],
    tolerance: Tolerance = TOLERANCE,
) -> Comparison:
    """Compare two answers. Names, datatypes and shapes must be equal, and the values of outputs that are not floating
    or that `exact` names; NaN equals NaN, an infinity only itself."""
    try:
        wanted = check_outputs(signature, want)
        given = check_outputs(signature, got)
    except MsmError as error:
        return Comparison(why=f"an answer does not fit the signature: {error.message}")
    total = Comparison()
    for name, (datatype, array) in wanted.items():
        if name not in given:
            return Comparison(why=f"output {name!r} is missing")
        other_type, other = given[name]
        if (datatype, array.shape) != (other_type, other.shape):
            why = f"output {name!r} is {other_type} {list(other.shape)} instead of {datatype} {list(array.shape)}"
            return Comparison(why=why)
        same_scores = array.dtype.kind == "f" and name not in exact
        found = _scores(name, array, other, tolerance) if same_scores else _labels(name, array, other)
        total = total.and_then(found)
    rows = next((len(array) for _, array in wanted.values() if array.ndim), 0)
    return Comparison(rows, total.largest, total.why)


def _labels(name: str, want: Array, got: Array) -> Comparison:
    differ = ~((want == got) | ((want != want) & (got != got)))
    count = int(np.count_nonzero(differ))
    if not count:
        return Comparison()
    first = int(np.flatnonzero(differ.reshape(-1))[0])
    values = f"{_shown(want, first)} and {_shown(got, first)}"
    return Comparison(why=f"output {name!r} differs in {count} of {want.size} values, first {values}")


def _scores(name: str, want: Array, got: Array, tolerance: Tolerance) -> Comparison:
    a, b = want.astype(np.float64), got.astype(np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore", over="ignore"):
        difference = np.where(same, 0.0, np.abs(a - b))
        close = same | (difference <= tolerance.atol + tolerance.rtol * np.where(np.isfinite(a), np.abs(a), 0.0))
        measured = difference / np.maximum(1.0, np.abs(a))
    finite = measured[np.isfinite(measured)]
    largest = float(finite.max()) if finite.size else 0.0
    if close.all():
        return Comparison(largest=largest)
    first = int(np.flatnonzero(~close.reshape(-1))[0])
    count = int(np.count_nonzero(~close))
    values = f"{_shown(want, first)} and {_shown(got, first)}"
    return Comparison(largest=largest, why=f"output {name!r} differs in {count} of {a.size} values, first {values}")


def _shown(array: Array, index: int) -> str:
    value = array.reshape(-1)[index]
    return f"{float(value):.9g}" if array.dtype.kind == "f" else str(value)[:50]


def exact_outputs(outputs: tuple[Tensor, ...], *, labels: str | None) -> frozenset[str]:
    """The outputs that admit no tolerance: all that are no floating numbers, and the labels, whatever type they are."""
    names = {tensor.name for tensor in outputs if tensor.datatype not in ("FP16", "BF16", "FP32", "FP64")}
    return frozenset(names | ({labels} if labels else set()))
