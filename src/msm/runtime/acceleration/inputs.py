"""Inputs on which a converted model is compared with its original: recorded ones, and ones drawn to find differences.

Trees are asked around their own thresholds (exactly on them, one step of FP64 and of FP32 to both sides, and between a
threshold and its FP32 rounding), each time with a row that really comes to that node. Other models are asked where
their training data lay, as far as they keep its statistics. Everything is drawn from a fixed seed. Pure but for
`recorded`, which reads one file.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from msm.kit.errors import InvalidInput, MsmError
from msm.runtime.acceleration.convert import Original, Unfit
from msm.runtime.acceleration.trees import Forest
from msm.runtime.formats.base import NUMERIC, Array
from msm.runtime.protocols import oip_json
from msm.runtime.protocols.tensors import DTYPES
from msm.runtime.signature import Signature
from msm.runtime.validate import check_inputs

SEED: Final = 20240229
ROWS: Final = 1000  # drawn by statistics
NODES: Final = 1500  # whose thresholds are asked; all of a smaller model
SAMPLES_FILE: Final = "samples.json"
SAMPLES: Final = "samples"
_EDGES: Final = (0.0, -0.0, 1e-310, -1e-310, 1e-46, 1e-40, -1e-40, 1e-20, -1e-20, 1e15, -1e15, 1e30, -1e30)


@dataclass(frozen=True, slots=True)
class Batch:
    """Some rows and where they come from."""

    kind: str
    inputs: dict[str, Array]

    @property
    def rows(self) -> int:
        return next(len(array) for array in self.inputs.values())


def drawn(original: Original) -> list[Batch]:
    """The generated batches; the first is drawn by statistics. Raises Unfit when the number of features is open."""
    random = np.random.default_rng(SEED)
    signature = original.signature
    count = feature_count(original)
    center, spread = statistics(original, count)
    rows = by_statistics(center, spread, ROWS, random)
    found = [Batch("statistics", to_inputs(signature, rows))]
    forest, back = _forest_behind(original)
    if forest is not None:
        seen = rows if back is None else back.forward(rows)
        near = at_thresholds(forest, seen, NODES, random)
        if len(near):
            found.append(Batch("thresholds", to_inputs(signature, near if back is None else back.backward(near))))
    edges = rows[:200].copy()
    places = random.random(edges.shape) < 0.3
    edges[places] = random.choice(_EDGES, size=int(places.sum()))
    found.append(Batch("edges", to_inputs(signature, edges)))
    return found


def feature_count(original: Original) -> int:
    """The number of numbers in a row. Raises Unfit."""
    tensors = original.signature.inputs
    if len(tensors) > 1:
        return len(tensors)
    shape = tensors[0].shape
    if len(shape) != 2 or shape[0] != -1 or shape[1] < 1:
        raise Unfit(f"input {tensors[0].name!r} has shape {list(shape)}, only [-1, number of features] is converted")
    return shape[1]


def to_inputs(signature: Signature, rows: Array) -> dict[str, Array]:
    """A matrix [rows, features] in FP64 as the inputs of a signature: the matrix itself or a column for each."""
    if len(signature.inputs) == 1:
        tensor = signature.inputs[0]
        return {tensor.name: _cast(rows, DTYPES[tensor.datatype])}
    return {
        tensor.name: _cast(rows[:, index], DTYPES[tensor.datatype]).reshape(-1, *[1] * (len(tensor.shape) - 1))
        for index, tensor in enumerate(signature.inputs)
    }


def _cast(values: Array, dtype: Any) -> Array:
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        with np.errstate(invalid="ignore"):
            # FP64 cannot hold the largest 64-bit numbers, so the range is kept a little narrower.
            whole: Array = np.clip(np.nan_to_num(np.rint(values)), limits.min, float(limits.max) * (1 - 1e-9))
            return whole.astype(dtype)
    with np.errstate(over="ignore", under="ignore"):
        return np.ascontiguousarray(values, dtype)


def by_statistics(center: Array, spread: Array, count: int, random: np.random.Generator) -> Array:
    """Normal draws around `center`, near, usual and far; some are rounded as people write numbers."""
    scale = random.choice([0.3, 1.0, 3.0], size=(count, 1))
    rows: Array = center + spread * scale * random.normal(size=(count, len(center)))
    rows[: count // 10] = np.round(rows[: count // 10], 1)
    rows[count // 10 : count // 5] = np.rint(rows[count // 10 : count // 5])
    return rows


# ---- where the training data lay


def statistics(original: Original, count: int) -> tuple[Array, Array]:
    """Centre and spread of each feature, as far as the model tells; else 0 and 1."""
    if original.tree_model is not None:
        return _of_splits(original.tree_model.forest, count)
    for part in _parts(original.inner):
        found = _of_part(part, count)
        if found is not None:
            return found
    return np.zeros(count), np.ones(count)


def _of_splits(forest: Forest, count: int) -> tuple[Array, Array]:
    feature, threshold = forest.splits
    center, spread = np.zeros(count), np.ones(count)
    for index in np.unique(feature):
        own = threshold[feature == index].astype(np.float64)
        own = own[np.isfinite(own)]
        if own.size:
            center[index], spread[index] = np.median(own), max(float(np.ptp(own)) / 2, abs(float(own[0])) * 0.1, 1e-6)
    return center, spread


def _parts(estimator: Any) -> list[Any]:
    """The estimator, or the first step of a pipeline: what is behind it does not see the inputs themselves."""
    steps = getattr(estimator, "steps", None)
    return [estimator] if steps is None else [step for _, step in steps[:1] if step not in (None, "passthrough")]


def _of_part(part: Any, count: int) -> tuple[Array, Array] | None:
    def get(name: str) -> Array | None:
        value = getattr(part, name, None)
        if value is None or hasattr(value, "toarray"):
            return None
        array = np.asarray(value)
        return array.astype(np.float64) if array.dtype.kind in "fiu" and array.shape[-1:] == (count,) else None

    low, high = get("data_min_"), get("data_max_")
    if low is not None and high is not None:
        return (low + high) / 2, (high - low) / 2 + 1e-6
    for middle, wide in (("mean_", "scale_"), ("center_", "scale_")):
        center, spread = get(middle), get(wide)
        if center is not None:
            return center, np.ones(count) if spread is None else spread
    for name in ("theta_", "means_", "cluster_centers_", "support_vectors_", "_fit_X", "statistics_", "max_abs_"):
        points = get(name)
        if points is not None and points.size:
            points = np.nan_to_num(np.atleast_2d(points))
            return points.mean(axis=0), points.std(axis=0) + np.abs(points).max(axis=0) * 0.1 + 1e-6
    return None


# ---- trees


class _Way:
    """From the inputs to what the trees behind a pipeline's other steps see, and back."""

    def __init__(self, steps: Sequence[Any]) -> None:
        self._steps = steps

    def forward(self, rows: Array) -> Array:
        for step in self._steps:
            rows = np.asarray(step.transform(rows), np.float64)
        return rows

    def backward(self, rows: Array) -> Array:
        for step in reversed(self._steps):
            rows = np.asarray(step.inverse_transform(rows), np.float64)
        return rows


