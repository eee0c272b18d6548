"""Folders as MLflow itself writes them; the answers are those of `mlflow.pyfunc`, or of the library."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from msm.kit.errors import Forbidden, InvalidInput, LoadFailed, MsmError
from msm.runtime import formats
from msm.runtime.formats.base import LoadedModel, LoadOptions
from msm.runtime.signature import Tensor
from tests.component.runtime.conftest import WorkerProcess
from tests.support.workers import tensor

pytestmark = [pytest.mark.filterwarnings("ignore")]
NAMES = ["a", "b", "c", "d"]
TRUSTED = LoadOptions(trusted=True)
Iris = tuple[np.ndarray, np.ndarray]


def _pyfunc(path: Path) -> Any:
    import mlflow.pyfunc

    return mlflow.pyfunc.load_model(str(path))


def _load(path: Path, options: LoadOptions = LoadOptions()) -> LoadedModel:  # noqa: B008 - a frozen value
    loaded = formats.load(path, None, options)
    assert loaded.format == "mlflow"
    return loaded.model


def _save(flavor: str, model: Any, path: Path, **settings: Any) -> None:
    import importlib

    importlib.import_module(f"mlflow.{flavor}").save_model(model, str(path), pip_requirements=[], **settings)


def _signature(given: Any, result: Any = None) -> Any:
    from mlflow.models import infer_signature

    return infer_signature(given, result)


def _frame(iris: Iris) -> pd.DataFrame:
    return pd.DataFrame(iris[0].astype(np.float64), columns=NAMES)


def _columns(table: pd.DataFrame) -> dict[str, np.ndarray]:
    return {str(name): table[name].to_numpy() for name in table}


@pytest.mark.parametrize("stored", ["skops", "cloudpickle"])
def test_scikit_learn_with_columns(worker: WorkerProcess, tmp_path: Path, iris: Iris, stored: str) -> None:
    from sklearn.linear_model import LogisticRegression

    table = _frame(iris)
    trained = LogisticRegression(max_iter=500).fit(table, iris[1])
    path = tmp_path / "m"
    _save("sklearn", trained, path, serialization_format=stored, signature=_signature(table, iris[1]))
    pickled = stored == "cloudpickle"
    if pickled:
        with pytest.raises(Forbidden, match="trusted: true"):
            _load(path)
    model = _load(path, LoadOptions(trusted=pickled))
    assert model.signature.inputs == tuple(Tensor(name, "FP64", (-1,)) for name in NAMES)
    given = model.predict(_columns(table))
    np.testing.assert_array_equal(given["predict"], _pyfunc(path).predict(table))
    np.testing.assert_allclose(given["predict_proba"], trained.predict_proba(table))
    target = f"default/ml-{stored}/v1"
    assert worker.load(target, path, trusted=pickled).json()["format"] == "mlflow"
    inputs = [tensor(name, "FP64", [3], table[name][::60].tolist()) for name in NAMES]
    assert worker.infer(target, *inputs).json()["outputs"][0]["data"] == trained.predict(table[::60]).tolist()


def test_scikit_learn_with_a_tensor_and_another_method(tmp_path: Path, iris: Iris) -> None:
    from sklearn.linear_model import LogisticRegression

    rows = iris[0].astype(np.float64)
    trained = LogisticRegression(max_iter=500).fit(rows, iris[1])
    _save("sklearn", trained, tmp_path / "m", signature=_signature(rows), pyfunc_predict_fn="predict_proba")
    model = _load(tmp_path / "m")
    assert model.signature.inputs == (Tensor("input-0", "FP64", (-1, 4)),)
    np.testing.assert_allclose(model.predict({"input-0": rows})["predict_proba"], _pyfunc(tmp_path / "m").predict(rows))


@pytest.mark.parametrize("columns", [True, False])
def test_xgboost_answers_as_the_class_that_was_stored(tmp_path: Path, iris: Iris, columns: bool) -> None:
    import xgboost

    given: Any = _frame(iris) if columns else iris[0]
    trained = xgboost.XGBClassifier(n_estimators=5).fit(given, iris[1])
    _save("xgboost", trained, tmp_path / "c", signature=_signature(given, iris[1]))
    model = _load(tmp_path / "c")
    assert len(model.signature.inputs) == (4 if columns else 1)
    inputs = _columns(given) if columns else {"input-0": given}
    np.testing.assert_array_equal(model.predict(inputs)["predict"], _pyfunc(tmp_path / "c").predict(given))
    _save("xgboost", trained.get_booster(), tmp_path / "b")
    raw = _load(tmp_path / "b").predict({"input-0": iris[0]})["predict"]
    np.testing.assert_allclose(raw, trained.predict_proba(given), rtol=1e-6)


def test_lightgbm_as_booster_and_as_classifier(tmp_path: Path, iris: Iris) -> None:
    import lightgbm

    table = _frame(iris)
    trained = lightgbm.LGBMClassifier(n_estimators=5, verbose=-1, n_jobs=1).fit(table, iris[1])
    _save("lightgbm", trained, tmp_path / "c", signature=_signature(table, iris[1]))
    given = _load(tmp_path / "c").predict(_columns(table))
    np.testing.assert_array_equal(given["predict"], _pyfunc(tmp_path / "c").predict(table))
    _save("lightgbm", trained.booster_, tmp_path / "b", signature=_signature(table))
    given = _load(tmp_path / "b").predict(_columns(table))
    np.testing.assert_allclose(given["predict"], _pyfunc(tmp_path / "b").predict(table), rtol=1e-12)


def test_catboost_and_onnx(tmp_path: Path, iris: Iris) -> None:
    import catboost
    from skl2onnx import to_onnx
    from sklearn.linear_model import LogisticRegression

    rows, labels = iris
    trees = catboost.CatBoostClassifier(iterations=5, verbose=0, allow_writing_files=False).fit(rows, labels)
    _save("catboost", trees, tmp_path / "cat", signature=_signature(rows, labels))
    given = _load(tmp_path / "cat").predict({"input-0": rows})["predict"]
    np.testing.assert_array_equal(given, _pyfunc(tmp_path / "cat").predict(rows).reshape(-1))
    graph = to_onnx(LogisticRegression(max_iter=500).fit(rows, labels), rows[:1], options={"zipmap": False})
    _save("onnx", graph, tmp_path / "onnx", signature=_signature(_frame(iris).astype(np.float32)))
    model = _load(tmp_path / "onnx")
    assert [t.name for t in model.signature.inputs] == NAMES
    given = model.predict(_columns(_frame(iris)))
    assert (given["label"] == labels).mean() > 0.9


@pytest.mark.parametrize("way", ["pt2", "pickle", "script"])
def test_pytorch_in_each_way_of_storing(tmp_path: Path, iris: Iris, way: str) -> None:
    import torch

    network = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU())
    rows = iris[0]
    expected = network(torch.tensor(rows)).detach().numpy()
    stored = torch.jit.script(network) if way == "script" else network
    more = {"input_example": rows[:3]} if way == "pt2" else {"signature": _signature(rows, expected)}
    _save("pytorch", stored, tmp_path / "m", serialization_format="pt2" if way == "pt2" else "pickle", **more)
    with pytest.raises(Forbidden):
        _load(tmp_path / "m")
    model = _load(tmp_path / "m", TRUSTED)
    name = model.signature.inputs[0].name
    np.testing.assert_allclose(model.predict({name: rows})["output-0"], expected, rtol=1e-6)


@pytest.fixture(scope="module")
def function(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A python_function as MLflow stores one, from the body of its `predict`."""
    import mlflow.pyfunc

    def write(body: Callable[[Any], Any], **settings: Any) -> Path:
        class Function(mlflow.pyfunc.PythonModel):
            def predict(self, context, model_input, params=None):
                return body(model_input)

        path = tmp_path_factory.mktemp("pyfunc") / "m"
        mlflow.pyfunc.save_model(str(path), python_model=Function(), pip_requirements=[], **settings)
        return path

    return write


