"""The models of the tour, trained from data sets that scikit-learn carries, plus one pretrained network from a package.

Every entry says how it was made, gives a real input, and the answer the model's own library gives for it here, without
the mesh: what comes back through the mesh has to be the same.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

SEED = 7


@dataclass(frozen=True, slots=True)
class Case:
    """One model to deploy, one question to ask it, and the answer that is right."""

    name: str
    about: str
    path: Path
    inputs: dict[str, np.ndarray]
    output: str
    expected: np.ndarray
    trusted: bool = False
    labels: tuple[str, ...] = ()

    def is_right(self, outputs: dict[str, np.ndarray]) -> bool:
        """Whether the answer agrees with what the model says without the mesh."""
        got = np.asarray(outputs[self.output]).reshape(-1)[: self.expected.size]
        if got.dtype.kind in "OSU":
            return [str(_text(g)) for g in got] == [str(e) for e in self.expected.reshape(-1)]
        return bool(np.allclose(got.astype(float), self.expected.reshape(-1).astype(float), atol=1e-4))


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def build(folder: Path) -> list[Case]:
    """Train what is missing below `folder` and return the tour; what was made before is only read."""
    made = folder / "tour.json"
    if made.exists():
        return [_read(folder, entry) for entry in json.loads(made.read_text())]
    folder.mkdir(parents=True, exist_ok=True)
    makers: tuple[Callable[[Path], Case], ...] = (iris, breast_cancer, digits, readability, file_type)
    cases = [make(folder) for make in makers]
    made.write_text(json.dumps([_written(case) for case in cases]))
    return cases


def _written(case: Case) -> dict[str, Any]:
    plain = {**asdict(case), "path": case.path.name, "expected": _written_array(case.expected)}
    return {**plain, "inputs": {name: _written_array(array) for name, array in case.inputs.items()}}


def _written_array(array: np.ndarray) -> dict[str, Any]:
    values = [_text(item) for item in array.reshape(-1)] if array.dtype == object else array.reshape(-1).tolist()
    return {"dtype": array.dtype.str, "shape": array.shape, "values": values}


def _read(folder: Path, entry: dict[str, Any]) -> Case:
    inputs = {name: _read_array(array) for name, array in entry["inputs"].items()}
    changed = {"path": folder / entry["path"], "inputs": inputs, "expected": _read_array(entry["expected"])}
    return Case(**{**entry, **changed, "labels": tuple(entry["labels"])})


def _read_array(written: dict[str, Any]) -> np.ndarray:
    values = written["values"]
    if written["dtype"] == "|O":
        values = [value.encode() for value in values]
    return np.array(values, dtype=np.dtype(written["dtype"])).reshape(written["shape"])


def iris(folder: Path) -> Case:
    """Logistic regression on Fisher's iris measurements, saved with skops (data only, nothing is unpickled)."""
    from sklearn.datasets import load_iris
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    path = folder / "iris.skops"
    data = load_iris()
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)).fit(data.data, data.target)
    if not path.exists():
        import skops.io

        skops.io.dump(model, path)
    rows = data.data[[0, 60, 120]]
    return Case("iris", "scikit-learn pipeline, iris flowers", path, {"input-0": rows}, "predict", model.predict(rows))


def breast_cancer(folder: Path) -> Case:
    """Gradient boosting (XGBoost) on the Wisconsin diagnostic data."""
    import xgboost
    from sklearn.datasets import load_breast_cancer
    from sklearn.model_selection import train_test_split

    path = folder / "breast-cancer.ubj"
    data = load_breast_cancer()
    train, test, target, _ = train_test_split(data.data, data.target, random_state=SEED)
    if not path.exists():
        model = xgboost.XGBClassifier(n_estimators=60, max_depth=3, n_jobs=1, random_state=SEED)
        model.fit(train, target)
        model.save_model(path)
    booster = xgboost.Booster(model_file=path)
    rows = test[:4].astype(np.float32)
    expected = booster.inplace_predict(rows)
    return Case("breast-cancer", "XGBoost classifier, tumour diagnosis", path, {"input-0": rows}, "predict", expected)


def digits(folder: Path) -> Case:
    """A small neural network on 8x8 handwritten digits, exported to ONNX."""
    from sklearn.datasets import load_digits
    from sklearn.neural_network import MLPClassifier

    path = folder / "digits.onnx"
    data = load_digits()
    pixels = (data.data / 16.0).astype(np.float32)
    if not path.exists():
        from skl2onnx import to_onnx

        network = MLPClassifier((64,), max_iter=400, tol=1e-3, random_state=SEED).fit(pixels[:1500], data.target[:1500])
        model = to_onnx(network, pixels[:1], options={"zipmap": False}, target_opset=17)
        path.write_bytes(model.SerializeToString())
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    rows = pixels[1600:1603]
    source, target = session.get_inputs()[0].name, session.get_outputs()[0].name
    expected = session.run([target], {source: rows})[0]
    return Case("digits", "ONNX network, handwritten digits", path, {source: rows}, target, expected)


def readability(folder: Path) -> Case:
    """A Python class of one's own: Flesch's reading ease of a text. It runs code, hence `trusted`."""
    path = folder / "readability"
    path.mkdir(exist_ok=True)
    source = resources.files(__package__) / "readability_model.py"
    (path / "model.py").write_text(source.read_text())
    from examples.quickstart.readability_model import reading_ease

    texts = [
        "The cat sat on the mat. It was warm.",
        "Notwithstanding considerable institutional resistance, the organisation implemented "
        "comprehensive administrative reformation.",
    ]
    inputs = {"text": np.array([text.encode() for text in texts], dtype=object)}
    expected = np.array([reading_ease(text) for text in texts])
    return Case(
        "readability",
        "Python class, Flesch reading ease",
        path,
        inputs,
        "reading_ease",
        expected,
        trusted=True,
    )


def file_type(folder: Path) -> Case:
    """Magika's pretrained network, as its package ships it: which kind of content are these bytes?"""
    import magika

    package = Path(magika.__file__).parent / "models" / "standard_v3_3"
    path = folder / "file-type.onnx"
    if not path.exists():
        shutil.copyfile(package / "model.onnx", path)
    config = json.loads((package / "config.min.json").read_text())
    labels = tuple(config["target_labels_space"])
    sample = Path(__file__).read_bytes()
    row = _magika_features(sample, config)
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    source, target = session.get_inputs()[0].name, session.get_outputs()[0].name
    expected = session.run([target], {source: row})[0]
    guessed = labels[int(expected.argmax())]
    if guessed != "python":
        raise RuntimeError(f"the pretrained network takes this file for {guessed!r}, not for Python")
    return Case(
        "file-type",
        "pretrained network (Magika), file types",
        path,
        {source: row},
        target,
        expected,
        labels=labels,
    )


def _magika_features(content: bytes, config: dict[str, int]) -> np.ndarray:
    """The first and last bytes of the stripped content, padded: the network's input as its configuration states."""
    begin, end, pad = config["beg_size"], config["end_size"], config["padding_token"]
    block = config["block_size"]
    head = list(content[:block].lstrip()[:begin])
    tail = list(content[-block:].rstrip()[-end:]) if end else []
    row = head + [pad] * (begin - len(head)) + [pad] * (end - len(tail)) + tail
    return np.array([row], dtype=np.int32)
