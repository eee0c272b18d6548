"""scikit-learn models.

Stored by skops they are read without running code: besides what skops itself trusts, only the classes listed here are
allowed, all of them scikit-learn's own. Stored by pickle or joblib they run code while they are read, so the version
must be trusted; what a file is, its content decides and not its name.

Input: one tensor `input-0` of FP64 and shape [-1, number of features]; BYTES of shape [-1] for a pipeline that begins
with a text vectorizer. A pipeline whose ColumnTransformer picks columns by name has one input of shape [-1] for each
column of the data frame that it was fitted with: BYTES for text and categories, else numbers. Other numeric datatypes
are accepted too, since scikit-learn converts them itself. A declared signature may rename the one input; with several
inputs, each is a column of a data frame.

Output: `predict` for what predicts, `transform` for what only transforms; and `predict_proba` where a classifier has
it, in the order of its classes. Parameter `outputs` (a list of method names) chooses others. Datatypes and shapes are
taken from a run on zeros when the signature does not declare them.
"""

from __future__ import annotations

import io
import re
import warnings
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from msm.kit.errors import Forbidden, InvalidInput, LoadFailed
from msm.runtime.formats import frames, sklearn_columns
from msm.runtime.formats.base import (
    NUMERIC,
    Array,
    LoadOptions,
    files,
    head,
    loose_files,
    missing_library,
    need_trust,
    parameter,
    single,
    zeros,
)
from msm.runtime.protocols.tensors import wire_array
from msm.runtime.signature import Signature, Tensor

_ALLOWED_MODULES: Final = (
    "sklearn._loss.",
    "sklearn.calibration.",
    "sklearn.cluster.",
    "sklearn.ensemble.",
    "sklearn.gaussian_process.",
    "sklearn.linear_model.",
    "sklearn.metrics._dist_metrics.",
    "sklearn.naive_bayes.",
    "sklearn.neighbors.",
    "sklearn.neural_network.",
    "sklearn.preprocessing.",
    "sklearn.svm.",
    "sklearn.tree.",
)
_ALLOWED: Final = frozenset(
    {
        "sklearn.utils._bunch.Bunch", "scipy.interpolate._interpolate.interp1d", "numpy.dtype",
        "sklearn.compose._column_transformer._RemainderColsList", "collections.OrderedDict",
        # boosters behind scikit-learn's interface: their state is text or UBJSON of trees, which their libraries parse
        "lightgbm.basic.Booster", "lightgbm.sklearn.LGBMClassifier", "lightgbm.sklearn.LGBMRegressor",
        "xgboost.core.Booster", "xgboost.sklearn.XGBClassifier", "xgboost.sklearn.XGBRegressor",
    }
)  # fmt: skip
_CLASS: Final = re.compile(r"\._?[A-Z][A-Za-z0-9_]*$")  # by the naming rule; functions are never allowed
_METHODS: Final = frozenset(
    {"predict", "predict_proba", "predict_log_proba", "decision_function", "transform", "score_samples"}
)