def test_a_python_function_gets_a_data_frame(worker: WorkerProcess, function: Callable[..., Path]) -> None:
    table = pd.DataFrame({"x": [1.0, 2.0], "word": ["a", "bc"]})
    result = pd.DataFrame({"twice": [2.0, 4.0], "length": [1, 2]})

    def body(given: Any) -> Any:
        import pandas

        return pandas.DataFrame({"twice": given["x"] * 2, "length": given["word"].str.len()})

    path = function(body, signature=_signature(table, result))
    with pytest.raises(Forbidden, match="trusted: true"):
        _load(path)
    model = _load(path, TRUSTED)
    given = model.predict({"x": np.array([1.0, 2.0]), "word": np.array([b"a", b"bc"], object)})
    assert (given["twice"].tolist(), given["length"].tolist()) == ([2.0, 4.0], [1, 2])
    assert worker.load("default/pyfunc/v1", path, trusted=True).json()["format"] == "mlflow"
    inputs = tensor("x", "FP64", [2], [1, 2]), tensor("word", "BYTES", [2], ["a", "\u00fc"])
    answer = worker.infer("default/pyfunc/v1", *inputs).json()["outputs"]
    assert {item["name"]: item["data"] for item in answer} == {"twice": [2.0, 4.0], "length": [1, 1]}
    with pytest.raises(InvalidInput, match="rows"):
        model.predict({"x": np.zeros(3), "word": np.array([b"a"], object)})


