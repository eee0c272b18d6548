"""XGBoost boosters in XGBoost's own formats, UBJSON and JSON, which hold no code.

Input: `input-0`, FP32 [-1, number of features] (other numeric datatypes are accepted; XGBoost computes in FP32); NaN is
a missing value. Output: `predict`, what the booster's objective gives (probabilities for `binary:logistic` and
`multi:softprob`). A declared signature may rename the tensors.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from msm.kit.errors import LoadFailed
from msm.runtime.formats.base import NUMERIC, Array, LoadOptions, files, head, missing_library, single, zeros
from msm.runtime.formats.boosting import one_input, one_output
from msm.runtime.signature import Signature


class XGBoostModel:
    """A booster and the names of its tensors."""

    exact_outputs = True
    may_block = False

    def __init__(self, booster: Any, signature: Signature) -> None:
        self.signature = signature
        self.accepts = NUMERIC
        self.booster = booster
        self._input = signature.inputs[0].name
        self._output = signature.outputs[0].name

    def predict(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """Predict the rows."""
        return {self._output: self.booster.inplace_predict(inputs[self._input], validate_features=False)}


class XGBoostFormat:
    """XGBoost's UBJSON and JSON."""

    name = "xgboost"
    libraries: tuple[str, ...] = ("xgboost",)

    def sniff(self, path: Path) -> bool:
        return any(_looks_like(file) for file in files(path))

    def load(self, path: Path, options: LoadOptions) -> XGBoostModel:
        try:
            import xgboost
        except ImportError as error:
            raise missing_library(self.name, "xgboost", error) from error
        file = single(path, self.name, [found for found in files(path) if _looks_like(found)])
        booster = xgboost.Booster({"nthread": 1})
        try:
            # The library tells the formats apart by the file's name, so it is given the bytes.
            booster.load_model(bytearray(file.read_bytes()))
        except xgboost.core.XGBoostError as error:
            raise LoadFailed("the XGBoost model is broken or of a newer version", reason="corrupt_artifact") from error
        booster.set_param({"nthread": 1})
        inputs = one_input(options.signature, "FP32", booster.num_features())
        trial = booster.inplace_predict(zeros(Signature(inputs))[inputs[0].name], validate_features=False)
        return XGBoostModel(booster, Signature(inputs, one_output(options.signature, trial)))


def _looks_like(file: Path) -> bool:
    start = head(file)
    return start[:1] == b"{" and b"learner" in start
