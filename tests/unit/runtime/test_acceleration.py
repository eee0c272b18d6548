"""What is pure of acceleration: comparing, deciding, drawing inputs at thresholds, laying trees out for a graph."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from msm.kit.errors import InvalidInput
from msm.runtime.acceleration import inputs, plan
from msm.runtime.acceleration.convert import Original
from msm.runtime.acceleration.decide import Times, decide
from msm.runtime.acceleration.model import AcceleratedModel
from msm.runtime.acceleration.tree_graph import Nodes, nodes_of
from msm.runtime.acceleration.trees import Forest, Tree, joined
from msm.runtime.acceleration.verify import Comparison, Tolerance, compare, exact_outputs
from msm.runtime.signature import Signature, Tensor

CLASSIFIER = Signature(
    inputs=(Tensor("input-0", "FP64", (-1, 3)),),
    outputs=(Tensor("predict", "INT64", (-1,)), Tensor("predict_proba", "FP64", (-1, 2))),
)
EXACT = exact_outputs(CLASSIFIER.outputs, labels="predict")


def answer(labels: list[int], scores: list[list[float]], dtype: Any = np.float64) -> dict[str, np.ndarray]:
    return {"predict": np.array(labels, np.int64), "predict_proba": np.array(scores, dtype)}


GOOD = answer([0, 1], [[0.75, 0.25], [0.25, 0.75]])


@pytest.mark.parametrize(
    ("got", "why"),
    [
        (GOOD, None),
        (answer([0, 1], [[0.75, 0.25], [0.2500009, 0.7499991]]), None),
        (answer([0, 1], [[0.75, 0.25], [0.26, 0.74]]), "differs in 2 of 4 values"),
        (answer([1, 1], [[0.75, 0.25], [0.25, 0.75]]), "output 'predict' differs in 1 of 2 values, first 0 and 1"),
        (answer([0, 1], [[0.75, 0.25], [0.25, 0.75]], np.float32), "FP64, the model gave FP32"),
        (answer([0], [[0.75, 0.25]]), "instead of INT64 [2]"),
        (answer([0, 1], [[0.75, math.nan], [0.25, 0.75]]), "differs in 1 of 4"),
        ({"predict": GOOD["predict"]}, "did not give output 'predict_proba'"),
    ],
)
def test_answers_are_compared(got: dict[str, np.ndarray], why: str | None):
    found = compare(CLASSIFIER, EXACT, GOOD, got)
    assert found.agrees == (why is None)
    assert why is None or why in (found.why or "")


def test_labels_have_no_tolerance_even_as_floating_numbers():
    signature = Signature(outputs=(Tensor("predict", "FP64", (-1,)),))
    want, got = {"predict": np.array([1.0])}, {"predict": np.array([1.0 + 1e-12])}
    assert compare(signature, frozenset(), want, got).agrees
    assert not compare(signature, exact_outputs(signature.outputs, labels="predict"), want, got).agrees


def test_nan_and_infinities_are_equal_only_to_themselves():
    signature = Signature(outputs=(Tensor("y", "FP64", (-1,)),))
    odd = {"y": np.array([math.nan, math.inf, -math.inf])}
    assert compare(signature, frozenset(), odd, odd).agrees
    for wrong in ([0.0, math.inf, -math.inf], [math.nan, 1e308, -math.inf], [math.nan, math.inf, math.inf]):
        assert not compare(signature, frozenset(), odd, {"y": np.array(wrong)}).agrees


finite = st.floats(-1e12, 1e12)


@given(st.lists(st.tuples(finite, finite), min_size=1, max_size=20))
def test_scores_agree_within_the_stated_tolerance_and_not_beyond(pairs: list[tuple[float, float]]):
    signature = Signature(outputs=(Tensor("y", "FP64", (-1,)),))
    a, b = (np.array(side) for side in zip(*pairs, strict=True))
    tolerance = Tolerance(rtol=1e-3, atol=1e-2)
    found = compare(signature, frozenset(), {"y": a}, {"y": b}, tolerance)
    assert found.agrees == bool(np.allclose(b, a, rtol=1e-3, atol=1e-2))
    assert found.largest == float((np.abs(a - b) / np.maximum(1, np.abs(a))).max())
    assert found.rows == len(pairs)


AGREED = Comparison(rows=1000, largest=1e-9)


@pytest.mark.parametrize(
    ("comparison", "one", "batch", "used", "reason"),
    [
        (AGREED, Times(10e-3, 1e-4), Times(20e-3, 1e-3), True, "100.0 times faster for one row, 20.0 for a batch"),
        (AGREED, Times(1e-4, 2e-4), Times(20e-3, 1e-3), False, "slower for one row: 0.50 times"),
        (AGREED, Times(1e-3, 1e-4), Times(1e-3, 2e-3), False, "slower for a batch: 0.50 times"),
        (AGREED, Times(1.05e-3, 1e-3), Times(1.02e-3, 1e-3), False, "hardly faster"),
        (AGREED, None, None, False, "could not be measured"),
        (Comparison(), Times(1, 0.1), Times(1, 0.1), False, "no inputs"),
        (Comparison(5, 1.0, "labels differ"), Times(1, 0.1), Times(1, 0.1), False, "not agree with the original: lab"),
    ],
)  # fmt: skip
def test_it_is_used_only_if_it_agrees_and_is_faster(
    comparison: Comparison, one: Times | None, batch: Times | None, used: bool, reason: str
):
    verdict = decide(comparison, one, batch)
    assert verdict.used == used
    assert reason in verdict.reason


# ---- inputs


@given(st.floats(-1e30, 1e30))
def test_neighbours_of_a_threshold_are_on_both_sides_in_fp64_and_fp32(threshold: float):
    near = inputs.around(threshold)
    assert threshold in near
    assert np.nextafter(threshold, -np.inf) in near
    assert np.nextafter(threshold, np.inf) in near
    singles = near.astype(np.float32)
    assert (singles < np.float32(threshold)).any()
    assert (singles > np.float32(threshold)).any()


def grown(random: np.random.Generator, depth: int, features: int) -> Tree:
    """A tree with random splits; every inner node has both children."""
    rows: list[list[float]] = []

    def grow(level: int) -> int:
        index = len(rows)
        rows.append([0, 0.0, -1, -1, random.random()])
        if level < depth and random.random() < 0.9:
            rows[index][:2] = [int(random.integers(features)), float(random.normal())]
            rows[index][2] = grow(level + 1)
            rows[index][3] = grow(level + 1)
        return index

    grow(0)
    table = np.array(rows)
    return Tree(
        feature=table[:, 0].astype(np.int64),
        threshold=table[:, 1],
        left=table[:, 2].astype(np.int64),
        right=table[:, 3].astype(np.int64),
        missing_left=np.zeros(len(rows), bool),
        values=table[:, 4:],
    )


def visited(forest: Forest, root: int, row: np.ndarray) -> list[int]:
    """The nodes that a row comes to."""
    path = [root]
    while forest.left[path[-1]] >= 0:
        node = path[-1]
        left = row[forest.feature[node]] <= forest.threshold[node]
        path.append(int(forest.left[node] if left else forest.right[node]))
    return path


@given(st.integers(0, 2**32 - 1))
def test_every_reachable_threshold_is_met_from_both_sides(seed: int):
    random = np.random.default_rng(seed)
    forest = joined([grown(random, 4, 5) for _ in range(3)], [0, 0, 0], 1)
    rows = inputs.at_thresholds(forest, random.normal(size=(20, 5)), 10_000, random)
    seen: set[tuple[int, bool]] = set()
    for row in rows:
        for root in forest.roots.tolist():
            for node in visited(forest, root, row)[:-1]:
                if abs(row[forest.feature[node]] - forest.threshold[node]) <= 1e-6:
                    seen.add((node, bool(row[forest.feature[node]] <= forest.threshold[node])))
    for node in np.flatnonzero(forest.left >= 0).tolist():
        if reachable(forest, node):
            assert {(node, True), (node, False)} <= seen


def reachable(forest: Forest, node: int) -> bool:
    """Whether the splits above leave room around the node's own threshold."""
    parent, is_left = inputs.parents(forest)
    child, above = node, int(parent[node])
    feature, own = forest.feature[node], forest.threshold[node]
    bounds: dict[int, list[float]] = {}
    while above >= 0:
        low_high = bounds.setdefault(int(forest.feature[above]), [-math.inf, math.inf])
        threshold = float(forest.threshold[above])
        if is_left[child]:
            low_high[1] = min(low_high[1], threshold)
        else:
            low_high[0] = max(low_high[0], threshold)
        child, above = above, int(parent[above])
    low, high = bounds.get(int(feature), [-math.inf, math.inf])
    return low < own - 1e-6 and own + 1e-6 < high and all(a + 1e-6 < b for a, b in bounds.values())


