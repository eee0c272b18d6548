"""Real models trained on real data, and a worker that the tests of one module share."""

from __future__ import annotations

import shutil
import tempfile
import textwrap
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.workers import WorkerProcess, running_probation, running_worker


@dataclass(frozen=True)
class Models:
    """Artifacts by name, and what the models answer for the first rows of the iris data."""

    folder: Path
    rows: np.ndarray
    labels: np.ndarray
    probabilities: np.ndarray

    def __getitem__(self, name: str) -> Path:
        return self.folder / name


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Classifiers of iris in every format; `text.skops` is a text pipeline."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _train(tmp_path_factory.mktemp("models"))


def _train(folder: Path) -> Models:
    import joblib
    import lightgbm
    import skops.io
    import xgboost
    from skl2onnx import to_onnx
    from sklearn.datasets import load_breast_cancer, load_iris
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rows, labels = load_iris(return_X_y=True)
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(rows, labels)
    skops.io.dump(model, folder / "iris.skops")
    joblib.dump(model, folder / "iris.joblib", compress=3)
    skops.io.dump(RandomForestClassifier(10, random_state=1, n_jobs=2).fit(rows, labels), folder / "forest.skops")
    names = np.array(["setosa", "versicolor", "virginica"])[labels]
    skops.io.dump(LogisticRegression(max_iter=500).fit(rows, names), folder / "named.skops")
    text = make_pipeline(TfidfVectorizer(), LogisticRegression())
    skops.io.dump(text.fit(["good film", "bad film", "good book", "bad book"], [1, 0, 1, 0]), folder / "text.skops")
    small = rows[:1].astype(np.float32)
    (folder / "iris.onnx").write_bytes(to_onnx(model, small, options={"zipmap": False}).SerializeToString())
    (folder / "zipmap.onnx").write_bytes(to_onnx(model, small).SerializeToString())
    trees = xgboost.XGBClassifier(n_estimators=5).fit(rows, labels)
    trees.save_model(folder / "iris.ubj")
    trees.save_model(folder / "iris.json")
    boosted = lightgbm.LGBMClassifier(n_estimators=5, verbose=-1).fit(*load_breast_cancer(return_X_y=True))
    boosted.booster_.save_model(folder / "cancer.txt")
    return Models(folder, rows[::30], model.predict(rows[::30]), model.predict_proba(rows[::30]))


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder whose paths fit into the address of a unix socket."""
    folder = Path(tempfile.mkdtemp(prefix="msm-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def worker() -> Iterator[WorkerProcess]:
    """A worker for tests that leave it as it was; each uses targets of its own."""
    folder = Path(tempfile.mkdtemp(prefix="msm-"))
    with running_worker(folder, "w0", "--max-body-bytes", "1000000") as started:
        yield started
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def probation() -> Iterator[Path]:
    """A probation process; its socket."""
    folder = Path(tempfile.mkdtemp(prefix="msm-"))
    with running_probation(folder) as path:
        yield path
    shutil.rmtree(folder)


Write = Callable[..., Path]


@pytest.fixture
def python_model(tmp_path: Path) -> Write:
    """Write a Python model: `predict` and `load` are bodies of functions, `rows` joins requests."""

    def write(predict: str, load: str = "pass", name: str = "model.py", **constants: Any) -> Path:
        lines = [f"{key} = {value!r}" for key, value in constants.items()]
        code = f"""
import os, time, signal, sys
import numpy as np
{chr(10).join(lines)}

class Model:
    signature = {{"inputs": [{{"name": "x", "datatype": "FP32", "shape": [-1, 2]}}],
                 "outputs": [{{"name": "y", "datatype": "FP32", "shape": [-1]}}]}}

    def load(self, path):
{textwrap.indent(textwrap.dedent(load), "        ")}

    def predict(self, inputs):
        x = inputs["x"]
{textwrap.indent(textwrap.dedent(predict), "        ")}
"""
        file = tmp_path / name
        file.write_text(code)
        return file

    return write
