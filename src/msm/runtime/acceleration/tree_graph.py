"""An ONNX graph that computes what a `TreeModel` says, in its own precision and in the order of its trees.

Operator `TreeEnsemble` (ai.onnx.ml 5) compares and sums in the type of its tensors, FP64 too, where the older tree
operators round to FP32. A leaf of it adds to one score only, so a tree whose leaves hold several classes is given
several times, each time with another class of each leaf; scikit-learn's usual leaves hold one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from msm.runtime.acceleration.trees import Forest, TreeModel
from msm.runtime.formats.base import Array

OPSET: Final = 18
ML_OPSET: Final = 5
IR_VERSION: Final = 9
MOST_COPIES: Final = 4  # of a tree on average; beyond it the general converters do better
_LEQ, _LT = 0, 1


@dataclass(frozen=True, slots=True)
class Nodes:
    """The attributes of the operator: inner nodes, and leaves with one target each."""

    roots: list[int]
    feature: Array
    split: Array
    missing_true: Array
    true_id: Array
    true_leaf: Array
    false_id: Array
    false_leaf: Array
    leaf_target: Array
    leaf_weight: Array


def nodes_of(forest: Forest, base: Array | None) -> Nodes | None:
    """The operator's tables; the first trees hold `base`. None when trees would have to be given too often."""
    parts: list[tuple[Array, ...]] = []
    roots: list[int] = []
    inner = leaves = 0
    if base is not None:
        for target, value in enumerate(base):
            zero, two = np.zeros(1, np.int64), np.ones(1, bool)
            split = zero.astype(forest.threshold.dtype)
            weight = np.array([value], forest.threshold.dtype)
            parts.append((zero, split, two, zero + leaves, two, zero + leaves, two, zero + target, weight))
            roots.append(inner)
            inner, leaves = inner + 1, leaves + 1
    for tree, span in enumerate(_spans(forest)):
        for copy in _copies(forest, span, int(forest.target[tree])):
            parts.append(_shifted(copy, inner, leaves))
            roots.append(inner)
            inner, leaves = inner + len(copy[0]), leaves + len(copy[7])
    if len(parts) > MOST_COPIES * len(forest.roots) + forest.scores:
        return None
    return Nodes(roots, *(np.concatenate(column) for column in zip(*parts, strict=True)))


def _spans(forest: Forest) -> list[slice]:
    ends = [*forest.roots[1:].tolist(), len(forest.left)]
    return [slice(start, end) for start, end in zip(forest.roots.tolist(), ends, strict=True)]


def _shifted(tables: tuple[Array, ...], inner: int, leaves: int) -> tuple[Array, ...]:
    """The tables of one tree, its children counted from the first node and leaf of all."""
    feature, split, missing, true_id, true_leaf, false_id, false_leaf, target, weight = tables
    true_id = true_id + np.where(true_leaf, leaves, inner)
    false_id = false_id + np.where(false_leaf, leaves, inner)
    return feature, split, missing, true_id, true_leaf, false_id, false_leaf, target, weight


def _copies(forest: Forest, span: slice, first: int) -> list[tuple[Array, ...]]:
    """One tree as often as its leaves have classes."""
    left, right = forest.left[span] - span.start, forest.right[span] - span.start
    is_leaf = forest.left[span] < 0
    values = forest.values[span][is_leaf]
    inner = np.flatnonzero(~is_leaf)
    order = np.where(is_leaf, np.cumsum(is_leaf) - 1, np.cumsum(~is_leaf) - 1)  # index among its kind
    if len(inner):
        shape = (
            forest.feature[span][inner], forest.threshold[span][inner], forest.missing_left[span][inner],
            order[left[inner]], is_leaf[left[inner]], order[right[inner]], is_leaf[right[inner]],
        )  # fmt: skip
    else:  # a tree of one leaf: both ways lead to it
        zero, yes = np.zeros(1, np.int64), np.ones(1, bool)
        shape = (zero, zero.astype(forest.threshold.dtype), yes, zero, yes, zero, yes)
    # The classes of each leaf, those that it has first and in their order.
    ranked = np.argsort(values == 0, axis=1, kind="stable")
    most = max(1, int((values != 0).sum(axis=1).max()))
    rows = np.arange(len(values))
    return [
        (*shape, first + ranked[:, place], values[rows, ranked[:, place]].astype(forest.threshold.dtype))
        for place in range(most)
    ]


