"""LightGBM boosters in LightGBM's text format, which holds no code.

Input: `input-0`, FP64 [-1, number of features] (other numeric datatypes are accepted); NaN is a missing value. Output:
`predict`, FP64, what the objective gives. A declared signature may rename the tensors.
"""

from __future__ import annotations

from pathlib import Path

from msm.kit.errors import LoadFailed
from msm.runtime.formats.base import Array, LoadOptions, head
from msm.runtime.formats.boosting import BoostedFormat, BoostedModel, broken, matrix_model, one_input


class LightGBMFormat(BoostedFormat):
    """LightGBM's text format."""

    name = "lightgbm"
    libraries: tuple[str, ...] = ("lightgbm",)

    def looks_like(self, file: Path) -> bool:
        return head(file, 64).startswith((b"tree\nversion=", b"tree\r\nversion="))

    def read(self, file: Path, options: LoadOptions) -> BoostedModel:
        import lightgbm

        _check_whole(file)
        try:
            booster = lightgbm.Booster(model_file=str(file))
        except lightgbm.basic.LightGBMError as error:
            raise broken("LightGBM", error) from error

        def compute(rows: Array) -> tuple[Array]:
            return (booster.predict(rows, num_threads=1),)

        matrix = one_input(options.signature, "FP64", booster.num_feature())
        return matrix_model(booster, compute, matrix, ["predict"], options.signature)


def _check_whole(file: Path) -> None:
    """The library reads over the end of a file that was cut off, and crashes: refuse one without its end marks."""
    content = file.read_bytes()
    for part, mark in ((b"tree", b"\nend of trees"), (b"\nparameters:", b"\nend of parameters")):
        if part in content and mark not in content:
            raise LoadFailed(
                f"the LightGBM model is cut off: its mark {mark.decode().strip()!r} is missing",
                reason="corrupt_artifact",
            )