class Nothing:
    """A model that has nothing to tell."""

    signature = Signature(inputs=(Tensor("a", "FP64", (-1,)), Tensor("b", "INT8", (-1, 1))))


def test_rows_become_columns_in_the_datatypes_of_the_signature():
    original = Original("sklearn", Nothing(), Nothing(), ("predict",), None)  # type: ignore[arg-type]
    for batch in inputs.drawn(original):
        assert (batch.inputs["a"].dtype, batch.inputs["a"].shape) == (np.float64, (batch.rows,))
        assert (batch.inputs["b"].dtype, batch.inputs["b"].shape) == (np.int8, (batch.rows, 1))


def test_draws_are_the_same_every_time():
    original = Original("sklearn", Nothing(), Nothing(), ("predict",), None)  # type: ignore[arg-type]
    for one, other in zip(inputs.drawn(original), inputs.drawn(original), strict=True):
        assert all((one.inputs[name] == other.inputs[name]).all() for name in one.inputs)


# ---- trees for a graph


def evaluated(nodes: Nodes, row: np.ndarray, scores: int) -> np.ndarray:
    """What the operator `TreeEnsemble` computes, by its definition."""
    sums = np.zeros(scores)
    for root in nodes.roots:
        node, leaf = root, -1
        while leaf < 0:
            yes = row[nodes.feature[node]] <= nodes.split[node]
            to, is_leaf = (
                (nodes.true_id[node], nodes.true_leaf[node]) if yes else (nodes.false_id[node], nodes.false_leaf[node])
            )
            node, leaf = (node, int(to)) if is_leaf else (int(to), -1)
        sums[nodes.leaf_target[leaf]] += nodes.leaf_weight[leaf]
    return sums


