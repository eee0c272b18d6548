"""XGBoost boosters in XGBoost's own formats, UBJSON and JSON, which hold no code.

Input: `input-0`, FP32 [-1, number of features] (other numeric datatypes are accepted; XGBoost computes in FP32); NaN is
a missing value. Output: `predict`, what the booster's objective gives (probabilities for `binary:logistic` and
`multi:softprob`). A declared signature may rename the tensors.

Parameter `interface: sklearn` gives what the library's scikit-learn classes give instead: the best iteration where
training was stopped early, and for a classifier `predict`, the number of the class, and `predict_proba`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from msm.kit.errors import InvalidInput, LoadFailed
from msm.runtime.formats import ubjson
from msm.runtime.formats.base import Array, LoadOptions, head, parameter
from msm.runtime.formats.boosting import BoostedFormat, BoostedModel, broken, matrix_model, one_input

_JSON: Final = re.compile(rb'\{\s*"(learner|Config|version)"\s*:')
_JSON_LEARNER: Final = re.compile(rb'"learner"\s*:\s*\{')
_UBJSON: Final = re.compile(rb"\{[L$#Uil\0]*(\x07learner|\x06Config|\x07version)")


class XGBoostFormat(BoostedFormat):
    """XGBoost's UBJSON and JSON."""

    name = "xgboost"
    libraries: tuple[str, ...] = ("xgboost",)

    def looks_like(self, file: Path) -> bool:
        start = head(file)
        if _JSON.match(start):
            return _JSON_LEARNER.search(start) is not None
        return _UBJSON.match(start) is not None and b"learner" in start

    def read(self, file: Path, options: LoadOptions) -> BoostedModel:
        import xgboost

        content = file.read_bytes()
        if not (content.rstrip().endswith(b"}") if _JSON.match(content) else ubjson.is_whole(content)):
            raise LoadFailed("the XGBoost model is cut off or broken", reason="corrupt_artifact")
        booster = xgboost.Booster({"nthread": 1})
        try:
            # The library tells the formats apart by the file's name, so it is given the bytes.
            booster.load_model(bytearray(content))
        except xgboost.core.XGBoostError as error:
            raise broken("XGBoost", error) from error
        booster.set_param({"nthread": 1})
        interface = parameter(options, "interface", str, "booster")
        if interface not in ("booster", "sklearn"):
            raise InvalidInput(
                f"parameter 'interface' must be booster or sklearn, got {interface[:50]!r}", reason="invalid_parameter"
            )
        classifier = interface == "sklearn" and _estimator_type(booster) == "classifier"
        compute = _computation(booster, _iterations(booster) if interface == "sklearn" else (0, 0), classifier)
        matrix = one_input(options.signature, "FP32", booster.num_features())
        names = ["predict", "predict_proba"] if classifier else ["predict"]
        return matrix_model(booster, compute, matrix, names, options.signature)


def _estimator_type(booster: Any) -> str | None:
    """What the scikit-learn class wrote of itself into the file."""
    try:
        kind = json.loads(booster.attr("scikit_learn") or "{}").get("_estimator_type")
    except (ValueError, AttributeError):
        return None
    return kind if isinstance(kind, str) else None


def _iterations(booster: Any) -> tuple[int, int]:
    best = booster.attr("best_iteration")
    return (0, int(best) + 1) if best is not None and best.isdigit() else (0, 0)


def _computation(booster: Any, iterations: tuple[int, int], classifier: bool) -> Callable[[Array], Sequence[Any]]:
    def raw(rows: Array) -> tuple[Array]:
        return (booster.inplace_predict(rows, iteration_range=iterations, validate_features=False),)

    def classes(rows: Array) -> tuple[Array, Array]:
        (found,) = raw(rows)
        if found.ndim == 1:
            return (found > 0.5).astype(np.int64), np.stack([1 - found, found], axis=1)
        return found.argmax(axis=1), found

    return classes if classifier else raw
