"""Real models through the probation process and a worker: converted, compared, served; or refused, with the reason."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest

from tests.component.runtime.conftest import Models
from tests.support.workers import Answer, WorkerProcess, call, tensor

Fit = Callable[[], Any]


def accelerate(probation: Path, artifact: Path, target: Path, **members: Any) -> Answer:
    """The call `POST /accelerate`."""
    body = {
        "path": str(artifact), "target": str(target), "format": None, "trusted": True, "parameters": {},
        "signature": None, "timeout_s": 60, "memory_limit_bytes": 1024**3, **members,
    }  # fmt: skip
    return call(probation, "POST", "/accelerate", json.dumps(body).encode())


def _cancer() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_breast_cancer

    return load_breast_cancer(return_X_y=True)


def _iris() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_iris

    return load_iris(return_X_y=True)


def _diabetes() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_diabetes

    return load_diabetes(return_X_y=True)


def forest(**options: Any) -> Any:
    from sklearn.ensemble import RandomForestClassifier

    return RandomForestClassifier(12, random_state=1, **options).fit(*_cancer())


def named_forest() -> Any:
    from sklearn.ensemble import RandomForestClassifier

    rows, labels = _iris()
    names = np.array(["setosa", "versicolor", "virginica"])[labels]
    return RandomForestClassifier(20, random_state=1, max_depth=3).fit(rows, names)


def forest_regression() -> Any:
    from sklearn.ensemble import RandomForestRegressor

    return RandomForestRegressor(20, random_state=1).fit(*_diabetes())


def logistic() -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression()).fit(*_iris())


def gradient_boosting() -> Any:
    from sklearn.ensemble import GradientBoostingClassifier

    return GradientBoostingClassifier(random_state=1).fit(*_cancer())


def histogram() -> Any:
    from sklearn.ensemble import HistGradientBoostingClassifier

    return HistGradientBoostingClassifier(random_state=1).fit(*_cancer())


def saved(folder: Path, name: str) -> tuple[Path, np.ndarray]:
    """A model of that name in its own format, and rows to ask it with."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if name.startswith("xgboost"):
            import xgboost

            rows, labels = _iris() if name.endswith("three") else _cancer()
            path = folder / "model.ubj"
            xgboost.XGBClassifier(n_estimators=30).fit(rows, labels).save_model(path)
            return path, rows
        if name.startswith("lightgbm"):
            import lightgbm

            rows, labels = _iris() if name.endswith("three") else _cancer()
            path = folder / "model.txt"
            lightgbm.LGBMClassifier(n_estimators=30, verbose=-1).fit(rows, labels).booster_.save_model(path)
            return path, rows
        fit: dict[str, tuple[Fit, Fit]] = {
            "forest": (forest, _cancer),
            "shallow forest": (lambda: forest(max_depth=4), _cancer),
            "named forest": (named_forest, _iris),
            "forest regression": (forest_regression, _diabetes),
            "logistic": (logistic, _iris),
            "gradient boosting": (gradient_boosting, _cancer),
            "histogram": (histogram, _cancer),
        }
        path = folder / "model.joblib"
        joblib.dump(fit[name][0](), path)
        return path, fit[name][1]()[0]


AGREEING = {
    "forest": "trees in FP64",
    "shallow forest": "trees in FP64",
    "named forest": "trees in FP64",
    "forest regression": "trees in FP64",
    "logistic": "skl2onnx in FP64",
    "gradient boosting": "trees in FP64",
    "histogram": "trees in FP64",
    "xgboost": "trees in FP32",
    "xgboost of three": "trees in FP32",
    "lightgbm": "trees in FP64",
    "lightgbm of three": "trees in FP64",
}


def outputs_of(answer: Answer) -> dict[str, dict[str, Any]]:
    assert answer.status == 200, answer.body
    return {output["name"]: output for output in answer.json()["outputs"]}


