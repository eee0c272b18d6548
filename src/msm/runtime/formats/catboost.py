"""CatBoost models in CatBoost's binary format (.cbm), which holds no code.

Input: `input-0`, FP32 [-1, number of features] (other numeric datatypes are accepted); NaN is a missing value. A model
with features of categories or text has one input of shape [-1] for each feature, by the features' names: FP32 for
numbers, BYTES for categories and text (a category that was a whole number in training may come as such a number).

Output: `predict`: the class for a classifier (INT64, BOOL or BYTES, as in training), else the value, FP64; and for a
classifier `predict_proba`, FP64 [-1, classes], in the order of its classes. A declared signature may rename the
tensors of a model that takes one matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from msm.kit.errors import LoadFailed
from msm.runtime.formats.base import Array, LoadOptions, head
from msm.runtime.formats.boosting import BoostedFormat, BoostedModel, broken, matrix_model, one_input, outputs
from msm.runtime.formats.frames import frame
from msm.runtime.signature import Signature, Tensor


class CatBoostFormat(BoostedFormat):
    """CatBoost's binary format."""

    name = "catboost"
    libraries: tuple[str, ...] = ("catboost",)

    def looks_like(self, file: Path) -> bool:
        return head(file, 4) == b"CBM1"

    def read(self, file: Path, options: LoadOptions) -> BoostedModel:
        import catboost

        model = catboost.CatBoost()
        try:
            model.load_model(str(file))
        except catboost.CatBoostError as error:
            raise broken("CatBoost", error) from error
        if model.get_embedding_feature_indices():
            raise LoadFailed("the CatBoost model has features that are embeddings", reason="unsupported_type")
        classifier = len(model.classes_) > 0
        names = ["predict", "predict_proba"] if classifier else ["predict"]

        def compute(rows: Any) -> tuple[Array, ...]:
            if not classifier:
                return (model.predict(rows, thread_count=1),)
            labels = model.predict(rows, prediction_type="Class", thread_count=1)
            if labels.ndim == 2 and labels.shape[1] == 1:
                labels = labels[:, 0]
            return labels, model.predict(rows, prediction_type="Probability", thread_count=1)

        words = {*model.get_cat_feature_indices(), *model.get_text_feature_indices()}
        if not words:
            matrix = one_input(options.signature, "FP32", len(model.feature_names_))
            return matrix_model(model, compute, matrix, names, options.signature)
        return _by_columns(model, compute, names, words, options.signature)


def _by_columns(
    model: Any, compute: Any, names: Sequence[str], words: set[int], declared: Signature | None
) -> BoostedModel:
    """The model with one input for each feature."""
    columns = tuple(
        Tensor(name, "BYTES" if index in words else "FP32", (-1,)) for index, name in enumerate(model.feature_names_)
    )
    order = [tensor.name for tensor in columns]
    if declared is not None and declared.inputs:
        if [(tensor.name, tensor.datatype) for tensor in declared.inputs] != [(t.name, t.datatype) for t in columns]:
            raise LoadFailed(
                f"the model takes the columns {', '.join(f'{t.name} {t.datatype}' for t in columns)[:300]} "
                "in this order, the signature declares others",
                reason="signature_mismatch",
            )
        columns = declared.inputs

    def on_inputs(inputs: dict[str, Array]) -> Sequence[Any]:
        return compute(frame(order, inputs))  # type: ignore[no-any-return]

    example = {
        tensor.name: np.array([b"a"], object) if tensor.datatype == "BYTES" else np.zeros(1, np.float32)
        for tensor in columns
    }
    return BoostedModel(model, on_inputs, Signature(columns, outputs(declared, names, on_inputs(example))))
