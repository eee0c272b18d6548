"""Pipelines of scikit-learn that need named columns: one input tensor per column."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
import skops.io
from sklearn.compose import ColumnTransformer, make_column_selector
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from msm.kit.errors import InvalidInput, LoadFailed
from msm.runtime import formats
from msm.runtime.formats.base import LoadedModel, LoadOptions
from msm.runtime.signature import Signature, Tensor
from tests.component.runtime.conftest import WorkerProcess
from tests.support.workers import tensor

TABLE = pd.DataFrame(
    {
        "age": [22.0, 38.0, np.nan, 35.0, 54.0, 2.0, 27.0, 14.0],
        "sex": ["m", "f", "f", "f", "m", "m", "f", "f"],
        "class": [3, 1, 3, 1, 1, 3, 3, 2],
        "note": ["no cabin", "cabin c85", "no cabin", "cabin c123", "cabin e46", "no", "no", "child"],
        "unused": list("abcdefgh"),
    }
)
TARGET = [0, 1, 1, 1, 0, 0, 1, 1]
EXPECTED = [("age", "FP64"), ("sex", "BYTES"), ("class", "INT64"), ("note", "BYTES")]


def _pipeline() -> Any:
    columns = ColumnTransformer(
        [
            ("numbers", make_pipeline(SimpleImputer(), StandardScaler()), ["age"]),
            ("words", make_pipeline(SimpleImputer(strategy="most_frequent"), OneHotEncoder()), ["sex"]),
            ("classes", OneHotEncoder(handle_unknown="ignore"), ["class"]),
            ("text", CountVectorizer(), "note"),
        ]
    )
    return make_pipeline(columns, LogisticRegression()).fit(TABLE, TARGET)


def _tensors(table: pd.DataFrame) -> dict[str, np.ndarray]:
    found = {}
    for name in table:
        values = table[name].to_numpy()
        text = not np.issubdtype(np.asarray(values.tolist()).dtype, np.number)
        found[str(name)] = np.array([str(v).encode() for v in values], object) if text else np.asarray(values)
    return found


@pytest.mark.parametrize("stored", ["m.skops", "m.joblib"])
def test_a_pipeline_tells_its_columns_and_answers_as_with_the_data_frame(tmp_path: Path, stored: str) -> None:
    trained = _pipeline()
    (skops.io.dump if stored == "m.skops" else joblib.dump)(trained, tmp_path / stored)
    loaded = formats.load(tmp_path / stored, None, LoadOptions(trusted=stored == "m.joblib"))
    assert loaded.format == "sklearn"
    assert [(t.name, t.datatype) for t in loaded.model.signature.inputs] == EXPECTED
    inputs = _tensors(TABLE.drop(columns="unused"))
    given = loaded.model.predict(inputs)
    np.testing.assert_allclose(given["predict_proba"], trained.predict_proba(TABLE), rtol=1e-12)
    np.testing.assert_array_equal(given["predict"], trained.predict(TABLE))


def test_columns_through_a_worker(worker: WorkerProcess, tmp_path: Path) -> None:
    skops.io.dump(_pipeline(), tmp_path / "m.skops")
    answer = worker.load("default/table/v1", tmp_path / "m.skops").json()
    assert [(t["name"], t["datatype"]) for t in answer["signature"]["inputs"]] == EXPECTED
    inputs = [
        tensor("age", "FP64", [2], [30.5, 4]), tensor("sex", "BYTES", [2], ["f", "m"]),
        tensor("class", "INT64", [2], [1, 3]), tensor("note", "BYTES", [2], ["cabin c85", "child"]),
    ]  # fmt: skip
    outputs = worker.infer("default/table/v1", *inputs).json()["outputs"]
    asked = pd.DataFrame(
        {"age": [30.5, 4], "sex": ["f", "m"], "class": [1, 3], "note": ["cabin c85", "child"], "unused": [0, 0]}
    )
    expected = _pipeline().predict_proba(asked)
    np.testing.assert_allclose(np.reshape(outputs[1]["data"], (2, 2)), expected, rtol=1e-9)


def test_a_declared_signature_gives_the_columns(tmp_path: Path) -> None:
    skops.io.dump(_pipeline(), tmp_path / "m.skops")
    signature = Signature(
        (*(Tensor(name, kind, (-1, 1)) for name, kind in EXPECTED), Tensor("unused", "BYTES", (-1,), optional=True)),  # type: ignore[arg-type]
        (Tensor("predict", "INT64", (-1,)), Tensor("predict_proba", "FP64", (-1, 2))),
    )
    model = formats.load(tmp_path / "m.skops", None, LoadOptions(signature=signature)).model
    inputs = _tensors(TABLE)
    given = model.predict({name: inputs[name].reshape(-1, 1) for name, _ in EXPECTED})
    np.testing.assert_allclose(given["predict_proba"], _pipeline().predict_proba(TABLE), rtol=1e-12)


@pytest.mark.parametrize("select", [["x"], make_column_selector(pattern="x")])
def test_one_column_is_a_data_frame_too(tmp_path: Path, select: Any) -> None:
    table = pd.DataFrame({"x": ["a", "b", "a", "b"]})
    trained = make_pipeline(ColumnTransformer([("w", OneHotEncoder(), select)]), LogisticRegression())
    joblib.dump(trained.fit(table, [0, 1, 0, 1]), tmp_path / "m")
    model = formats.load(tmp_path / "m", None, LoadOptions(trusted=True)).model
    assert model.signature.inputs == (Tensor("x", "BYTES", (-1,)),)
    assert model.predict({"x": np.array([b"b", b"a"], object)})["predict"].tolist() == [1, 0]


def test_a_column_of_another_shape_is_the_clients_mistake(tmp_path: Path) -> None:
    joblib.dump(_pipeline(), tmp_path / "m")
    model: LoadedModel = formats.load(tmp_path / "m", None, LoadOptions(trusted=True)).model
    inputs = _tensors(TABLE.drop(columns="unused"))
    with pytest.raises(InvalidInput, match="rows"):
        model.predict({**inputs, "class": inputs["class"][:3]})
    with pytest.raises(InvalidInput, match="one value in each row"):
        model.predict({**inputs, "age": np.zeros((4, 2))})


def test_without_names_of_columns_a_matrix_stays_a_matrix(tmp_path: Path) -> None:
    numbers = TABLE[["age", "class"]].fillna(0)
    trained = make_pipeline(StandardScaler(), LogisticRegression()).fit(numbers, TARGET)
    skops.io.dump(trained, tmp_path / "m")
    model = formats.load(tmp_path / "m", None, LoadOptions()).model
    assert model.signature.inputs == (Tensor("input-0", "FP64", (-1, 2)),)
    with pytest.raises(LoadFailed):
        formats.load(tmp_path / "m", "catboost", LoadOptions())