def _forest_behind(original: Original) -> tuple[Forest | None, _Way | None]:
    """The trees of the model, also behind steps that can be inverted."""
    if original.tree_model is not None:
        return original.tree_model.forest, None
    from msm.runtime.acceleration.trees import of_sklearn

    steps = [step for _, step in getattr(original.inner, "steps", ()) if step not in (None, "passthrough")]
    if len(original.signature.inputs) > 1 or len(steps) < 2:
        return None, None
    if not all(hasattr(step, "transform") and hasattr(step, "inverse_transform") for step in steps[:-1]):
        return None, None
    try:
        found = of_sklearn(steps[-1])
    except (AttributeError, KeyError, IndexError, TypeError, ValueError):
        return None, None
    return (None, None) if found is None else (found.forest, _Way(steps[:-1]))


def at_thresholds(forest: Forest, rows: Array, most: int, random: np.random.Generator) -> Array:
    """Rows [m, features] that come to inner nodes and stand on, just below and just above the threshold there.

    `rows` give the values that the way to a node leaves open. At most `most` nodes are chosen.
    """
    inner = np.flatnonzero(forest.left >= 0)
    if len(inner) > most:
        inner = np.sort(random.choice(inner, most, replace=False))
    parent, is_left = parents(forest)
    made = []
    for node in inner.tolist():
        row = rows[random.integers(len(rows))].copy()
        _lead_to(forest, parent, is_left, node, row)
        near = around(float(forest.threshold[node]))
        block = np.tile(row, (len(near), 1))
        block[:, forest.feature[node]] = near
        made.append(block)
    return np.concatenate(made) if made else rows[:0]


def around(threshold: float) -> Array:
    """The threshold, its neighbours in FP64 and FP32, and what lies between it and its FP32 rounding."""
    with np.errstate(over="ignore"):
        single = np.float32(threshold)
        values = [
            threshold, np.nextafter(threshold, -np.inf), np.nextafter(threshold, np.inf), float(single),
            float(np.nextafter(single, np.float32(-np.inf))), float(np.nextafter(single, np.float32(np.inf))),
            threshold + (float(single) - threshold) / 2,
        ]  # fmt: skip
    found = np.unique(np.array(values, np.float64))
    return found[np.isfinite(found)]