@pytest.mark.parametrize("name", AGREEING)
def test_a_converted_model_answers_as_the_original_does(
    probation: Path, worker: WorkerProcess, tmp_path: Path, name: str
) -> None:
    artifact, rows = saved(tmp_path, name)
    target = tmp_path / "model.onnx"
    report = accelerate(probation, artifact, target).json()
    # Whether it is faster is the machine's to say, but these are by far; what is asserted is the agreement.
    assert report["used"], report
    assert report["way"] == AGREEING[name]
    assert report["inputs"] > 1000
    assert report["largest_difference"] <= 1e-6

    original, converted = f"default/original-{name[:5]}/v1", f"default/converted-{name[:5]}/v1"
    loaded = worker.load(original, artifact, trusted=True).json()
    again = worker.load(converted, artifact, format=loaded["format"], accelerated=str(target)).json()
    assert (again["format"], again["signature"]) == (loaded["format"], loaded["signature"])
    taken = loaded["signature"]["inputs"][0]
    random = np.random.default_rng(7)
    fresh = rows[random.integers(0, len(rows), 200)] * random.normal(1.0, 0.3, (200, rows.shape[1]))
    sent = tensor(taken["name"], taken["datatype"], list(fresh.shape), fresh.tolist())
    want, got = outputs_of(worker.infer(original, sent)), outputs_of(worker.infer(converted, sent))
    assert want.keys() == got.keys()
    for output, expected in want.items():
        assert (expected["datatype"], expected["shape"]) == (got[output]["datatype"], got[output]["shape"])
        if expected["datatype"] in ("FP32", "FP64"):
            np.testing.assert_allclose(got[output]["data"], expected["data"], rtol=1e-5, atol=1e-6)
        else:
            assert got[output]["data"] == expected["data"]
    for target_name in (original, converted):
        worker.unload(target_name)