@given(st.integers(0, 2**32 - 1), st.integers(1, 4))
def test_trees_with_several_classes_in_a_leaf_sum_to_the_same(seed: int, classes: int):
    random = np.random.default_rng(seed)
    trees = []
    for _ in range(3):
        tree = grown(random, 3, 4)
        values = random.random((len(tree.left), classes)) * (random.random((len(tree.left), classes)) < 0.6)
        trees.append(Tree(tree.feature, tree.threshold, tree.left, tree.right, tree.missing_left, values))
    forest = joined(trees, [0, 0, 0], classes)
    base = random.random(classes)
    nodes = nodes_of(forest, base)
    assert nodes is not None
    for row in random.normal(size=(10, 4)):
        want = base.copy()
        for root in forest.roots.tolist():
            want = want + forest.values[visited(forest, root, row)[-1]]
        assert (evaluated(nodes, row, classes) == want).all()


# ---- what is refused


class Echo:
    """A session that gives its input back."""

    def run(self, names: list[str], feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        return [feeds["X"] for _ in names]


@pytest.mark.parametrize(
    ("refuses", "value", "word"),
    [
        (("nan",), math.nan, "NaN"),
        (("nan", "infinity"), -math.inf, "infinity"),
        (("huge",), 1e39, "beyond the range of FP32"),
        (("large",), -1e31, "beyond 1e+30"),
        (("infinity", "huge"), math.nan, None),
        (("huge",), 3.4e38, None),
        (("nan", "large"), 1e29, None),
        ((), math.nan, None),
    ],
)
def test_numbers_that_the_original_raises_on_are_refused(
    refuses: tuple[plan.Special, ...], value: float, word: str | None
):
    signature = Signature((Tensor("x", "FP64", (-1, 2)),), (Tensor("y", "FP64", (-1, 2)),))
    made = plan.Plan("echo", signature, (plan.Feed("x", "X"),), (plan.Take("y", "X"),), refuses)
    model = AcceleratedModel(Echo(), plan.decode(plan.encode(made)))
    row = np.array([[1.0, value]])
    if word is None:
        np.testing.assert_array_equal(model.predict({"x": row})["y"], row)
    else:
        with pytest.raises(InvalidInput, match=f"input 'x' holds .*{word.replace('+', '[+]')}"):
            model.predict({"x": row})
