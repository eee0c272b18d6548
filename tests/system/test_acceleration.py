"""`msm deploy --accelerate auto`, a request, and what `msm describe` tells of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import httpx
import joblib
import pytest

from bench._mesh import Mesh
from tests.system.conftest import Ran

Msm = Callable[..., Ran]


@pytest.fixture
def forest(tmp_path: Path) -> Path:
    from sklearn.datasets import load_iris
    from sklearn.ensemble import RandomForestClassifier

    path = tmp_path / "forest.joblib"
    joblib.dump(RandomForestClassifier(20, random_state=1).fit(*load_iris(return_X_y=True)), path)
    return path


def test_a_forest_is_served_by_its_converted_graph(msm: Msm, running: Mesh, forest: Path) -> None:
    told = msm("deploy", "fast", str(forest), "--trusted", "--accelerate", "auto")
    assert told.code == 0, told.err
    assert "times faster for one row" in told.out
    rows = [[5.1, 3.5, 1.4, 0.2], [6.7, 3.0, 5.2, 2.3]]
    body = {"inputs": [{"name": "input-0", "datatype": "FP64", "shape": [2, 4], "data": rows}]}
    answer = httpx.post(f"{running.gateway}/v2/models/fast/infer", json=body, timeout=30)
    assert answer.status_code == 200, answer.text
    outputs = {output["name"]: output["data"] for output in answer.json()["outputs"]}
    original = joblib.load(forest)
    assert outputs["predict"] == original.predict(rows).tolist()
    assert outputs["predict_proba"] == original.predict_proba(rows).reshape(-1).tolist()

    shown = msm("describe", "fast").out
    for word in ("ACCELERATION", "LARGEST DIFFERENCE", "SPEED", "trees in FP64", "Accelerated"):
        assert word in shown, shown
    found = json.loads(msm("describe", "fast", "-o", "json").out)
    assert found["spec"]["versions"][0]["accelerate"] == "auto"
    acceleration = found["status"]["versions"]["v1"]["acceleration"]
    assert acceleration["used"]
    assert acceleration["digest"].startswith("sha256:")
    assert acceleration["inputs"] > 1000
    assert acceleration["largestDifference"] <= 1e-12
    assert (acceleration["rtol"], acceleration["atol"]) == (1e-5, 1e-6)
    assert acceleration["speedOne"] > 1.1
    assert found["status"]["versions"]["v1"]["format"] == "sklearn"


def test_why_a_version_is_not_accelerated_is_told(msm: Msm, running: Mesh, network: Path) -> None:
    assert msm("deploy", "plain", str(network), "--accelerate", "auto").code == 0
    shown = msm("describe", "plain").out
    assert "the original" in shown
    assert "NotAccelerated" in shown
    assert "only scikit-learn" in shown
    refused = msm("deploy", "plain", str(network), "--accelerate", "always")
    assert refused.code != 0
    assert "always" in refused.err
