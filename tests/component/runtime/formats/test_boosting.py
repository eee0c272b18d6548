"""CatBoost and XGBoost's scikit-learn interface: the answers are the library's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from msm.kit.errors import InvalidInput, LoadFailed
from msm.runtime import formats
from msm.runtime.formats.base import LoadOptions
from msm.runtime.signature import Signature, Tensor
from tests.component.runtime.conftest import WorkerProcess
from tests.support.workers import tensor

QUICK = {"iterations": 5, "verbose": 0, "allow_writing_files": False, "thread_count": 1}


@pytest.mark.parametrize("labels", ["numbers", "names", "yes or no"])
def test_a_catboost_classifier_gives_classes_and_probabilities(
    tmp_path: Path, iris: tuple[np.ndarray, np.ndarray], labels: str
) -> None:
    import catboost

    rows, classes = iris
    target = {"numbers": classes, "names": np.array(["x", "y", "z"])[classes], "yes or no": classes == 1}[labels]
    trained = catboost.CatBoostClassifier(**QUICK).fit(rows, target)
    trained.save_model(str(tmp_path / "m.cbm"))
    loaded = formats.load(tmp_path / "m.cbm", None, LoadOptions())
    assert loaded.format == "catboost"
    kind = {"numbers": "INT64", "names": "BYTES", "yes or no": "BOOL"}[labels]
    width = 2 if labels == "yes or no" else 3
    assert loaded.model.signature == Signature(
        (Tensor("input-0", "FP32", (-1, 4)),),
        (Tensor("predict", kind, (-1,)), Tensor("predict_proba", "FP64", (-1, width))),
    )
    given = loaded.model.predict({"input-0": rows})
    expected = np.asarray(trained.predict(rows)).reshape(-1)
    assert [str(value) for value in given["predict"]] == [str(value) for value in expected]
    np.testing.assert_allclose(given["predict_proba"], trained.predict_proba(rows), rtol=1e-12)


def test_a_catboost_regressor_through_a_worker(worker: WorkerProcess, tmp_path: Path) -> None:
    import catboost
    from sklearn.datasets import load_diabetes

    rows, values = load_diabetes(return_X_y=True)
    trained = catboost.CatBoostRegressor(**QUICK).fit(rows, values)
    trained.save_model(str(tmp_path / "m.cbm"))
    answer = worker.load("default/cat-reg/v1", tmp_path / "m.cbm").json()
    assert answer["signature"]["outputs"] == [{"name": "predict", "datatype": "FP64", "shape": [-1]}]
    asked = rows[:20].astype(np.float32)
    answer = worker.infer("default/cat-reg/v1", tensor("input-0", "FP32", [20, 10], asked.ravel().tolist()))
    np.testing.assert_allclose(answer.json()["outputs"][0]["data"], trained.predict(asked), rtol=1e-9)


def test_features_of_categories_and_text_are_columns_by_name(tmp_path: Path) -> None:
    import catboost
    import pandas as pd

    table = pd.DataFrame(
        {"size": [1.0, 2.0, 3.0, 4.0] * 6, "colour": ["red", "blue", "red", "green"] * 6, "kind": [1, 2, 1, 3] * 6}
    )
    trained = catboost.CatBoostClassifier(cat_features=["colour", "kind"], **QUICK).fit(table, [1, 0, 1, 0] * 6)
    trained.save_model(str(tmp_path / "m.cbm"))
    model = formats.load(tmp_path / "m.cbm", None, LoadOptions()).model
    assert [(t.name, t.datatype, t.shape) for t in model.signature.inputs] == [
        ("size", "FP32", (-1,)), ("colour", "BYTES", (-1,)), ("kind", "BYTES", (-1,)),
    ]  # fmt: skip
    given = model.predict(
        {
            "size": table["size"].to_numpy(np.float32)[:4],
            "colour": np.array([b"red", b"blue", b"red", b"never seen"], object),
            "kind": np.array([1, 2, b"1", 3], object),
        }
    )
    asked = table[:4].assign(colour=["red", "blue", "red", "never seen"])
    np.testing.assert_allclose(given["predict_proba"], trained.predict_proba(asked), rtol=1e-12)
    with pytest.raises(InvalidInput, match="UTF-8"):
        model.predict(
            {"size": np.zeros(1, np.float32), **dict.fromkeys(("colour", "kind"), np.array([b"\xff"], object))}
        )


@pytest.mark.parametrize("keep", [0.001, 0.1, 0.5, 0.99])
def test_a_catboost_file_that_was_cut_off_is_refused(
    tmp_path: Path, iris: tuple[np.ndarray, np.ndarray], keep: float
) -> None:
    import catboost

    catboost.CatBoostClassifier(**QUICK).fit(*iris).save_model(str(tmp_path / "m.cbm"))
    whole = (tmp_path / "m.cbm").read_bytes()
    (tmp_path / "m.cbm").write_bytes(whole[: max(4, int(len(whole) * keep))])
    with pytest.raises(LoadFailed, match="broken") as refused:
        formats.load(tmp_path / "m.cbm", None, LoadOptions())
    assert refused.value.reason == "corrupt_artifact"


def test_a_declared_signature_must_fit_the_trees(tmp_path: Path, iris: tuple[np.ndarray, np.ndarray]) -> None:
    import catboost

    rows, labels = iris
    catboost.CatBoostClassifier(**QUICK).fit(rows, labels).save_model(str(tmp_path / "m.cbm"))
    outputs = (Tensor("class", "INT64", (-1,)), Tensor("chance", "FP64", (-1, 3)))
    inputs = (Tensor("flower", "FP32", (-1, 4)),)
    model = formats.load(tmp_path / "m.cbm", None, LoadOptions(signature=Signature(inputs, outputs))).model
    assert model.predict({"flower": rows})["chance"].shape == (150, 3)
    for wrong in (
        Signature((Tensor("flower", "FP32", (-1, 5)),)),
        Signature(inputs, outputs[:1]),
        Signature(inputs, (outputs[0], Tensor("chance", "FP32", (-1, 3)))),
    ):
        with pytest.raises(LoadFailed) as refused:
            formats.load(tmp_path / "m.cbm", None, LoadOptions(signature=wrong))
        assert refused.value.reason == "signature_mismatch"


@pytest.mark.parametrize("classes", [2, 3])
def test_xgboost_answers_as_its_scikit_learn_interface_when_asked_to(
    tmp_path: Path, iris: tuple[np.ndarray, np.ndarray], classes: int
) -> None:
    import xgboost

    rows, labels = iris[0][iris[1] < classes], iris[1][iris[1] < classes]
    trained = xgboost.XGBClassifier(n_estimators=30, max_depth=2, early_stopping_rounds=2, learning_rate=1.0)
    trained.fit(rows[::2], labels[::2], eval_set=[(rows[1::2], labels[1::2])], verbose=False)
    assert trained.best_iteration < trained.get_booster().num_boosted_rounds() - 1
    trained.save_model(tmp_path / "m.ubj")
    options = LoadOptions(parameters={"interface": "sklearn"})
    given = formats.load(tmp_path / "m.ubj", None, options).model.predict({"input-0": rows})
    np.testing.assert_array_equal(given["predict"], trained.predict(rows))
    np.testing.assert_allclose(given["predict_proba"], trained.predict_proba(rows), rtol=1e-6)
    with pytest.raises(InvalidInput, match="booster or sklearn"):
        formats.load(tmp_path / "m.ubj", None, LoadOptions(parameters={"interface": "spark"}))


@pytest.mark.parametrize("ending", [".ubj", ".json"])
def test_an_xgboost_file_cut_off_anywhere_is_refused(
    tmp_path: Path, iris: tuple[np.ndarray, np.ndarray], ending: str
) -> None:
    """The library itself would read over the end of some of them."""
    import xgboost

    trained = xgboost.XGBRegressor(n_estimators=2, max_depth=2).fit(*iris)
    trained.save_model(tmp_path / f"whole{ending}")
    whole = (tmp_path / f"whole{ending}").read_bytes()
    assert formats.load(tmp_path / f"whole{ending}", None, LoadOptions()).format == "xgboost"
    for size in range(100, len(whole), 97):
        (tmp_path / "m").write_bytes(whole[:size])
        with pytest.raises(LoadFailed) as refused:
            formats.load(tmp_path / "m", "xgboost", LoadOptions())
        assert refused.value.reason == "corrupt_artifact"


def test_a_lightgbm_file_cut_off_in_its_parameters_is_refused(
    tmp_path: Path, iris: tuple[np.ndarray, np.ndarray]
) -> None:
    import lightgbm

    lightgbm.LGBMRegressor(n_estimators=2, verbose=-1).fit(*iris).booster_.save_model(tmp_path / "whole")
    whole = (tmp_path / "whole").read_bytes()
    assert formats.load(tmp_path / "whole", None, LoadOptions()).format == "lightgbm"
    for size in range(whole.index(b"parameters:") + 11, whole.index(b"end of parameters") + 16, 53):
        (tmp_path / "m").write_bytes(whole[:size])
        with pytest.raises(LoadFailed, match="end of parameters"):
            formats.load(tmp_path / "m", "lightgbm", LoadOptions())
