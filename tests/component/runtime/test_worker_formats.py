from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.component.runtime.conftest import Models, Write
from tests.support.workers import WorkerProcess, tensor


def _rows(models: Models, name: str = "input-0", datatype: str = "FP32") -> dict[str, object]:
    return tensor(name, datatype, list(models.rows.shape), models.rows.tolist())


def _outputs(answer: object) -> dict[str, np.ndarray]:
    return {item["name"]: np.array(item["data"]).reshape(item["shape"]) for item in answer["outputs"]}  # type: ignore[index]


@pytest.mark.parametrize("artifact", ["iris.skops", "iris.joblib"])
def test_a_scikit_learn_classifier_answers_as_in_training(worker: WorkerProcess, models: Models, artifact: str) -> None:
    target = f"default/sk-{artifact}/v1"
    loaded = worker.load(target, models[artifact], trusted=True).json()
    assert loaded["format"] == "sklearn"
    assert loaded["signature"] == {
        "inputs": [{"name": "input-0", "datatype": "FP64", "shape": [-1, 4]}],
        "outputs": [
            {"name": "predict", "datatype": "INT64", "shape": [-1]},
            {"name": "predict_proba", "datatype": "FP64", "shape": [-1, 3]},
        ],
    }
    outputs = _outputs(worker.infer(target, _rows(models, datatype="FP64")).json())
    np.testing.assert_array_equal(outputs["predict"], models.labels)
    np.testing.assert_allclose(outputs["predict_proba"], models.probabilities, rtol=1e-12)


def test_scikit_learn_takes_other_numeric_datatypes_than_declared(worker: WorkerProcess, models: Models) -> None:
    worker.load("default/lenient/v1", models["iris.skops"])
    for datatype in ("FP32", "FP64"):
        answer = worker.infer("default/lenient/v1", _rows(models, datatype=datatype))
        np.testing.assert_array_equal(_outputs(answer.json())["predict"], models.labels)
    assert worker.infer("default/lenient/v1", tensor("input-0", "INT16", [1, 4], [5, 3, 1, 0])).status == 200
    assert worker.infer("default/lenient/v1", tensor("input-0", "BYTES", [1, 4], list("abcd"))).status == 400


def test_a_forest_is_read_by_skops_without_trust(worker: WorkerProcess, models: Models) -> None:
    assert worker.load("default/forest/v1", models["forest.skops"]).status == 200


def test_text_goes_in_and_names_come_out(worker: WorkerProcess, models: Models) -> None:
    worker.load("default/text/v1", models["text.skops"])
    answer = worker.infer("default/text/v1", tensor("input-0", "BYTES", [2], ["good good film", "bad"]))
    assert _outputs(answer.json())["predict"].tolist() == [1, 0]
    loaded = worker.load("default/named/v1", models["named.skops"], parameters={"outputs": ["predict"]}).json()
    assert loaded["signature"]["outputs"] == [{"name": "predict", "datatype": "BYTES", "shape": [-1]}]
    answer = worker.infer("default/named/v1", tensor("input-0", "FP64", [1, 4], [5.1, 3.5, 1.4, 0.2]))
    assert answer.json()["outputs"][0]["data"] == ["setosa"]


def test_a_pickle_is_refused_without_trust_whatever_its_name_says(
    worker: WorkerProcess, models: Models, tmp_path: Path
) -> None:
    for name in ("model.joblib", "model.skops", "model.onnx"):
        shutil.copy(models["iris.joblib"], tmp_path / name)
        for given in (None, "sklearn"):
            answer = worker.load("default/pickle/v1", tmp_path / name, format=given)
            assert (answer.status, answer.json()["reason"]) == (403, "unsafe_format")
    answer = worker.load("default/pickle/v1", tmp_path / "model.onnx", format="onnx")
    assert answer.status == 503
    assert answer.json()["reason"] == "wrong_format"
    assert "default/pickle/v1" not in worker.index()


def test_a_skops_file_with_foreign_types_is_refused(worker: WorkerProcess, tmp_path: Path) -> None:
    import os

    import skops.io
    from sklearn.preprocessing import FunctionTransformer

    skops.io.dump(FunctionTransformer(os.system), tmp_path / "model.skops")
    answer = worker.load("default/foreign/v1", tmp_path / "model.skops", trusted=True)
    assert (answer.status, answer.json()["reason"]) == (403, "unsafe_format")
    assert "system" in answer.json()["error"]


@pytest.mark.parametrize("artifact", ["iris.onnx", "zipmap.onnx"])
def test_an_onnx_graph_answers_as_the_model_it_was_made_from(
    worker: WorkerProcess, models: Models, artifact: str
) -> None:
    target = f"default/{artifact}/v1"
    loaded = worker.load(target, models[artifact]).json()
    assert loaded["format"] == "onnx"
    labels, probabilities = (item["name"] for item in loaded["signature"]["outputs"])
    outputs = _outputs(worker.infer(target, _rows(models, "X")).json())
    np.testing.assert_array_equal(outputs[labels], models.labels)
    np.testing.assert_allclose(outputs[probabilities], models.probabilities, atol=1e-4)