class _Graph:
    """Collects nodes and constants."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Append a node; the name of its one output."""
        from onnx import helper

        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [name], **attributes))
        return name

    def constant(self, value: Array) -> str:
        """A constant; its name."""
        from onnx import numpy_helper

        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(value, name))
        return name


def graph(model: TreeModel, features: int) -> Any | None:
    """The ONNX model with input `X` and outputs `score` and, with classes, `label`. None for one that has too many
    classes in its leaves. Raises ImportError."""
    from onnx import TensorProto, helper

    nodes = nodes_of(model.forest, model.base)
    if nodes is None:
        return None
    dtype = model.forest.threshold.dtype
    made = _Graph()
    raw = _ensemble(made, nodes, model.forest)
    if model.divide_by is not None:
        raw = made.add("Div", raw, made.constant(np.array(model.divide_by, dtype)))
    score = _linked(made, raw, model, dtype)
    kind = TensorProto.DOUBLE if dtype == np.float64 else TensorProto.FLOAT
    made.nodes.append(helper.make_node("Identity", [score], ["score"]))
    outputs = [helper.make_tensor_value_info("score", kind, [None, None])]
    if model.classes is not None:
        classes = _labels(model.classes)
        index = _label(made, raw, score, model, dtype)
        made.nodes.append(helper.make_node("Gather", [made.constant(classes), index], ["label"], axis=0))
        label_kind = helper.np_dtype_to_tensor_dtype(classes.dtype)
        outputs.append(helper.make_tensor_value_info("label", label_kind, [None]))
    inputs = [helper.make_tensor_value_info("X", kind, [None, features])]
    body = helper.make_graph(made.nodes, "trees", inputs, outputs, made.constants)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", ML_OPSET)]
    return helper.make_model(body, opset_imports=opsets, ir_version=IR_VERSION)


def _labels(classes: Array) -> Array:
    return classes.astype(object) if classes.dtype.kind in "US" else classes


def _ensemble(made: _Graph, nodes: Nodes, forest: Forest) -> str:
    from onnx import numpy_helper

    mode = _LT if forest.strict else _LEQ
    return made.add(
        "TreeEnsemble",
        "X",
        domain="ai.onnx.ml",
        aggregate_function=1,
        post_transform=0,
        n_targets=forest.scores,
        tree_roots=nodes.roots,
        nodes_featureids=nodes.feature.tolist(),
        nodes_modes=numpy_helper.from_array(np.full(len(nodes.feature), mode, np.uint8), "modes"),
        nodes_splits=numpy_helper.from_array(nodes.split, "splits"),
        nodes_missing_value_tracks_true=nodes.missing_true.astype(np.int64).tolist(),
        nodes_truenodeids=nodes.true_id.tolist(),
        nodes_trueleafs=nodes.true_leaf.astype(np.int64).tolist(),
        nodes_falsenodeids=nodes.false_id.tolist(),
        nodes_falseleafs=nodes.false_leaf.astype(np.int64).tolist(),
        leaf_targetids=nodes.leaf_target.tolist(),
        leaf_weights=numpy_helper.from_array(nodes.leaf_weight, "weights"),
    )


def _linked(made: _Graph, raw: str, model: TreeModel, dtype: Any) -> str:
    if model.link == "softmax":
        return made.add("Softmax", raw, axis=1)
    if model.link == "identity":
        return raw
    scaled = raw if model.steepness == 1.0 else made.add("Mul", raw, made.constant(np.array(model.steepness, dtype)))
    positive = made.add("Sigmoid", scaled)
    if not model.pair:
        return positive
    negative = made.add("Sub", made.constant(np.array(1.0, dtype)), positive)
    return made.add("Concat", negative, positive, axis=1)


def _label(made: _Graph, raw: str, score: str, model: TreeModel, dtype: Any) -> str:
    """The index of the class, by the library's own rule for ties."""
    from onnx import TensorProto

    if model.label == "argmax":
        return made.add("ArgMax", raw if model.link == "softmax" else score, axis=1, keepdims=0)
    operator = "Greater" if model.label == "raw>0" else "GreaterOrEqual"
    positive = made.add(operator, raw, made.constant(np.array(0.0, dtype)))
    number = made.add("Cast", positive, to=TensorProto.INT64)
    return made.add("Reshape", number, made.constant(np.array([-1], np.int64)))
