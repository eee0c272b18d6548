"""Folders that MLflow wrote (`MLmodel`).

Where one of the flavors is a format of ours, that format loads its file, and MLflow is not needed: sklearn, xgboost,
lightgbm, catboost, onnx and pytorch. The rules of trust are that format's: a model stored by skops, UBJSON, CBM or ONNX
is data, a pickle needs `trusted: true`. Any other folder is run by MLflow itself as `python_function`, which needs
`trusted: true` and the library.

Signature: the one in MLmodel. Tensor specs are tensors (`input-0` where they have no name); column specs are one input
of shape [-1] for each column (`datetime` as ISO text, `array`, `object` and `map` as JSON, both in BYTES), of which the
model gets a data frame, or a matrix where its format takes one. Without a signature it is the format's own, or whatever
comes. Outputs are the format's own; of a `python_function` the columns or keys of its result, else `output-0`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, Final

import numpy as np

from msm.kit.errors import InvalidInput, LoadFailed
from msm.runtime.formats import mlflow_file
from msm.runtime.formats.base import (
    NUMERIC,
    Array,
    Format,
    LoadedModel,
    LoadOptions,
    is_mlflow,
    missing_library,
    need_trust,
)
from msm.runtime.formats.catboost import CatBoostFormat
from msm.runtime.formats.frames import frame
from msm.runtime.formats.lightgbm import LightGBMFormat
from msm.runtime.formats.mlflow_file import JSON_KINDS, MLmodel
from msm.runtime.formats.onnx import OnnxFormat
from msm.runtime.formats.sklearn import SklearnFormat
from msm.runtime.formats.torch import TorchFormat
from msm.runtime.formats.xgboost import XGBoostFormat
from msm.runtime.protocols.tensors import DTYPES
from msm.runtime.signature import Signature, Tensor

# Flavor → its key for the file, and the formats that the file may be of.
_FLAVORS: Final[dict[str, tuple[str, tuple[Format, ...]]]] = {
    "sklearn": ("pickled_model", (SklearnFormat(),)),
    "xgboost": ("data", (XGBoostFormat(), SklearnFormat())),
    "lightgbm": ("data", (LightGBMFormat(), SklearnFormat())),
    "catboost": ("data", (CatBoostFormat(),)),
    "onnx": ("data", (OnnxFormat(),)),
    "pytorch": ("model_data", (TorchFormat(),)),
}


class MLflowFormat:
    """MLflow's model folders."""

    name = "mlflow"
    libraries: tuple[str, ...] = ()  # most folders need the library of their flavor only

    def sniff(self, path: Path) -> bool:
        return path.is_dir() and is_mlflow(path)

    def load(self, path: Path, options: LoadOptions) -> LoadedModel:
        described = mlflow_file.read(path)
        for flavor, (key, formats) in _FLAVORS.items():
            settings = described.flavors.get(flavor)
            file = _file(path, settings[key]) if settings is not None and settings.get(key) else None
            for chosen in formats if file is not None else ():
                if file is not None and settings is not None and chosen.sniff(file):
                    return _by_format(chosen, file, described, _with_settings(flavor, settings, described, options))
        if "python_function" not in described.flavors:
            raise LoadFailed(
                f"the MLflow folder has the flavors {', '.join(described.flavors)[:200]}, none of which can be run",
                reason="wrong_format",
            )
        return _by_mlflow(path, described, options)


def _file(folder: Path, relative: Any) -> Path:
    """A file or folder that MLmodel names. Raises LoadFailed when it is outside of the folder or missing."""
    name = PurePosixPath(str(relative))
    if name.is_absolute() or ".." in name.parts or not (folder / name).resolve().is_relative_to(folder.resolve()):
        raise LoadFailed(f"MLmodel names {str(name)[:100]!r}, outside of its folder", reason="outside_folder")
    if not (folder / name).exists():
        raise LoadFailed(f"MLmodel names {str(name)[:100]!r}, which is not in the folder", reason="corrupt_artifact")
    return folder / name


def _with_settings(flavor: str, settings: Mapping[str, Any], described: MLmodel, options: LoadOptions) -> LoadOptions:
    """The options with what the flavor says of how to predict; the version's own parameters come first."""
    more: dict[str, Any] = {}
    if flavor == "xgboost" and str(settings.get("model_class", "")).startswith("xgboost.sklearn."):
        more["interface"] = "sklearn"
    function = described.flavors.get("python_function", {}).get("predict_fn", "predict")
    if flavor == "sklearn" and function != "predict":
        more["outputs"] = [function]
    return replace(options, parameters={**more, **options.parameters})


def _by_format(chosen: Format, file: Path, described: MLmodel, options: LoadOptions) -> LoadedModel:
    """Load by a format of ours, so that the inputs are those of MLmodel where it has any."""
    inputs = described.signature.inputs
    if options.signature is not None or not inputs:
        return chosen.load(file, options)
    if isinstance(chosen, SklearnFormat):
        return chosen.load(file, replace(options, signature=Signature(inputs)))
    if isinstance(chosen, TorchFormat):
        # What MLflow saw of an example need not be the names of a program, which knows its own.
        return chosen.load(file, replace(options, parameters={"signature": _plain(described), **options.parameters}))
    model = chosen.load(file, options)
    own = model.signature.inputs
    if described.kinds and len(own) == 1 and len(own[0].shape) == 2:
        return MatrixOfColumns(model, inputs)
    if not described.kinds and len(inputs) == len(own) == 1 and inputs[0].name != own[0].name:
        return (
            chosen.load(
                file, replace(options, signature=Signature((Tensor(inputs[0].name, own[0].datatype, own[0].shape),)))
            )
            if not isinstance(chosen, OnnxFormat)
            else model
        )
    return model


