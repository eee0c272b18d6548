from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from msm.runtime import blackbox
from tests.component.runtime.conftest import Models, Write
from tests.support.workers import (
    Answer,
    Channel,
    WorkerProcess,
    call,
    request_bytes,
    running_worker,
    start_worker,
    tensor,
)

T = "default/m/v1"


def _until(condition: Callable[[], Any], within_s: float = 20.0) -> Any:
    deadline = time.monotonic() + within_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not true within {within_s} s"
        threading.Event().wait(0.01)
    return value


def _ask(worker: WorkerProcess, *values: float, target: str = T) -> Answer:
    return worker.infer(target, tensor("x", "FP32", [len(values) // 2, 2], list(values)))


def test_a_model_that_raises_fails_its_request_alone(worker: WorkerProcess, python_model: Write) -> None:
    path = python_model("if x[0, 0] < 0: raise ValueError('below zero\\nsecret')\nreturn {'y': x.sum(axis=1)}")
    worker.load("default/raises/v1", path, trusted=True)
    answer = _ask(worker, -1, 0, target="default/raises/v1")
    assert answer.status == 500
    assert answer.json() == {"error": "the model raised ValueError: below zero", "code": "model_error"}
    assert _ask(worker, 1, 2, target="default/raises/v1").status == 200
    entry = worker.index()["default/raises/v1"]
    assert (entry["requests"], entry["failures"], entry["state"]) == (2, 1, "READY")
    assert "secret" in worker.log


def test_one_bad_request_of_a_batch_fails_alone(worker: WorkerProcess, python_model: Write) -> None:
    # The first request holds the model, so that the others become one batch.
    path = python_model(
        """
        if x[0, 0] == 7:
            time.sleep(0.5)
        if (x < 0).any():
            raise ValueError("below zero")
        return {"y": np.full(len(x), len(x))}
        """.replace("np.full(len(x), len(x))", "np.full(len(x), len(x), np.float32)")
    )
    target = "default/batch/v1"
    worker.load(target, path, trusted=True)
    with ThreadPoolExecutor(12) as pool:
        first = pool.submit(_ask, worker, 7, 7, target=target)
        _until(lambda: worker.index()[target]["in_flight"] == 1)
        good = [pool.submit(_ask, worker, 1, 1, target=target) for _ in range(8)]
        _until(lambda: worker.index()[target]["queued"] == 8)
        assert first.result().status == 200
        assert {tuple(answer.result().json()["outputs"][0]["data"]) for answer in good} == {(8.0,)}
        first = pool.submit(_ask, worker, 7, 7, target=target)
        _until(lambda: worker.index()[target]["in_flight"] == 1)
        mixed = [pool.submit(_ask, worker, value, 1, target=target) for value in (1, -1, 1, 1)]
        assert [answer.result().status for answer in mixed] == [200, 500, 200, 200]


def test_what_the_model_gives_is_checked(worker: WorkerProcess, python_model: Write) -> None:
    path = python_model(
        """
        kind = int(x[0, 0])
        return [{"z": x[:, 0]}, {"y": x[:, 0].astype(np.int64)}, {"y": x}, {"y": x[:, 0], "z": x}, [1], None][kind]
        """
    )
    target = "default/output/v1"
    worker.load(target, path, trusted=True)
    for kind in range(6):
        answer = _ask(worker, kind, 0, target=target)
        assert (answer.status, answer.json()["code"]) == (500, "model_output_invalid"), kind


def test_nan_in_an_output_is_null_in_json(worker: WorkerProcess, python_model: Write) -> None:
    worker.load("default/nan/v1", python_model("return {'y': x[:, 0] / 0}"), trusted=True)
    answer = _ask(worker, 1, 1, 0, 1, target="default/nan/v1")
    assert b'"data":[null,null]' in answer.body


def test_a_prediction_that_hangs_times_out_marks_the_version_and_leaves_others_alone(
    worker: WorkerProcess, python_model: Write, models: Models
) -> None:
    target = "default/hangs/v1"
    worker.load(target, python_model("while True: time.sleep(0.01)"), trusted=True, timeout_s=0.3)
    worker.load("default/other/v1", models["iris.onnx"])
    answer = _ask(worker, 1, 1, target=target)
    assert (answer.status, answer.json()["code"]) == (504, "deadline_exceeded")
    _until(lambda: worker.index()[target]["state"] == "HUNG")
    refused = _ask(worker, 1, 1, target=target)
    assert (refused.status, refused.headers["x-msm-retriable"]) == (503, "true")
    other = worker.infer("default/other/v1", tensor("X", "FP32", [1, 4], [1, 2, 3, 4]))
    assert other.status == 200
    assert worker.unload(target, 0.1).status == 200
    assert target not in worker.index()


def test_a_version_that_was_hung_serves_again_when_it_comes_back(worker: WorkerProcess, python_model: Write) -> None:
    target = "default/slow/v1"
    path = python_model("time.sleep(1.0 if x[0, 0] == 7 else 0.0)\nreturn {'y': x[:, 0]}")
    worker.load(target, path, trusted=True, timeout_s=0.4)
    assert _ask(worker, 7, 7, target=target).status == 504
    _until(lambda: worker.index()[target]["state"] == "HUNG")
    _until(lambda: worker.index()[target]["state"] == "READY")
    assert _ask(worker, 1, 1, target=target).status == 200


def test_the_callers_own_timeout_is_kept(worker: WorkerProcess, python_model: Write) -> None:
    target = "default/patient/v1"
    worker.load(target, python_model("time.sleep(1)\nreturn {'y': x[:, 0]}"), trusted=True)
    answer = worker.infer(target, tensor("x", "FP32", [1, 2], [1, 1]), parameters={"timeout": 100_000})
    assert answer.status == 504
    assert worker.index()[target]["state"] == "READY"


def test_a_full_queue_refuses_with_the_time_to_come_back(
    worker: WorkerProcess, python_model: Write, tmp_path: Path
) -> None:
    target = "default/queue/v1"
    gate = tmp_path / "gate"
    path = python_model("while not os.path.exists(GATE): time.sleep(0.01)\nreturn {'y': x[:, 0]}", GATE=str(gate))
    worker.load(target, path, trusted=True, parameters={"maxQueue": 2})
    with ThreadPoolExecutor(8) as pool:
        running = [pool.submit(_ask, worker, 1, 1, target=target)]
        _until(lambda: worker.index()[target]["in_flight"] == 1)
        running += [pool.submit(_ask, worker, 1, 1, target=target) for _ in range(2)]
        _until(lambda: worker.index()[target]["queued"] == 2)
        refused = _ask(worker, 1, 1, target=target)
        assert (refused.status, refused.json()["code"], refused.headers["retry-after"]) == (429, "queue_full", "1")
        gate.touch()
        assert [answer.result().status for answer in running] == [200, 200, 200]


def test_a_client_that_goes_frees_its_place_in_the_queue(
    worker: WorkerProcess, python_model: Write, tmp_path: Path
) -> None:
    target = "default/leaver/v1"
    seen, gate = tmp_path / "seen", tmp_path / "gate"
    path = python_model(
        """
        with open(SEEN, "a") as file:
            file.write(f"{int(x[0, 0])} ")
        while not os.path.exists(GATE):
            time.sleep(0.01)
        return {"y": x[:, 0]}
        """,
        SEEN=str(seen), GATE=str(gate),
    )  # fmt: skip
    worker.load(target, path, trusted=True, parameters={"batching": False})
    body = json.dumps({"inputs": [tensor("x", "FP32", [1, 2], [2, 2])]}).encode()
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(_ask, worker, 1, 1, target=target)
        _until(lambda: worker.index()[target]["in_flight"] == 1)
        leaver = Channel(worker.data)
        leaver.send(request_bytes("POST", "/v2/models/leaver/infer", body, {"x-msm-target": target}))
        _until(lambda: worker.index()[target]["queued"] == 1)
        leaver.close()
        last = pool.submit(_ask, worker, 3, 3, target=target)
        _until(lambda: worker.index()[target]["queued"] == 2)
        gate.touch()
        assert first.result().status == last.result().status == 200
    assert seen.read_text().split() == ["1", "3"]
    assert worker.index()[target]["in_flight"] == 0


def test_unloading_waits_for_what_is_in_flight(worker: WorkerProcess, python_model: Write, tmp_path: Path) -> None:
    target = "default/drain/v1"
    gate = tmp_path / "gate"
    path = python_model("while not os.path.exists(GATE): time.sleep(0.01)\nreturn {'y': x[:, 0]}", GATE=str(gate))
    worker.load(target, path, trusted=True)
    with ThreadPoolExecutor(4) as pool:
        running = pool.submit(_ask, worker, 5, 1, target=target)
        _until(lambda: worker.index()[target]["in_flight"] == 1)
        unloading = pool.submit(worker.unload, target)
        _until(lambda: worker.index()[target]["state"] == "UNLOADING")
        late = _ask(worker, 1, 1, target=target)
        assert (late.status, late.headers["x-msm-retriable"]) == (503, "true")
        assert not unloading.done()
        gate.touch()
        assert running.result().json()["outputs"][0]["data"] == [5.0]
        assert unloading.result().json() == {}
    assert target not in worker.index()
    assert worker.unload(target).json() == {}


def test_loading_is_single_flight_and_serving_goes_on(
    worker: WorkerProcess, python_model: Write, tmp_path: Path
) -> None:
    target, count = "default/flight/v1", tmp_path / "count"
    path = python_model("return {'y': x[:, 0]}", load="open(COUNT, 'a').write('x')\ntime.sleep(0.5)", COUNT=str(count))
    with ThreadPoolExecutor(4) as pool:
        loads = [pool.submit(worker.load, target, path, trusted=True, digest="d1") for _ in range(4)]
        _until(lambda: worker.index().get(target, {}).get("state") == "LOADING")
        assert call(worker.control, "GET", "/v2/health/live").json()["live"] is True
        assert {load.result().status for load in loads} == {200}
    assert count.read_text() == "x"
    assert worker.load(target, path, trusted=True, digest="d1").status == 200
    assert worker.load(target, path, trusted=True, digest="d2").status == 409


def test_a_model_that_raises_while_loading_is_reported(worker: WorkerProcess, python_model: Write) -> None:
    path = python_model("return {}", load="raise RuntimeError('no weights')")
    answer = worker.load("default/badload/v1", path, trusted=True)
    assert (answer.status, answer.json()["reason"]) == (503, "load_failed")
    assert "RuntimeError: no weights" in answer.json()["error"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"parameters":{}}', b'{"parameters":{"path":5}}'])
def test_a_broken_control_call_is_refused(worker: WorkerProcess, body: bytes) -> None:
    answer = call(worker.control, "POST", "/v2/repository/models/a%2Fb%2Fc/load", body)
    assert (answer.status, answer.json()["reason"]) == (400, "invalid_body")


def test_the_black_box_names_who_ran_when_the_process_died(
    short_folder: Path, python_model: Write, models: Models
) -> None:
    with running_worker(short_folder) as worker:
        path = python_model("os.abort()")
        worker.load("default/abort/v1", path, trusted=True)
        worker.load("default/innocent/v1", models["iris.onnx"])
        assert worker.infer("default/innocent/v1", tensor("X", "FP32", [1, 4], [1, 2, 3, 4])).status == 200
        assert blackbox.read(worker.blackbox) == []
        with pytest.raises(ConnectionError):
            _ask(worker, 1, 1, target="default/abort/v1")
        assert worker.process.wait(10) == -signal.SIGABRT
        assert blackbox.read(worker.blackbox) == ["default/abort/v1"]


def test_the_black_box_names_a_version_that_kills_the_process_while_it_loads(
    short_folder: Path, python_model: Write
) -> None:
    with running_worker(short_folder) as worker:
        path = python_model("return {}", load="os.abort()")
        with pytest.raises((ConnectionError, ValueError)):
            worker.load("default/abort/v1", path, trusted=True)
        worker.process.wait(10)
        assert blackbox.read(worker.blackbox) == ["default/abort/v1"]


def test_sigterm_answers_what_was_accepted_and_ends(short_folder: Path, python_model: Write, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    path = python_model("while not os.path.exists(GATE): time.sleep(0.01)\nreturn {'y': x[:, 0]}", GATE=str(gate))
    with running_worker(short_folder) as worker, ThreadPoolExecutor(2) as pool:
        worker.load(T, path, trusted=True)
        idle = Channel(worker.data)
        running = pool.submit(_ask, worker, 1, 1)
        _until(lambda: worker.index()[T]["in_flight"] == 1)
        worker.process.send_signal(signal.SIGTERM)
        _until(lambda: '"stopping"' in worker.log)
        idle.send(request_bytes("GET", "/v2/models/m/ready", headers={"x-msm-target": T}))
        refused = idle.receive()
        assert (refused.status, refused.headers["x-msm-retriable"]) == (503, "true")
        idle.close()
        gate.touch()
        assert running.result().status == 200
        assert worker.process.wait(10) == 0


def test_a_worker_outlives_its_parent_and_the_loss_of_its_terminal(short_folder: Path) -> None:
    script = (
        "import pathlib, sys\n"
        "from tests.support.workers import start_worker\n"
        "print(start_worker(pathlib.Path(sys.argv[1])).process.pid)\n"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", script, str(short_folder)], capture_output=True, check=True, cwd=root, text=True
    )
    pid = int(done.stdout)
    try:
        for number in (signal.SIGHUP, signal.SIGPIPE, signal.SIGINT):
            os.kill(pid, number)
        assert call(short_folder / "w0.ctl.sock", "GET", "/v2/health/live").json()["pid"] == pid
    finally:
        os.kill(pid, signal.SIGTERM)
    _until(lambda: not Path(f"/proc/{pid}").exists() or "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text())


def test_a_new_worker_takes_over_the_path_of_a_dead_one(short_folder: Path) -> None:
    first = start_worker(short_folder)
    first.kill()
    with pytest.raises(ConnectionRefusedError):
        Channel(first.data)
    with running_worker(short_folder) as second:
        assert call(second.data, "GET", "/v2/health/live").status == 200
