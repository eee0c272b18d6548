"""The trees of LightGBM and XGBoost boosters, read from what the libraries tell of them."""

from __future__ import annotations

import json
import math
from typing import Any, Final

import numpy as np

from msm.runtime.acceleration.trees import Link, Tree, TreeModel, joined

_LIGHTGBM_LINKS: Final[dict[str, Link]] = {
    "regression": "identity",
    "regression_l1": "identity",
    "huber": "identity",
    "quantile": "identity",
    "lambdarank": "identity",
    "binary": "sigmoid",
    "multiclass": "softmax",
}
_XGBOOST_LINKS: Final[dict[str, Link]] = {
    "reg:squarederror": "identity",
    "reg:absoluteerror": "identity",
    "binary:logitraw": "identity",
    "binary:logistic": "sigmoid",
    "reg:logistic": "sigmoid",
    "multi:softprob": "softmax",
}


def of_lightgbm(booster: Any) -> TreeModel | None:
    """The trees of a LightGBM booster; None when it holds something that a `TreeModel` cannot say."""
    told = booster.dump_model()
    name, *settings = told["objective"].split()
    link = _LIGHTGBM_LINKS.get(name)
    options = dict(setting.partition(":")[::2] for setting in settings)
    if link is None or "sqrt" in settings:
        return None
    trees = [_lightgbm_tree(tree["tree_structure"]) for tree in told["tree_info"]]
    found = [tree for tree in trees if tree is not None]
    if not found or len(found) < len(trees):
        return None
    scores = told["num_tree_per_iteration"]
    forest = joined(found, [index % scores for index in range(len(found))], scores)
    divide_by = len(found) // scores if told["average_output"] else None
    return TreeModel(forest, divide_by=divide_by, link=link, steepness=float(options.get("sigmoid", 1.0)))


def _lightgbm_tree(structure: dict[str, Any]) -> Tree | None:
    rows: list[tuple[int, float, int, int, bool, float]] = []
    pending: list[tuple[dict[str, Any], int, bool]] = [(structure, -1, False)]
    while pending:
        node, parent, on_left = pending.pop()
        index = len(rows)
        if parent >= 0:
            feature, threshold, left, right, missing, value = rows[parent]
            rows[parent] = (feature, threshold, index if on_left else left, right if on_left else index, missing, value)
        if "split_feature" not in node:
            if "leaf_coeff" in node:  # a linear model in a leaf
                return None
            rows.append((0, 0.0, -1, -1, False, node["leaf_value"]))
            continue
        threshold = node["threshold"]
        if node["decision_type"] != "<=" or node["missing_type"] == "Zero":
            return None
        missing = bool(node["default_left"]) if node["missing_type"] == "NaN" else threshold >= 0.0  # else NaN is 0
        rows.append((node["split_feature"], threshold, -1, -1, missing, 0.0))
        pending += [(node["right_child"], index, False), (node["left_child"], index, True)]
    columns = list(zip(*rows, strict=True))
    return Tree(
        feature=np.array(columns[0]),
        threshold=np.array(columns[1], np.float64),
        left=np.array(columns[2]),
        right=np.array(columns[3]),
        missing_left=np.array(columns[4]),
        values=np.array(columns[5], np.float64)[:, None],
    )


def of_xgboost(booster: Any) -> TreeModel | None:
    """The trees of an XGBoost booster; None when it holds something that a `TreeModel` cannot say."""
    learner = json.loads(bytes(booster.save_raw("json")))["learner"]
    link = _XGBOOST_LINKS.get(learner["objective"]["name"])
    boosting = learner["gradient_booster"]
    if link is None or boosting["name"] != "gbtree":
        return None
    model = boosting["model"]
    if any(any(tree["split_type"]) or tree["tree_param"]["size_leaf_vector"] != "1" for tree in model["trees"]):
        return None
    trees = [_xgboost_tree(tree) for tree in model["trees"]]
    scores = max(1, int(learner["learner_model_param"]["num_class"]))
    forest = joined(trees, model["tree_info"], scores, strict=True)
    text = learner["learner_model_param"]["base_score"]
    base = np.atleast_1d(np.array(json.loads(text), np.float64))
    if link == "sigmoid":
        base = np.array([-math.log(1.0 / value - 1.0) for value in base])
    return TreeModel(forest, base=np.broadcast_to(base, (scores,)).astype(np.float32), link=link)


def _xgboost_tree(tree: dict[str, Any]) -> Tree:
    conditions = np.array(tree["split_conditions"], np.float32)
    return Tree(
        feature=np.array(tree["split_indices"]),
        threshold=conditions,
        left=np.array(tree["left_children"]),
        right=np.array(tree["right_children"]),
        missing_left=np.array(tree["default_left"]).astype(bool),
        values=conditions[:, None],  # of a leaf the condition is its value
    )