def parents(forest: Forest) -> tuple[Array, Array]:
    """For each node its parent (-1 for a root), and whether it is the left child."""
    parent = np.full(len(forest.left), -1, np.int64)
    is_left = np.zeros(len(forest.left), bool)
    inner = np.flatnonzero(forest.left >= 0)
    parent[forest.left[inner]] = inner
    parent[forest.right[inner]] = inner
    is_left[forest.left[inner]] = True
    return parent, is_left


def _lead_to(forest: Forest, parent: Array, is_left: Array, node: int, row: Array) -> None:
    """Change `row` so that it comes to `node`: clip its features to what the nodes above ask for."""
    low: dict[int, float] = {}
    high: dict[int, float] = {}
    child, above = node, int(parent[node])
    while above >= 0:
        feature, threshold = int(forest.feature[above]), float(forest.threshold[above])
        if is_left[child]:
            high[feature] = min(high.get(feature, np.inf), threshold)
        else:
            low[feature] = max(low.get(feature, -np.inf), threshold)
        child, above = above, int(parent[above])
    for feature in low.keys() | high.keys():
        bottom, top = low.get(feature, -np.inf), high.get(feature, np.inf)
        if bottom < row[feature] < top:
            continue
        if np.isfinite(bottom) and np.isfinite(top):
            row[feature] = bottom + (top - bottom) / 2
        elif np.isfinite(top):
            row[feature] = top - max(abs(top) * 0.01, 1e-6)
        else:
            row[feature] = bottom + max(abs(bottom) * 0.01, 1e-6)


# ---- numbers that models may refuse


def specials(kind: str) -> tuple[float, ...]:
    """The numbers of a kind that a model may raise on."""
    largest = float(np.finfo(np.float32).max)
    return {
        "nan": (np.nan,),
        "infinity": (np.inf, -np.inf),
        "huge": (largest * 1.01, -largest * 1.01, 1e300),
        "large": (1e31, -1e31, largest, 1e300),
    }[kind]


def with_specials(original: Original, kind: str) -> Batch | None:
    """Usual rows, in each of which one feature is a special number; None where no input can hold one."""
    floating = [index for index, tensor in enumerate(original.signature.inputs) if DTYPES[tensor.datatype].kind == "f"]
    if not floating or (kind in ("huge", "large") and original.signature.inputs[floating[0]].datatype != "FP64"):
        return None
    random = np.random.default_rng(SEED)
    count = feature_count(original)
    features = np.arange(count) if len(original.signature.inputs) == 1 else np.array(floating)
    if len(features) > 64:
        features = random.choice(features, 64, replace=False)
    center, spread = statistics(original, count)
    values = specials(kind)
    rows = by_statistics(center, spread, len(features) * len(values), random)
    for index in range(len(rows)):
        rows[index, features[index // len(values)]] = values[index % len(values)]
    return Batch(kind, to_inputs(original.signature, rows))


# ---- recorded


def recorded(original: Original, path: Path, given: Any) -> Batch | None:
    """The samples of the version: its parameter `samples`, else the file `samples.json` in the artifact's folder.

    Both hold a request of the Open Inference Protocol, or the rows of the one input, or values by input. Raises
    InvalidInput when they cannot be read or do not fit the signature.
    """
    if given is None:
        file = path / SAMPLES_FILE
        if not path.is_dir() or not file.is_file():
            return None
        try:
            given = json.loads(file.read_bytes())
        except ValueError as error:
            raise InvalidInput(f"{SAMPLES_FILE} is not JSON", reason="invalid_samples") from error
    signature = original.signature
    try:
        call = oip_json.decode(msgspec.json.encode(_as_request(signature, given)), None)
        return Batch("recorded", dict(check_inputs(signature, NUMERIC, call.inputs)))
    except MsmError as error:
        raise InvalidInput(f"the samples do not fit: {error.message}", reason="invalid_samples") from error


def _as_request(signature: Signature, given: Any) -> Any:
    if isinstance(given, dict) and "inputs" in given:
        return given
    by_name = given if isinstance(given, dict) else {signature.inputs[0].name: given}
    datatypes = {tensor.name: tensor.datatype for tensor in signature.inputs}
    inputs = []
    for name, values in by_name.items():
        try:
            shape = list(np.shape(values))
        except ValueError as error:
            raise InvalidInput(f"the samples of input {name!r} are ragged", reason="invalid_samples") from error
        inputs.append({"name": name, "datatype": datatypes.get(name, "FP64"), "shape": shape, "data": values})
    return {"inputs": inputs}
