"""Requests/s of one worker with `accelerate: auto` against without, for scikit-learn, XGBoost and LightGBM models."""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import joblib
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bench._mesh import Mesh, mesh
from bench.figures import Figure
from bench.gateway_overhead import processor_time

GOAL = 20.0
Save = Callable[[Path], Path]
ROWS, LABELS = load_breast_cancer(return_X_y=True)


def _forest(folder: Path) -> Path:
    return _joblib(folder, RandomForestClassifier(100, random_state=0))


def _logistic(folder: Path) -> Path:
    return _joblib(folder, make_pipeline(StandardScaler(), LogisticRegression()))


def _boosting(folder: Path) -> Path:
    return _joblib(folder, GradientBoostingClassifier(random_state=0))


def _joblib(folder: Path, estimator: Any) -> Path:
    path = folder / "model.joblib"
    joblib.dump(estimator.fit(ROWS, LABELS), path)
    return path


def _xgboost(folder: Path) -> Path:
    import xgboost

    path = folder / "model.ubj"
    xgboost.XGBClassifier(n_estimators=100).fit(ROWS, LABELS).save_model(path)
    return path


def _lightgbm(folder: Path) -> Path:
    import lightgbm

    path = folder / "model.txt"
    lightgbm.LGBMClassifier(n_estimators=100, verbose=-1).fit(ROWS, LABELS).booster_.save_model(path)
    return path


MODELS: dict[str, Save] = {
    "forest": _forest, "logistic": _logistic, "boosting": _boosting, "xgboost": _xgboost, "lightgbm": _lightgbm,
}  # fmt: skip
TITLES = {
    "forest": "random forest of 100 trees",
    "logistic": "scaled logistic regression",
    "boosting": "gradient boosting of 100 trees",
    "xgboost": "XGBoost of 100 trees",
    "lightgbm": "LightGBM of 100 trees",
}


def manifest(name: str, path: Path, accelerate: str) -> dict[str, Any]:
    """A model with one copy that is always there."""
    version = {"name": "v1", "uri": path.as_uri(), "trusted": True, "accelerate": accelerate}
    return {
        "apiVersion": "msm/v1",
        "kind": "Model",
        "metadata": {"name": f"{name}-{accelerate}"},
        "spec": {"versions": [version], "scaling": {"min": 1, "max": 1}},
    }


def body(running: Mesh, name: str) -> str:
    """A request of one row, as the version's signature wants it."""
    taken = httpx.get(f"{running.gateway}/v2/models/{name}", timeout=60).json()["inputs"][0]
    row = {"name": taken["name"], "datatype": taken["datatype"], "shape": [1, ROWS.shape[1]], "data": ROWS[0].tolist()}
    return json.dumps({"inputs": [row]})


@dataclass(frozen=True)
class Rate:
    """Answers per second, and per second of the worker's processor time."""

    per_second: float
    per_processor_s: float


SCRIPT = """
wrk.method = "POST"
wrk.headers["content-type"] = "application/json"
wrk.body = '{body}'
"""


def rate(running: Mesh, name: str, script: Path, connections: int, seconds: int) -> Rate:
    """One run of load; raises when any answer is not a success."""
    (pid,) = running.worker_pids().values()
    before = processor_time(pid)
    url = f"{running.gateway}/v2/models/{name}/infer"
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "-s", str(script), url]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in said or "Socket errors" in said:
        raise RuntimeError(f"not every request succeeded: {said}")
    found, count = re.search(r"Requests/sec:\s+([\d.]+)", said), re.search(r"(\d+) requests in", said)
    assert found is not None
    assert count is not None
    return Rate(float(found.group(1)), int(count.group(1)) / (processor_time(pid) - before))


def compared(running: Mesh, name: str, folder: Path, connections: int, rounds: int) -> list[tuple[Rate, Rate]]:
    """Rounds of (without, with), in turns."""
    scripts = {}
    for mode in ("off", "auto"):
        scripts[mode] = folder / f"{mode}.lua"
        scripts[mode].write_text(SCRIPT.format(body=body(running, f"{name}-{mode}")))
        rate(running, f"{name}-{mode}", scripts[mode], connections, 1)  # warm connections and code
    return [
        (
            rate(running, f"{name}-off", scripts["off"], connections, 2),
            rate(running, f"{name}-auto", scripts["auto"], connections, 2),
        )
        for _ in range(rounds)
    ]


def report(running: Mesh, name: str) -> dict[str, Any]:
    """What the mesh found about the converted version."""
    model = running.call("GET", f"/models/default/{name}-auto").json()
    found: dict[str, Any] = model["status"]["versions"]["v1"]["acceleration"]
    if not found["used"]:
        raise RuntimeError(f"{name} is not accelerated: {found['reason']}")
    return found


def told(what: str, pairs: list[tuple[Rate, Rate]], *, goal: bool) -> list[Figure]:
    """Medians, and the ratios of the pairs."""
    median = statistics.median
    times = median(auto.per_second / off.per_second for off, auto in pairs)
    work = median(auto.per_processor_s / off.per_processor_s for off, auto in pairs)
    wanted = f">= {GOAL:g}" if goal else ""
    return [
        Figure(f"{what}: without", median(off.per_second for off, _ in pairs), "requests/s", "", None),
        Figure(f"{what}: with", median(auto.per_second for _, auto in pairs), "requests/s", "", None),
        Figure(f"{what}: ratio through the mesh", times, "ratio", wanted, times >= GOAL if goal else None),
        Figure(f"{what}: ratio by the worker's processor time", work, "ratio", wanted, work >= GOAL if goal else None),
    ]


def run(quick: bool) -> list[Figure]:
    rounds = 2 if quick else 5
    figures = []
    with tempfile.TemporaryDirectory() as folder, mesh("--workers", "1") as running:
        for name, save in MODELS.items():
            place = Path(folder) / name
            place.mkdir()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                path = save(place)
            running.apply([manifest(name, path, mode) for mode in ("off", "auto")])
        running.wait_valid(within_s=300)
        running.wait_ready(2 * len(MODELS), within_s=60)
        for name, title in TITLES.items():
            found = report(running, name)
            for connections in (1, 32):
                pairs = compared(running, name, Path(folder), connections, rounds)
                figures += told(f"{title}, {connections} at once", pairs, goal=name == "forest")
            figures += [
                Figure(f"{title}: one model call, one row", found["speedOne"], "ratio", "", None),
                Figure(f"{title}: one model call, 64 rows", found["speedBatch"], "ratio", "", None),
                Figure(f"{title}: largest difference", found["largestDifference"] or 0.0, "", "", None),
            ]
    return figures
