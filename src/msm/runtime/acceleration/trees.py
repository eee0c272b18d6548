"""Trees as one table of nodes, whatever library grew them: what the graph and the test inputs are made from.

The libraries differ in the type in which they compare, in what a missing value does and in how leaves become scores;
all of that is data here. A model with something that this cannot say (splits on categories, leaves that are linear
models, several outputs at once) is left to the general converters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from msm.runtime.formats.base import Array

Link = Literal["identity", "sigmoid", "softmax"]
Label = Literal["argmax", "raw>0", "raw>=0"]


@dataclass(frozen=True, slots=True)
class Forest:
    """The nodes of all trees one after another; children are indices into the same arrays, -1 for a leaf.

    An inner node goes left when its feature is at most the threshold (`strict`: below it), and by `missing_left` when
    the feature is NaN. `values` [nodes, w] are added to the scores from `target[tree]` on. Compared and summed in
    `dtype`, in the order of the trees.
    """

    roots: Array
    feature: Array
    threshold: Array
    left: Array
    right: Array
    missing_left: Array
    values: Array
    target: Array
    scores: int
    strict: bool = False

    @property
    def splits(self) -> tuple[Array, Array]:
        """Feature and threshold of every inner node."""
        inner = self.left >= 0
        return self.feature[inner], self.threshold[inner]


@dataclass(frozen=True, slots=True)
class TreeModel:
    """A forest and how its sums become answers.

    `base` [scores] is where the sums begin. `divide_by` makes means of them. `through_fp32`: the features are rounded
    to FP32 before they are compared. `pair`: one score becomes the probabilities of two classes. `classes` are the
    labels by index, None for what has no labels.
    """

    forest: Forest
    base: Array | None = None
    divide_by: int | None = None
    link: Link = "identity"
    steepness: float = 1.0
    pair: bool = False
    label: Label | None = None
    classes: Array | None = None
    through_fp32: bool = False


@dataclass(frozen=True, slots=True)
class Tree:
    """One tree with children counted from its own first node."""

    feature: Array
    threshold: Array
    left: Array
    right: Array
    missing_left: Array
    values: Array


def joined(trees: Sequence[Tree], target: Sequence[int], scores: int, *, strict: bool = False) -> Forest:
    """The trees as one table."""
    counts = np.array([len(tree.left) for tree in trees])
    offsets = np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.int64)

    def moved(side: str) -> Array:
        parts = [getattr(tree, side) for tree in trees]
        return np.concatenate(
            [np.where(part < 0, -1, part + offset) for part, offset in zip(parts, offsets, strict=True)]
        )

    return Forest(
        roots=offsets,
        feature=np.concatenate([tree.feature for tree in trees]),
        threshold=np.concatenate([tree.threshold for tree in trees]),
        left=moved("left"),
        right=moved("right"),
        missing_left=np.concatenate([tree.missing_left for tree in trees]),
        values=np.concatenate([tree.values for tree in trees]),
        target=np.array(target, np.int64),
        scores=scores,
        strict=strict,
    )


def of_sklearn(estimator: Any) -> TreeModel | None:
    """The trees of a scikit-learn estimator, None when it is none of the kinds known here. Raises AttributeError and
    the like for an estimator that only looks like one: the caller counts that as None."""
    if not type(estimator).__module__.startswith("sklearn."):
        return None
    name = type(estimator).__name__
    if name in ("RandomForestClassifier", "ExtraTreesClassifier", "RandomForestRegressor", "ExtraTreesRegressor"):
        return _averaged(estimator, estimator.estimators_)
    if name in ("DecisionTreeClassifier", "ExtraTreeClassifier", "DecisionTreeRegressor", "ExtraTreeRegressor"):
        return _averaged(estimator, [estimator])
    if name in ("GradientBoostingClassifier", "GradientBoostingRegressor"):
        return _boosted(estimator)
    if name in ("HistGradientBoostingClassifier", "HistGradientBoostingRegressor"):
        return _histogram(estimator)
    return None


def _tree(tree: Any, values: Array) -> Tree:
    nodes = tree.__getstate__()["nodes"]
    return Tree(
        feature=np.where(nodes["left_child"] < 0, 0, nodes["feature"]),
        threshold=nodes["threshold"],
        left=nodes["left_child"],
        right=nodes["right_child"],
        missing_left=nodes["missing_go_to_left"].astype(bool),
        values=values,
    )


def _averaged(estimator: Any, members: Sequence[Any]) -> TreeModel | None:
    if estimator.n_outputs_ != 1:
        return None
    classes = getattr(estimator, "classes_", None)
    trees = [_tree(member.tree_, member.tree_.value[:, 0, :]) for member in members]
    forest = joined(trees, [0] * len(trees), trees[0].values.shape[1])
    label: Label | None = None if classes is None else "argmax"
    count = len(trees) if len(trees) > 1 else None
    return TreeModel(forest, divide_by=count, label=label, classes=classes, through_fp32=True)


def _boosted(estimator: Any) -> TreeModel | None:
    """Gradient boosting: where the sums begin must not depend on the input."""
    if estimator.init_ != "zero" and type(estimator.init_).__name__ not in ("DummyClassifier", "DummyRegressor"):
        return None
    members = estimator.estimators_
    trees = [
        _tree(member.tree_, estimator.learning_rate * member.tree_.value[:, 0, :1]) for row in members for member in row
    ]
    scores = members.shape[1]
    forest = joined(trees, list(range(scores)) * len(members), scores)
    base = estimator._raw_predict_init(np.zeros((1, estimator.n_features_in_), np.float32))[0]
    steepness = 2.0 if type(estimator._loss).__name__ == "ExponentialLoss" else 1.0
    return _classified(estimator, forest, base, ("raw>=0", steepness), through_fp32=True)


def _histogram(estimator: Any) -> TreeModel | None:
    members = estimator._predictors
    tables = [member.nodes for row in members for member in row]
    classes = getattr(estimator, "classes_", None)
    if any(table["is_categorical"].any() for table in tables) or estimator._preprocessor is not None:
        return None
    if classes is None and type(estimator._loss.link).__name__ != "IdentityLink":
        return None
    trees = []
    for nodes in tables:
        leaf = nodes["is_leaf"].astype(bool)
        trees.append(
            Tree(
                feature=np.where(leaf, 0, nodes["feature_idx"]),
                threshold=np.where(leaf, 0.0, nodes["num_threshold"]),
                left=np.where(leaf, -1, nodes["left"].astype(np.int64)),
                right=np.where(leaf, -1, nodes["right"].astype(np.int64)),
                missing_left=nodes["missing_go_to_left"].astype(bool),
                values=nodes["value"][:, None],
            )
        )
    scores = len(members[0])
    forest = joined(trees, list(range(scores)) * len(members), scores)
    base = np.broadcast_to(np.asarray(estimator._baseline_prediction, np.float64).reshape(-1), (scores,))
    return _classified(estimator, forest, base, ("raw>0", 1.0), through_fp32=False)


def _classified(
    estimator: Any, forest: Forest, base: Array, binary: tuple[Label, float], *, through_fp32: bool
) -> TreeModel:
    """The answers of boosting; `binary` is the rule for the label and the steepness where there is one score."""
    classes = getattr(estimator, "classes_", None)
    if classes is None:
        return TreeModel(forest, base=base, through_fp32=through_fp32)
    if forest.scores > 1:
        return TreeModel(forest, base=base, link="softmax", label="argmax", classes=classes, through_fp32=through_fp32)
    label, steepness = binary
    return TreeModel(
        forest, base=base, link="sigmoid", steepness=steepness, pair=True, label=label, classes=classes,
        through_fp32=through_fp32,
    )  # fmt: skip