def test_a_booster_is_exact_on_both_sides_of_its_fp64_thresholds(probation: Path, tmp_path: Path) -> None:
    """Neighbours in FP64 that are one number in FP32: the trap of conversions that round."""
    import lightgbm

    from msm.runtime.acceleration.model import load

    rows = np.repeat(1.0 + np.arange(64) * 1e-9, 8)[:, None]
    labels = (np.arange(len(rows)) // 8) % 2
    booster = lightgbm.train(
        {"objective": "binary", "verbose": -1, "min_data_in_leaf": 1, "min_data_in_bin": 1, "num_leaves": 31},
        lightgbm.Dataset(rows, labels),
        10,
    )
    booster.save_model(tmp_path / "model.txt")
    rounded = rows.astype(np.float32).astype(np.float64)
    assert np.abs(booster.predict(rows) - booster.predict(rounded)).max() > 0.1
    report = accelerate(probation, tmp_path / "model.txt", tmp_path / "model.onnx").json()
    assert report["used"], report
    got = load(tmp_path / "model.onnx").predict({"input-0": rows})["predict"]
    np.testing.assert_allclose(got, booster.predict(rows), rtol=1e-12)


def test_a_graph_that_breaks_ties_otherwise_is_refused(probation: Path, tmp_path: Path) -> None:
    """Nearest neighbours on whole numbers: the converted graph chooses other ones among equally near."""
    from sklearn.neighbors import KNeighborsClassifier

    joblib.dump(KNeighborsClassifier().fit(*_iris()), tmp_path / "model.joblib")
    report = accelerate(probation, tmp_path / "model.joblib", tmp_path / "model.onnx").json()
    assert not report["used"]
    assert "does not agree" in report["reason"]
    assert "predict" in report["reason"]
    assert report["speed_one"] is None
    assert not (tmp_path / "model.onnx").exists()


def test_a_graph_that_rounds_thresholds_to_fp32_is_refused(probation: Path, tmp_path: Path) -> None:
    """Splits on categories leave only the converter that computes in FP32; the thresholds need FP64."""
    import lightgbm

    random = np.random.default_rng(1)
    fine, category = 1.0 + random.integers(0, 64, 2000) * 1e-9, random.integers(0, 6, 2000)
    labels = ((np.rint((fine - 1.0) * 1e9) % 4 < 2) ^ (category % 2)).astype(float)
    data = lightgbm.Dataset(np.column_stack([fine, category]), labels, categorical_feature=[1])
    options = {"objective": "regression", "verbose": -1, "min_data_in_bin": 1, "min_data_per_group": 1, "cat_smooth": 0}
    lightgbm.train(options, data, 20).save_model(tmp_path / "model.txt")
    report = accelerate(probation, tmp_path / "model.txt", tmp_path / "model.onnx").json()
    assert not report["used"]
    assert "onnxmltools in FP32" in report["reason"]


def test_what_the_original_raises_on_is_refused_by_the_converted_model(
    probation: Path, worker: WorkerProcess, tmp_path: Path
) -> None:
    joblib.dump(logistic(), tmp_path / "model.joblib")
    assert accelerate(probation, tmp_path / "model.joblib", tmp_path / "model.onnx").json()["used"]
    target = "default/strict/v1"
    assert worker.load(target, tmp_path, format="sklearn", accelerated=str(tmp_path / "model.onnx")).status == 200
    rows = np.array([[5.1, np.nan, 1.4, 0.2]])
    head = json.dumps(
        {"inputs": [{"name": "input-0", "datatype": "FP64", "shape": [1, 4], "parameters": {"binary_data_size": 32}}]}
    ).encode()
    headers = {"x-msm-target": target, "inference-header-content-length": str(len(head))}
    answer = call(worker.data, "POST", "/v2/models/strict/infer", head + rows.tobytes(), headers)
    assert answer.status == 400, answer.body
    assert "holds NaN" in answer.json()["error"]
    worker.unload(target)


@pytest.mark.parametrize(
    ("artifact", "why"),
    [("iris.onnx", "only scikit-learn, XGBoost and LightGBM"), ("text.skops", "only numbers are converted")],
)
def test_what_cannot_be_converted_is_told(
    probation: Path, models: Models, tmp_path: Path, artifact: str, why: str
) -> None:
    report = accelerate(probation, models[artifact], tmp_path / "model.onnx").json()
    assert not report["used"]
    assert why in report["reason"]


def test_recorded_samples_take_part(probation: Path, tmp_path: Path) -> None:
    joblib.dump(logistic(), tmp_path / "model.joblib")
    without = accelerate(probation, tmp_path / "model.joblib", tmp_path / "a.onnx").json()
    given = {"samples": [[5.1, 3.5, 1.4, 0.2], [6.0, 2.9, 4.5, 1.5]]}
    recorded = accelerate(probation, tmp_path / "model.joblib", tmp_path / "b.onnx", parameters=given).json()
    assert recorded["used"]
    assert recorded["inputs"] != without["inputs"]
    wrong = {"samples": [[5.1, 3.5]]}
    refused = accelerate(probation, tmp_path / "model.joblib", tmp_path / "c.onnx", parameters=wrong).json()
    assert not refused["used"]
    assert "the samples do not fit: input 'input-0' must have shape [-1, 4], got [1, 2]" in refused["reason"]


def test_samples_lie_beside_the_model_in_a_folder(probation: Path, tmp_path: Path) -> None:
    folder = tmp_path / "artifact"
    folder.mkdir()
    joblib.dump(logistic(), folder / "model.joblib")
    (folder / "samples.json").write_text('{"input-0": [[5.1, 3.5, 1.4, "x"]]}')
    report = accelerate(probation, folder, tmp_path / "model.onnx").json()
    assert not report["used"]
    assert "the samples do not fit" in report["reason"]


def test_a_table_of_columns_is_converted(probation: Path, tmp_path: Path) -> None:
    import pandas as pd
    from sklearn.compose import ColumnTransformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import MinMaxScaler, StandardScaler

    from msm.runtime.acceleration.model import load

    rows, labels = _iris()
    frame = pd.DataFrame(rows, columns=["a", "b", "c", "d"])
    table = ColumnTransformer([("s", StandardScaler(), ["a", "c"]), ("m", MinMaxScaler(), ["b", "d"])])
    model = make_pipeline(table, LogisticRegression()).fit(frame, labels)
    joblib.dump(model, tmp_path / "model.joblib")
    signature = {"inputs": [{"name": name, "datatype": "FP64", "shape": [-1]} for name in "abcd"], "outputs": []}
    report = accelerate(probation, tmp_path / "model.joblib", tmp_path / "model.onnx", signature=signature).json()
    assert report["used"], report
    sent = {name: rows[:, index].copy() for index, name in enumerate("abcd")}
    got = load(tmp_path / "model.onnx").predict(sent)
    assert (got["predict"] == model.predict(frame)).all()