def _plain(described: MLmodel) -> dict[str, Any]:
    import msgspec

    found: dict[str, Any] = msgspec.to_builtins(described.signature)
    return found


class MatrixOfColumns:
    """A model of one matrix, given its columns one by one, in the order of the signature."""

    accepts = NUMERIC

    def __init__(self, model: LoadedModel, columns: tuple[Tensor, ...]) -> None:
        matrix = model.signature.inputs[0]
        width = matrix.shape[1]
        if any(tensor.datatype == "BYTES" for tensor in columns) or width not in (-1, len(columns)):
            raise LoadFailed(
                f"MLmodel has {len(columns)} columns, the model takes numbers of shape {list(matrix.shape)}",
                reason="signature_mismatch",
            )
        self.signature = Signature(columns, model.signature.outputs)
        self.exact_outputs = model.exact_outputs
        self.may_block = model.may_block
        self._model = model
        self._matrix = matrix.name
        self._dtype = DTYPES[matrix.datatype]
        self._columns = [tensor.name for tensor in columns]

    def predict(self, inputs: dict[str, Array]) -> Mapping[str, Any]:
        """Put the columns together; one that did not come is missing values."""
        rows = {array.shape[0] for array in inputs.values()}
        if len(rows) != 1:
            raise InvalidInput("the columns must have the same number of rows", reason="shape_mismatch")
        missing = np.full(next(iter(rows)), np.nan)
        matrix = np.stack([inputs.get(name, missing) for name in self._columns], axis=1)
        return self._model.predict({self._matrix: matrix.astype(self._dtype)})


def _by_mlflow(path: Path, described: MLmodel, options: LoadOptions) -> LoadedModel:
    need_trust(options, "a python_function of MLflow")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    try:
        import mlflow.pyfunc
        import pandas  # noqa: F401 - what a python_function is given
    except ImportError as error:
        raise missing_library("mlflow", "mlflow", error) from error
    return FunctionModel(mlflow.pyfunc.load_model(str(path)), described, options.signature)


class FunctionModel:
    """A python_function. It may do anything, so it never runs on the event loop."""

    accepts = NUMERIC
    exact_outputs = False
    may_block = True

    def __init__(self, function: Any, described: MLmodel, declared: Signature | None) -> None:
        self.signature = declared or described.signature
        self._function = function
        self._kinds = described.kinds
        self._outputs = self.signature.outputs

    def predict(self, inputs: dict[str, Array]) -> Mapping[str, Any]:
        """Call the function with a data frame for columns, an array for one tensor, else a dict of arrays."""
        return self._typed(_named(self._function.predict(self._argument(inputs))))

    def _argument(self, inputs: dict[str, Array]) -> Any:
        if not self._kinds and (len(inputs) > 1 or self.signature.inputs):
            unnamed = len(inputs) == 1 and "input-0" in inputs
            return inputs["input-0"] if unnamed else inputs
        if not self._kinds:
            return next(iter(inputs.values()))
        names = [name for name in self._kinds if name in inputs]
        plain = [name for name in names if self._kinds[name] not in JSON_KINDS | {"binary", "datetime"}]
        table = frame(plain, inputs)
        for name in names:
            if name not in plain:
                table[name] = _special(name, self._kinds[name], inputs[name])
        return table[names]

    def _typed(self, found: dict[str, Any]) -> dict[str, Any]:
        """By the names and in the datatypes of the signature, whose outputs MLflow itself does not enforce."""
        if not self._outputs:
            return found
        names = [tensor.name for tensor in self._outputs]
        if found.keys() != set(names) and len(found) == len(names):
            found = dict(zip(names, found.values(), strict=True))
        for tensor in self._outputs:
            value = found.get(tensor.name)
            if tensor.datatype in NUMERIC and isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
                found[tensor.name] = value.astype(DTYPES[tensor.datatype])
        return found


def _special(name: str, kind: str, array: Array) -> list[Any]:
    """A column that is not a plain value: JSON, raw bytes, or a time."""
    values = array.reshape(-1).tolist()
    try:
        if kind in JSON_KINDS:
            return [json.loads(value) for value in values]
        return [np.datetime64(value.decode()) for value in values] if kind == "datetime" else values
    except (ValueError, RecursionError) as error:
        what = "JSON" if kind in JSON_KINDS else "a time in ISO form"
        raise InvalidInput(f"input {name!r} must hold {what} in each row", reason="invalid_value") from error


def _named(result: Any) -> dict[str, Any]:
    """The result of a python_function as arrays by name."""
    if hasattr(result, "columns") and hasattr(result, "to_numpy"):
        return {str(name): _array(result[name].to_numpy()) for name in result.columns}
    if isinstance(result, Mapping):
        return {str(name): _array(value) for name, value in result.items()}
    if hasattr(result, "to_numpy"):
        return {"output-0": _array(result.to_numpy())}
    return {"output-0": _array(result)}


def _array(value: Any) -> Any:
    """As an array; what is no number and no text becomes JSON."""
    array = np.asarray(value)
    if array.dtype == object and not all(isinstance(item, str | bytes) for item in array.reshape(-1).tolist()):
        rows = list(value)
        array = np.empty(len(rows), object)
        array[:] = [item if isinstance(item, str | bytes) else json.dumps(item) for item in rows]
    return array
