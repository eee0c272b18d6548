from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.component.runtime.conftest import Models, Write
from tests.support.workers import Channel, alive, call, probe


@pytest.mark.parametrize(
    ("artifact", "name", "trusted"),
    [
        ("iris.onnx", "onnx", False), ("iris.skops", "sklearn", False), ("iris.joblib", "sklearn", True),
        ("iris.ubj", "xgboost", False), ("cancer.txt", "lightgbm", False),
    ],
)  # fmt: skip
def test_a_version_is_measured(probation: Path, models: Models, artifact: str, name: str, trusted: bool) -> None:
    answer = probe(probation, models[artifact], trusted=trusted)
    assert answer.status == 200, answer.body
    found = answer.json()
    assert set(found) == {"format", "signature", "memory_bytes", "load_seconds", "predict_seconds"}
    assert found["format"] == name
    assert found["signature"]["inputs"][0]["shape"][0] == -1
    assert 0 <= found["memory_bytes"] < 64 * 2**20
    assert 0 < found["load_seconds"] < 10
    assert 0 < found["predict_seconds"] < 1


def test_the_memory_is_that_of_the_model_and_not_of_the_libraries(probation: Path, python_model: Write) -> None:
    path = python_model("return {'y': x[:, 0]}", load="self.weights = np.ones(4_000_000)")
    found = probe(probation, path, trusted=True).json()
    assert 30_000_000 < found["memory_bytes"] < 40_000_000


def test_the_process_that_forks_has_one_thread(probation: Path, models: Models) -> None:
    probe(probation, models["iris.onnx"])
    assert call(probation, "GET", "/v2/health/live").json()["threads"] == 1


def test_a_pickle_is_not_read_without_trust(probation: Path, models: Models) -> None:
    answer = probe(probation, models["iris.joblib"])
    assert (answer.status, answer.json()["reason"]) == (422, "unsafe_format")


@pytest.mark.parametrize(
    ("code", "reason", "sentence"),
    [
        ("os.abort()", "crashed", "the model crashed while loading (SIGABRT)"),
        ("import ctypes; ctypes.string_at(0)", "crashed", "the model crashed while loading (SIGSEGV)"),
        ("os._exit(7)", "crashed", "the model ended its process while loading (exit code 7)"),
        ("sys.exit(3)", "load_failed", "the Python model could not be loaded: it raised SystemExit: 3"),
        ("raise KeyError('w')", "load_failed", "the Python model could not be loaded: it raised KeyError: 'w'"),
        ("time.sleep(60)", "timeout", "the model was still loading after 1 s"),
        ("while True: pass", "timeout", "the model was still loading after 1 s"),
    ],
)
def test_a_load_that_goes_wrong_is_told_in_a_sentence(
    probation: Path, python_model: Write, code: str, reason: str, sentence: str
) -> None:
    path = python_model("return {'y': x[:, 0]}", load=code)
    answer = probe(probation, path, trusted=True, timeout_s=1)
    assert (answer.status, answer.json()) == (422, {"error": sentence, "reason": reason})


def test_a_crash_while_predicting_is_told(probation: Path, python_model: Write) -> None:
    answer = probe(probation, python_model("os.abort()"), trusted=True)
    assert answer.json()["error"] == "the model crashed while predicting (SIGABRT)"


def test_a_model_that_fails_on_zeros_is_no_fault(probation: Path, python_model: Write) -> None:
    found = probe(probation, python_model("raise ValueError('zeros')"), trusted=True)
    assert (found.status, found.json()["predict_seconds"]) == (200, None)


@pytest.mark.parametrize("code", ["self.w = np.ones(60_000_000)", "self.w = bytearray(3_000_000_000)"])
def test_too_much_memory_is_refused(probation: Path, python_model: Write, code: str) -> None:
    path = python_model("return {'y': x[:, 0]}", load=code)
    answer = probe(probation, path, trusted=True, memory_limit_bytes=100_000_000)
    assert (answer.status, answer.json()["reason"]) == (422, "memory_limit")


def test_a_caller_that_goes_ends_its_probe(probation: Path, python_model: Write, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    path = python_model("return {}", load="open(PID, 'w').write(str(os.getpid()))\ntime.sleep(60)", PID=str(pid_file))
    with ThreadPoolExecutor(1) as pool:
        pool.submit(_ask_and_leave, probation, path, pid_file).result()
    pid = int(pid_file.read_text())
    deadline = time.monotonic() + 10
    while alive(pid):
        assert time.monotonic() < deadline
        threading.Event().wait(0.01)


def _ask_and_leave(probation: Path, path: Path, started: Path) -> None:
    from tests.support.workers import request_bytes

    channel = Channel(probation)
    body = f'{{"path":"{path}","format":null,"trusted":true,"parameters":{{}},"signature":null,"timeout_s":60}}'
    channel.send(request_bytes("POST", "/probe", body.encode()))
    deadline = time.monotonic() + 20
    while not (started.exists() and started.read_text()):
        assert time.monotonic() < deadline
        threading.Event().wait(0.01)
    channel.close()


def test_a_broken_call_is_refused(probation: Path) -> None:
    assert call(probation, "POST", "/probe", b"{}").status == 400
    assert call(probation, "GET", "/nothing").status == 404