def test_a_python_function_with_tensors_or_without_a_signature(function: Callable[..., Path]) -> None:
    rows = np.arange(6.0).reshape(3, 2)
    path = function(lambda given: given.sum(axis=1), signature=_signature(rows, rows.sum(axis=1)))
    assert _load(path, TRUSTED).predict({"input-0": rows})["output-0"].tolist() == [1.0, 5.0, 9.0]
    free = function(lambda given: [{"n": 1}, "text"])
    assert _load(free, TRUSTED).predict({"any": rows})["output-0"].tolist() == ['{"n": 1}', "text"]


def test_times_and_json_are_columns_of_text(function: Callable[..., Path]) -> None:
    from mlflow.models import ModelSignature
    from mlflow.types.schema import Array, ColSpec, DataType, Schema

    schema = Schema([ColSpec(DataType.datetime, "when"), ColSpec(Array(DataType.long), "many")])
    out = Schema([ColSpec(DataType.long, "sum")])

    def body(given: Any) -> Any:
        return [int(when.year) + sum(many) for when, many in zip(given["when"], given["many"], strict=True)]

    model = _load(function(body, signature=ModelSignature(schema, out)), TRUSTED)
    good = {"when": np.array([b"2020-05-01T10:00"], object), "many": np.array([b"[1, 2]"], object)}
    assert model.predict(good)["sum"].tolist() == [2023]
    for wrong in ({"when": np.array([b"soon"], object)}, {"many": np.array([b"[1"], object)}):
        with pytest.raises(InvalidInput, match=next(iter(wrong))):
            model.predict({**good, **wrong})


def _with(change: Callable[[dict[str, Any]], Any], folder: Path) -> None:
    found = yaml.safe_load((folder / "MLmodel").read_text())
    change(found)
    (folder / "MLmodel").write_text(yaml.safe_dump(found))


def _point_outside(found: dict[str, Any]) -> None:
    found["flavors"]["sklearn"]["pickled_model"] = "../secret"


def _point_nowhere(found: dict[str, Any]) -> None:
    found["flavors"]["sklearn"]["pickled_model"] = "absent.skops"


def _only_spark(found: dict[str, Any]) -> None:
    found["flavors"] = {"spark": {"model_data": "x"}}


def _odd_signature(found: dict[str, Any]) -> None:
    found["signature"] = {"inputs": json.dumps([{"type": "quaternion", "name": "x"}])}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_point_outside, "outside_folder"),
        (_point_nowhere, "corrupt_artifact"),
        (_only_spark, "wrong_format"),
        (_odd_signature, "corrupt_artifact"),
    ],
)
def test_a_wrong_mlmodel_is_refused(tmp_path: Path, iris: Iris, change: Any, reason: str) -> None:
    from sklearn.linear_model import LinearRegression

    _save("sklearn", LinearRegression().fit(*iris), tmp_path / "m")
    _with(change, tmp_path / "m")
    with pytest.raises(MsmError) as refused:
        _load(tmp_path / "m", TRUSTED)
    assert refused.value.reason == reason


def test_a_broken_mlmodel_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "MLmodel").write_text("flavors: [")
    with pytest.raises(LoadFailed, match="MLmodel file is broken"):
        _load(tmp_path)
    (tmp_path / "MLmodel").unlink()
    with pytest.raises(LoadFailed, match="no MLmodel"):
        formats.load(tmp_path, "mlflow", TRUSTED)
