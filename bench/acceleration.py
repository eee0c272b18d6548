"""Requests/s of one worker with `accelerate: auto` against without, for scikit-learn, XGBoost and LightGBM models."""

from __future__ import annotations

import asyncio
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import joblib
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bench._load import closed_loop
from bench._mesh import Mesh, mesh
from bench.figures import Figure

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


def body(running: Mesh, name: str) -> bytes:
    """A request of one row, as the version's signature wants it."""
    taken = httpx.get(f"{running.gateway}/v2/models/{name}", timeout=60).json()["inputs"][0]
    row = {"name": taken["name"], "datatype": taken["datatype"], "shape": [1, ROWS.shape[1]], "data": ROWS[0].tolist()}
    return json.dumps({"inputs": [row]}).encode()


async def rate(running: Mesh, name: str, content: bytes, callers: int, seconds: float) -> float:
    """Answers per second; raises when a request failed."""
    stop = asyncio.Event()
    path = f"/v2/models/{name}/infer"
    began = time.perf_counter()
    load = asyncio.create_task(closed_loop(running.gateway, lambda: (path, content), callers=callers, stop=stop))
    await asyncio.sleep(seconds)
    stop.set()
    tally = await load
    if tally.failed:
        raise RuntimeError(f"{tally.failed} requests failed: {tally.reasons}")
    return tally.answers / (time.perf_counter() - began)


def ratio(running: Mesh, name: str, callers: int, rounds: int) -> tuple[float, float, float]:
    """Requests/s without, with, and the median ratio of rounds in turns."""
    pairs = []
    contents = {mode: body(running, f"{name}-{mode}") for mode in ("off", "auto")}
    for _ in range(rounds):
        both = [asyncio.run(rate(running, f"{name}-{m}", contents[m], callers, 2.0)) for m in ("off", "auto")]
        pairs.append(both)
    without, with_it = (statistics.median(side) for side in zip(*pairs, strict=True))
    return without, with_it, statistics.median(auto / off for off, auto in pairs)


def report(running: Mesh, name: str) -> dict[str, Any]:
    """What the mesh found about the converted version."""
    model = running.call("GET", f"/models/default/{name}-auto").json()
    found: dict[str, Any] = model["status"]["versions"]["v1"]["acceleration"]
    if not found["used"]:
        raise RuntimeError(f"{name} is not accelerated: {found['reason']}")
    return found


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
            for callers in (1, 32):
                without, with_it, times = ratio(running, name, callers, rounds)
                goal = name == "forest"
                what = f"{title}, {callers} callers"
                met = times >= GOAL if goal else None
                figures += [
                    Figure(f"{what}: without", without, "requests/s", "", None),
                    Figure(f"{what}: with", with_it, "requests/s", "", None),
                    Figure(f"{what}: ratio", times, "ratio", f">= {GOAL:g}" if goal else "", met),
                ]
            figures += [
                Figure(f"{title}: one model call, one row", found["speedOne"], "ratio", "", None),
                Figure(f"{title}: one model call, 64 rows", found["speedBatch"], "ratio", "", None),
                Figure(f"{title}: largest difference", found["largestDifference"] or 0.0, "", "", None),
            ]
    return figures
