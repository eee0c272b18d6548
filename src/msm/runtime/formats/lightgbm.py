"""LightGBM boosters in LightGBM's text format, which holds no code.

Input: `input-0`, FP64 [-1, number of features] (other numeric datatypes are accepted); NaN is a missing value. Output:
`predict`, FP64, what the objective gives. A declared signature may rename the tensors.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from msm.kit.errors import LoadFailed
from msm.runtime.formats.base import NUMERIC, Array, LoadOptions, files, head, missing_library, single, zeros
from msm.runtime.formats.boosting import one_input, one_output
from msm.runtime.signature import Signature


class LightGBMModel:
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
        return {self._output: self.booster.predict(inputs[self._input], num_threads=1)}


class LightGBMFormat:
    """LightGBM's text format."""

    name = "lightgbm"
    libraries: tuple[str, ...] = ("lightgbm",)

    def sniff(self, path: Path) -> bool:
        return any(_looks_like(file) for file in files(path))

    def load(self, path: Path, options: LoadOptions) -> LightGBMModel:
        try:
            import lightgbm
        except ImportError as error:
            raise missing_library(self.name, "lightgbm", error) from error
        file = single(path, self.name, [found for found in files(path) if _looks_like(found)])
        _check_whole(file)
        try:
            booster = lightgbm.Booster(model_file=str(file))
        except lightgbm.basic.LightGBMError as error:
            raise LoadFailed("the LightGBM model is broken or of a newer version", reason="corrupt_artifact") from error
        inputs = one_input(options.signature, "FP64", booster.num_feature())
        trial = booster.predict(zeros(Signature(inputs))[inputs[0].name], num_threads=1)
        return LightGBMModel(booster, Signature(inputs, one_output(options.signature, trial)))


def _looks_like(file: Path) -> bool:
    start = head(file, 64)
    return start.startswith((b"tree\nversion=", b"tree\r\nversion="))


def _check_whole(file: Path) -> None:
    """The library reads over the end of a file that was cut off: refuse one without its end mark."""
    if b"end of trees" not in file.read_bytes():
        raise LoadFailed("the LightGBM model is cut off: its end mark is missing", reason="corrupt_artifact")
