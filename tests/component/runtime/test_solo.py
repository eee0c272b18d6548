"""Models in processes of their own: moved there by measurement or by declaration; only their own requests suffer."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import psutil
import pytest

from msm.kit.errors import Internal
from msm.runtime import formats
from msm.runtime.formats.base import LoadOptions
from msm.runtime.solo import SoloModel, SoloSpec
from tests.component.runtime.conftest import Models, Write
from tests.support.eventually import eventually
from tests.support.workers import Answer, WorkerProcess, running_worker, tensor

OWN: dict[str, Any] = {"ownProcess": True}


def _ask(worker: WorkerProcess, target: str, first: float) -> Answer:
    return worker.infer(target, tensor("x", "FP32", [1, 2], [first, 2.0]))


def _runs(worker: WorkerProcess, target: str) -> str:
    return worker.index()[target]["execution"]


async def test_a_model_that_holds_the_interpreter_is_moved_and_answers_the_same(
    worker: WorkerProcess, python_model: Write
):
    others = len(_children(worker))
    # One call of C code that never lets the interpreter go.
    path = python_model("return {'y': x.sum(axis=1) + 0 * sum(range(8_000_000))}")
    assert worker.load("default/heavy/v1", path, trusted=True).status == 200
    before = _ask(worker, "default/heavy/v1", 1.0).json()["outputs"]
    assert "in a thread" in _runs(worker, "default/heavy/v1")
    for _ in range(20):
        assert _ask(worker, "default/heavy/v1", 1.0).json()["outputs"] == before
        if "process" in _runs(worker, "default/heavy/v1"):
            break
    assert "in a process of its own" in _runs(worker, "default/heavy/v1")
    assert "hold the interpreter" in _runs(worker, "default/heavy/v1")
    await eventually(lambda: len(_children(worker)) == others + 1)
    assert _ask(worker, "default/heavy/v1", 1.0).json()["outputs"] == before
    worker.unload("default/heavy/v1")
    await eventually(lambda: len(_children(worker)) == others)


def test_a_model_that_computes_without_the_lock_stays(worker: WorkerProcess, python_model: Write):
    path = python_model("np.linalg.svd(np.ones((300, 300)))\nreturn {'y': x.sum(axis=1)}")
    worker.load("default/light/v1", path, trusted=True)
    for _ in range(8):
        assert _ask(worker, "default/light/v1", 1.0).status == 200
    assert "in a thread" in _runs(worker, "default/light/v1")
    worker.unload("default/light/v1")


def test_a_crash_fails_its_request_alone_and_the_next_one_is_answered(worker: WorkerProcess, python_model: Write):
    path = python_model("if x[0, 0] < 0: os.abort()\nreturn {'y': x.sum(axis=1)}")
    assert worker.load("default/crash/v1", path, trusted=True, parameters=OWN).status == 200
    pid = worker.process.pid
    assert _ask(worker, "default/crash/v1", 1.0).status == 200
    crashed = _ask(worker, "default/crash/v1", -1.0)
    assert crashed.status == 500
    assert crashed.json()["error"] == "the process of the model ended by SIGABRT"
    assert _ask(worker, "default/crash/v1", 1.0).status == 200
    assert worker.process.pid == pid
    assert worker.process.poll() is None


async def test_a_hang_ends_at_the_time_limit_and_the_version_goes_on(worker: WorkerProcess, python_model: Write):
    path = python_model("if x[0, 0] < 0: time.sleep(600)\nreturn {'y': x.sum(axis=1)}")
    worker.load("default/hang/v1", path, trusted=True, timeout_s=1.0, parameters=OWN)
    assert _ask(worker, "default/hang/v1", -1.0).status == 504
    await eventually(lambda: _ask(worker, "default/hang/v1", 1.0).status == 200)
    assert worker.index()["default/hang/v1"]["state"] == "READY"


def test_it_dies_with_its_worker(short_folder: Path, python_model: Write):
    with running_worker(short_folder) as worker:
        worker.load("default/dies/v1", python_model("return {'y': x.sum(axis=1)}"), trusted=True, parameters=OWN)
        assert _ask(worker, "default/dies/v1", 1.0).status == 200
        children = _children(worker)
        assert children
        worker.kill()
        _, alive = psutil.wait_procs(children, timeout=10)
        assert not alive


@pytest.mark.parametrize("artifact", ["iris.onnx", "iris.skops", "iris.ubj"])
def test_every_format_answers_the_same_from_there(models: Models, artifact: str):
    loaded = formats.load(models[artifact], None, LoadOptions())
    solo = SoloModel(SoloSpec(path=str(models[artifact]), format=loaded.format), loaded.model)
    inputs = formats.base.zeros(loaded.model.signature)
    there, here = solo.predict(dict(inputs)), loaded.model.predict(dict(inputs))
    assert {name: array.tolist() for name, array in there.items()} == {
        name: array.tolist() for name, array in here.items()
    }


def test_what_the_model_raises_is_told_as_if_it_were_here(python_model: Write, tmp_path: Path):
    path = python_model("raise ValueError('below zero')")
    loaded = formats.load(path, "python", LoadOptions(trusted=True))
    solo = SoloModel(SoloSpec(path=str(path), format="python", trusted=True), loaded.model)
    with pytest.raises(Internal, match="the model raised ValueError: below zero"):
        solo.predict(formats.base.zeros(loaded.model.signature))
    assert solo.pid is not None
    os.kill(solo.pid, 0)


def _children(worker: WorkerProcess) -> list[psutil.Process]:
    return psutil.Process(worker.process.pid).children()