class SklearnModel:
    """A fitted estimator and the methods that make its outputs."""

    exact_outputs = True
    may_block = False

    def __init__(self, estimator: Any, methods: Sequence[str], signature: Signature) -> None:
        self.signature = signature
        self.accepts = NUMERIC
        self.source = estimator
        self._arrange = _arranger(estimator, signature)
        self.methods = tuple(methods)
        self._calls: list[tuple[str, Callable[[Any], Any]]] = [(name, getattr(estimator, name)) for name in methods]

    def predict(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """Call each method on the rows."""
        rows = self._arrange(inputs)
        return {name: _dense(call(rows)) for name, call in self._calls}


class SklearnFormat:
    """Estimators of scikit-learn, stored by skops, joblib or pickle."""

    name = "sklearn"
    libraries: tuple[str, ...] = (
        "sklearn.pipeline",
        "sklearn.linear_model",
        "sklearn.ensemble",
        "msm.runtime.formats.skops_io",
        "joblib",
    )

    def sniff(self, path: Path) -> bool:
        return any(_is_skops(file) or _is_pickle(file) for file in loose_files(path))

    def load(self, path: Path, options: LoadOptions) -> SklearnModel:
        safe = [file for file in files(path) if _is_skops(file)]
        coded = [file for file in files(path) if _is_pickle(file)]
        file = single(path, self.name, safe + coded)
        if coded:
            need_trust(options, "a pickled scikit-learn model")
        try:
            estimator = _read_pickle(file) if coded else _read_skops(file)
        except ImportError as error:
            raise missing_library(self.name, "sklearn", error) from error
        if not hasattr(estimator, "predict") and not hasattr(estimator, "transform"):
            raise LoadFailed(
                f"the artifact holds {type(estimator).__name__}, which neither predicts nor transforms",
                reason="not_a_model",
            )
        # The columns' names are known to the model, not to an array; their order is the signature's.
        warnings.filterwarnings("ignore", message="X does not have valid feature names")
        _one_thread(estimator)
        methods = _methods(estimator, options)
        return SklearnModel(estimator, methods, _signature(estimator, methods, options.signature))


def _is_skops(file: Path) -> bool:
    if head(file, 4) != b"PK\x03\x04":
        return False
    try:
        with zipfile.ZipFile(file) as archive:
            return "schema.json" in archive.namelist()
    except (zipfile.BadZipFile, OSError):
        return False


def _is_pickle(file: Path) -> bool:
    """Whether the file is a pickle, also one that joblib compressed (zlib, gzip, bzip2, xz, lzma) or an old one."""
    start = head(file)
    if start[:1] == b"\x80":
        return 2 <= start[1] <= 9 if len(start) > 1 else False
    if start[:2] == b"\x1f\x8b" or start[:3] == b"BZh" or start[:6] == b"\xfd7zXZ\0" or start[:3] == b"]\0\0":
        return True
    if start[:1] == b"x":
        try:
            return zlib.decompressobj().decompress(start, 1) == b"\x80"
        except zlib.error:
            return False
    return start[:1] in (b"c", b"(") and b"\n" in start and file.stat().st_size > 2 and _tail(file) == b"."


def _tail(file: Path) -> bytes:
    with file.open("rb") as handle:
        handle.seek(-1, io.SEEK_END)
        return handle.read(1)


def _read_pickle(file: Path) -> Any:
    import joblib

    return joblib.load(file)


def _read_skops(file: Path) -> Any:
    from msm.runtime.formats.skops_io import skops_io

    unknown = skops_io.get_untrusted_types(file=file)
    refused = [name for name in unknown if not _is_allowed(name)]
    if refused:
        raise Forbidden(
            f"the skops file holds {', '.join(refused[:5])[:200]}, which is not known to be safe: "
            "store the model by joblib and declare the version with trusted: true to allow that",
            reason="unsafe_format",
        )
    return skops_io.load(file, trusted=unknown)


def _is_allowed(name: str) -> bool:
    return name in _ALLOWED or (name.startswith(_ALLOWED_MODULES) and _CLASS.search(name) is not None)


def _one_thread(estimator: Any) -> None:
    """Keep a prediction in its thread: a pool of threads costs more than a small call."""
    for part in _parts(estimator):
        if getattr(part, "n_jobs", None) not in (None, 1):
            part.n_jobs = 1


def _parts(estimator: Any) -> list[Any]:
    steps = [step for _, step in getattr(estimator, "steps", ())]
    return [estimator, *(part for step in steps for part in _parts(step))]


def _methods(estimator: Any, options: LoadOptions) -> list[str]:
    chosen = parameter(options, "outputs", list, None)
    if chosen is not None:
        for name in chosen:
            if name not in _METHODS or not hasattr(estimator, name):
                raise InvalidInput(
                    f"parameter 'outputs' names {str(name)[:50]!r}, which {type(estimator).__name__} does not have",
                    reason="invalid_parameter",
                )
        if chosen:
            return list(chosen)
    if not hasattr(estimator, "predict"):
        return ["transform"]
    return ["predict", "predict_proba"] if hasattr(estimator, "predict_proba") else ["predict"]


def _signature(estimator: Any, methods: Sequence[str], declared: Signature | None) -> Signature:
    inputs = declared.inputs if declared is not None and declared.inputs else _inputs(estimator)
    if declared is not None and declared.outputs:
        _check_names(declared.outputs, methods)
        return Signature(inputs, declared.outputs)
    rows = _example(estimator, Signature(inputs))
    outputs = []
    for name in methods:
        datatype, array = wire_array(name, _dense(getattr(estimator, name)(rows)))
        outputs.append(Tensor(name, datatype, (-1, *array.shape[1:])))  # type: ignore[arg-type]  # a key of DTYPES
    return Signature(inputs, tuple(outputs))


def _example(estimator: Any, partial: Signature) -> Any:
    """The smallest argument that the estimator takes."""
    named = sklearn_columns.takes_names(estimator)
    inputs = sklearn_columns.example(estimator, partial.inputs) if named else zeros(partial)
    return _arranger(estimator, partial)(inputs)


def _check_names(outputs: Sequence[Tensor], methods: Sequence[str]) -> None:
    names = [tensor.name for tensor in outputs]
    if sorted(names) != sorted(methods):
        raise LoadFailed(
            f"the signature declares the outputs {', '.join(names)}, the model gives {', '.join(methods)}",
            reason="signature_mismatch",
        )


def _inputs(estimator: Any) -> tuple[Tensor, ...]:
    if sklearn_columns.takes_names(estimator):
        return sklearn_columns.columns(estimator)
    count = getattr(estimator, "n_features_in_", None)
    if count is not None:
        return (Tensor("input-0", "FP64", (-1, int(count))),)
    first = _parts(estimator)[-1] if not hasattr(estimator, "steps") else estimator.steps[0][1]
    if type(first).__module__.startswith("sklearn.feature_extraction.text"):
        return (Tensor("input-0", "BYTES", (-1,)),)
    raise LoadFailed(
        f"{type(estimator).__name__} does not tell its number of features: declare the version's signature",
        reason="signature_needed",
    )


def _arranger(estimator: Any, signature: Signature) -> Callable[[dict[str, Array]], Any]:
    """How the named inputs become the one argument of an estimator."""
    names = [tensor.name for tensor in signature.inputs]
    first = signature.inputs[0]
    text = first.datatype == "BYTES" and not hasattr(estimator, "feature_names_in_")
    if len(names) > 1 or sklearn_columns.takes_names(estimator) or (len(first.shape) == 1 and not text):
        return lambda inputs: frames.frame(names, inputs)
    if first.datatype == "BYTES":
        return lambda inputs: frames.text(first.name, inputs[first.name])
    return lambda inputs: inputs[first.name]


def _dense(result: Any) -> Array:
    return result.toarray() if hasattr(result, "toarray") else np.asarray(result)