def test_an_onnx_file_that_names_a_file_outside_of_its_folder_is_refused(worker: WorkerProcess, tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper

    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    weight.external_data.add(key="location", value="../secret.bin")
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    node = helper.make_node("Add", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "g", [value], [result], [weight])
    (tmp_path / "m").mkdir()
    (tmp_path / "secret.bin").write_bytes(b"\0\0\x80\x3f")
    onnx.save_model(helper.make_model(graph), str(tmp_path / "m" / "model.onnx"))
    answer = worker.load("default/outside/v1", tmp_path / "m")
    assert answer.json()["reason"] == "external_data_outside"


@pytest.mark.parametrize("artifact", ["iris.ubj", "iris.json"])
def test_xgboost_gives_the_probabilities_of_its_classes(worker: WorkerProcess, models: Models, artifact: str) -> None:
    target = f"default/xgb-{artifact}/v1"
    assert worker.load(target, models[artifact]).json()["format"] == "xgboost"
    outputs = _outputs(worker.infer(target, _rows(models)).json())
    np.testing.assert_array_equal(outputs["predict"].argmax(axis=1), models.labels)


def test_lightgbm_answers_as_the_library_does(worker: WorkerProcess, models: Models) -> None:
    import lightgbm
    from sklearn.datasets import load_breast_cancer

    rows, _ = load_breast_cancer(return_X_y=True)
    assert worker.load("default/lgb/v1", models["cancer.txt"]).json()["format"] == "lightgbm"
    answer = worker.infer("default/lgb/v1", tensor("input-0", "FP64", [40, 30], rows[:40].ravel().tolist()))
    expected = lightgbm.Booster(model_file=str(models["cancer.txt"])).predict(rows[:40])
    np.testing.assert_allclose(_outputs(answer.json())["predict"], expected, rtol=1e-12)


@pytest.mark.parametrize("artifact", ["iris.onnx", "iris.skops", "iris.ubj", "iris.json", "cancer.txt", "iris.joblib"])
def test_a_file_cut_in_half_fails_with_a_reason_and_hurts_nobody(
    worker: WorkerProcess, models: Models, tmp_path: Path, artifact: str
) -> None:
    whole = models[artifact].read_bytes()
    (tmp_path / artifact).write_bytes(whole[: len(whole) // 2])
    answer = worker.load("default/half/v1", tmp_path / artifact, trusted=True)
    assert answer.status in (403, 415, 503)
    assert str(tmp_path) not in answer.json()["error"]
    assert "default/half/v1" not in worker.index()


def test_a_folder_with_one_model_file_is_that_model(worker: WorkerProcess, models: Models, tmp_path: Path) -> None:
    shutil.copy(models["iris.onnx"], tmp_path / "anything")
    (tmp_path / "README").write_text("a network")
    assert worker.load("default/folder/v1", tmp_path).json()["format"] == "onnx"
    shutil.copy(models["zipmap.onnx"], tmp_path / "another")
    assert worker.load("default/two/v1", tmp_path).json()["reason"] == "ambiguous_artifact"


def test_a_python_class_is_loaded_only_when_trusted(worker: WorkerProcess, python_model: Write) -> None:
    path = python_model("return {'y': x.sum(axis=1)}")
    refused = worker.load("default/py/v1", path)
    assert (refused.status, refused.json()["reason"]) == (403, "unsafe_format")
    assert worker.load("default/py/v1", path.parent, trusted=True).json()["format"] == "python"
    answer = worker.infer("default/py/v1", tensor("x", "FP32", [2, 2], [1, 2, 3, 4]))
    assert answer.json()["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [2], "data": [3.0, 7.0]}]


def test_files_beside_a_python_class_are_imported_relatively(worker: WorkerProcess, tmp_path: Path) -> None:
    (tmp_path / "helper.py").write_text("FACTOR = 3\n")
    (tmp_path / "model.py").write_text(
        "from . import helper\n"
        "class Model:\n    def predict(self, inputs):\n        return {'y': inputs['x'] * helper.FACTOR}\n"
    )
    worker.load("default/relative/v1", tmp_path, trusted=True)
    answer = worker.infer("default/relative/v1", tensor("x", "INT32", [2], [1, 2]))
    assert answer.json()["outputs"][0]["data"] == [3, 6]


def test_an_unknown_format_and_an_unknown_artifact_are_told(worker: WorkerProcess, tmp_path: Path) -> None:
    (tmp_path / "notes.bin").write_bytes(b"\xff\xfe nothing")
    assert worker.load("default/none/v1", tmp_path / "notes.bin").json()["reason"] == "unknown_format"
    answer = worker.load("default/none/v1", tmp_path / "notes.bin", format="cobol")
    assert "'cobol'" in answer.json()["error"]
    assert worker.load("default/none/v1", tmp_path / "absent").json()["reason"] == "artifact_missing"


def test_a_declared_signature_that_contradicts_the_graph_is_refused(worker: WorkerProcess, models: Models) -> None:
    signature = {"inputs": [{"name": "X", "datatype": "INT64", "shape": [-1, 4]}]}
    answer = worker.load("default/contradiction/v1", models["iris.onnx"], signature=signature)
    assert answer.json()["reason"] == "signature_mismatch"
