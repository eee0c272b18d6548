"""Which columns of a data frame an estimator of scikit-learn needs, and of what kind each is.

A ColumnTransformer picks columns by name, so a pipeline that begins with one takes a data frame. What a column holds is
seen from what was fitted on it: categories of text, a text vectorizer, or else numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from msm.runtime.formats.base import Array
from msm.runtime.protocols.tensors import DATATYPES
from msm.runtime.signature import Datatype, Tensor


def takes_names(estimator: Any) -> bool:
    """Whether the estimator must be given a data frame: it picks columns by name somewhere at its beginning."""
    if not _names(estimator):
        return False
    for part in _beginnings(estimator):
        for _, _, chosen in getattr(part, "transformers_", ()):
            if any(isinstance(column, str) for column in _listed(chosen)):
                return True
    return False


def columns(estimator: Any) -> tuple[Tensor, ...]:
    """One tensor of shape [-1] for each column that the estimator uses, in the order of fitting.

    A column that the ColumnTransformer drops need not come, and of what type it was is not known.
    """
    kinds = dict(_kinds(estimator))
    used = _used(estimator)
    return tuple(Tensor(name, _datatype(kinds.get(name)), (-1,)) for name in _names(estimator) if name in used)


def _used(estimator: Any) -> set[str]:
    first = estimator
    while steps := getattr(first, "steps", None):
        first = steps[0][1]
    names = _names(first)
    if not hasattr(first, "transformers_"):
        return set(_names(estimator))
    kept = [chosen for _, transformer, chosen in first.transformers_ if not _is_drop(transformer)]
    return {name for chosen in kept for name in _chosen(names, chosen)}


def _is_drop(transformer: Any) -> bool:
    return isinstance(transformer, str) and transformer == "drop"


def example(estimator: Any, inputs: Sequence[Tensor]) -> dict[str, Array]:
    """One row that the estimator knows: of a column of categories the first one, else zero or empty text."""
    kinds = dict(_kinds(estimator))
    row: dict[str, Array] = {}
    for tensor in inputs:
        known = kinds.get(tensor.name)
        shape = tensor.example_shape()
        if tensor.datatype == "BYTES":
            text = known[0] if isinstance(known, np.ndarray) and known.size and isinstance(known[0], str) else "a"
            row[tensor.name] = np.full(shape, text.encode(), object)
        else:
            number = known[0] if isinstance(known, np.ndarray) and known.size and known.dtype.kind in "biuf" else 0
            row[tensor.name] = np.full(shape, number)
    return row


def _names(estimator: Any) -> list[str]:
    return [str(name) for name in getattr(estimator, "feature_names_in_", ())]


def _beginnings(estimator: Any) -> Iterator[Any]:
    """The estimator and what inside of it is given the same columns: first steps, searches, unions."""
    yield estimator
    inner: list[Any] = []
    if steps := getattr(estimator, "steps", None):
        inner += [step for _, step in steps[:1]]
    if union := getattr(estimator, "transformer_list", None):
        inner += [part for _, part in union]
    for attribute in ("best_estimator_", "estimator_", "regressor_"):
        if (part := getattr(estimator, attribute, None)) is not None:
            inner.append(part)
    inner += [item.estimator for item in getattr(estimator, "calibrated_classifiers_", ())[:1]]
    inner += list(getattr(estimator, "estimators_", ())) if hasattr(estimator, "final_estimator_") else []
    for part in inner:
        yield from _beginnings(part)


def _kinds(estimator: Any) -> Iterator[tuple[str, Any]]:
    """Column → its categories, or "text", as far as a ColumnTransformer at the beginning tells."""
    for part in _beginnings(estimator):
        names = _names(part)
        for _, transformer, chosen in getattr(part, "transformers_", ()):
            wanted = _chosen(names, chosen)
            for fitted in _beginnings(transformer) if not isinstance(transformer, str) else ():
                if isinstance(chosen, str) or type(fitted).__module__.startswith("sklearn.feature_extraction.text"):
                    yield from ((name, "text") for name in wanted)
                known = getattr(fitted, "categories_", None)
                if known is None and hasattr(fitted, "statistics_") and fitted.statistics_.dtype == object:
                    known = [np.array([value], object) for value in fitted.statistics_]
                if known is not None and len(known) == len(wanted):
                    yield from zip(wanted, known, strict=True)
                for _, later in getattr(fitted, "steps", ())[1:]:
                    known = getattr(later, "categories_", None)
                    if known is not None and len(known) == len(wanted):
                        yield from zip(wanted, known, strict=True)


def _listed(chosen: Any) -> list[Any]:
    if isinstance(chosen, str | int | slice):
        return [chosen]
    try:
        return list(chosen)
    except TypeError:
        return []


def _chosen(names: Sequence[str], chosen: Any) -> list[str]:
    """The names of the columns that an entry of a ColumnTransformer takes."""
    listed = _listed(chosen)
    if not isinstance(chosen, slice) and all(isinstance(column, str) for column in listed):
        return listed
    try:
        return [str(name) for name in np.asarray(names, object)[chosen if isinstance(chosen, slice) else listed]]
    except (IndexError, TypeError):
        return []


def _datatype(known: Any) -> Datatype:
    if known is None:
        return "FP64"
    if isinstance(known, np.ndarray):
        if known.dtype.kind in "iub":
            return DATATYPES.get(known.dtype, "INT64")  # type: ignore[return-value]  # a datatype
        if known.dtype.kind == "f":
            return "FP64"
    return "BYTES"
