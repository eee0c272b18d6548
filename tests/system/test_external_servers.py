"""Models on MLServer and on Triton next to models on the built-in workers, in one mesh, asked through its gateway."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
import tritonclient.grpc as grpc_client
import tritonclient.http as http_client

from bench._mesh import Mesh, mesh
from bench._models import write_network
from tests.support import peers
from tests.system.conftest import msm_command

pytestmark = pytest.mark.timeout(180)
FIRST_S = 60.0  # the first request starts a server


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    peers.write_sklearn(folder / "iris.joblib")
    write_network(folder / "net.onnx", 1)
    write_network(folder / "net2.onnx", 2)
    peers.write_custom(folder / "custom")
    (folder / "junk.joblib").write_bytes(b"this is no pickle")
    (folder / "junk.onnx").write_bytes(b"this is no network")
    return folder


@pytest.fixture(scope="module")
def mixed(models: Path) -> Iterator[Mesh]:
    """A mesh with both external servers and built-in workers."""
    with mesh("--workers", "1") as started:
        started.apply(
            [
                peers.mlserver(),
                peers.triton(),
                peers.model("iris", models / "iris.joblib", "mlserver", format="sklearn", trusted=True),
                peers.model("custom", models / "custom", "mlserver", format="custom", trusted=True),
                peers.model("net", models / "net.onnx", "triton"),
                peers.model("builtin", models / "net.onnx"),
            ]
        )
        started.wait_valid(within_s=60)
        yield started


def body(values: list[list[float]], name: str = "x", datatype: str = "FP32") -> dict[str, Any]:
    flat = [value for row in values for value in row]
    return {"inputs": [{"name": name, "shape": [len(values), len(values[0])], "datatype": datatype, "data": flat}]}


def ask(mesh: Mesh, name: str, content: Any, *, timeout_s: float = FIRST_S) -> httpx.Response:
    return httpx.post(f"{mesh.gateway}/v2/models/{name}/infer", json=content, timeout=timeout_s)


def until(condition: Callable[[], Any], within_s: float) -> Any:
    """The first true value; a system test sees the mesh from outside and can only ask again."""
    deadline = time.monotonic() + within_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not true within {within_s} s: {found!r}"
        time.sleep(0.05)
    return found


def worker_of(mesh: Mesh, runtime: str) -> dict[str, Any]:
    (found,) = [worker for worker in mesh.node()["workers"] if worker.get("runtime") == f"default/{runtime}"]
    return found


def server_of(mesh: Mesh, runtime: str) -> psutil.Process:
    """The external server's own process: the child of its adapter."""
    return psutil.Process(worker_of(mesh, runtime)["pid"]).children()[0]


IRIS = [[5.1, 3.5, 1.4, 0.2], [6.7, 3.0, 5.2, 2.3]]


def test_a_sklearn_model_on_mlserver_answers_rest_and_grpc(mixed: Mesh) -> None:
    answer = ask(mixed, "iris", body(IRIS))
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert (found["model_name"], found["model_version"]) == ("iris", "v1")
    assert found["outputs"][0]["data"] == [0, 2]
    assert answer.headers["x-msm-model"] == "iris"
    assert answer.headers["x-msm-worker"] == worker_of(mixed, "mlserver")["id"]

    client = grpc_client.InferenceServerClient(mixed.gateway.removeprefix("http://"))
    tensor = grpc_client.InferInput("x", [2, 4], "FP32")
    tensor.set_data_from_numpy(np.array(IRIS, np.float32))
    result = client.infer("iris", [tensor])
    assert result.as_numpy("predict").ravel().tolist() == [0, 2]
    told = result.get_response()
    assert (told.model_name, told.model_version) == ("iris", "v1")
    client.close()


def test_an_onnx_network_on_triton_gives_what_the_built_in_worker_gives(mixed: Mesh) -> None:
    expected = np.array(ask(mixed, "builtin", body(IRIS)).json()["outputs"][0]["data"])
    answer = ask(mixed, "net", body(IRIS))
    assert answer.status_code == 200, answer.text
    assert answer.json()["model_name"] == "net"
    np.testing.assert_allclose(answer.json()["outputs"][0]["data"], expected.ravel(), rtol=1e-5)

    values = np.array(IRIS, np.float32)
    binary = http_client.InferenceServerClient(mixed.gateway.removeprefix("http://"))
    rest_input = http_client.InferInput("x", [2, 4], "FP32")
    rest_input.set_data_from_numpy(values, binary_data=True)
    by_binary = binary.infer("net", [rest_input], outputs=[http_client.InferRequestedOutput("y", binary_data=True)])
    np.testing.assert_allclose(by_binary.as_numpy("y").ravel(), expected.ravel(), rtol=1e-5)
    assert by_binary.get_response()["model_name"] == "net"
    assert binary.get_model_metadata("net")["name"] == "net"
    assert binary.is_model_ready("net")
    binary.close()

    client = grpc_client.InferenceServerClient(mixed.gateway.removeprefix("http://"))
    grpc_input = grpc_client.InferInput("x", [2, 4], "FP32")
    grpc_input.set_data_from_numpy(values)
    result = client.infer("net", [grpc_input])
    np.testing.assert_allclose(result.as_numpy("y").ravel(), expected.ravel(), rtol=1e-5)
    assert result.get_response().model_name == "net"
    assert list(client.get_model_metadata("net").versions) == ["v1"]
    client.close()


def test_a_subclass_of_mlmodel_loads_and_answers(mixed: Mesh) -> None:
    answer = ask(mixed, "custom", body([[1.0, 2.0]], datatype="FP64"))
    assert answer.status_code == 200, answer.text
    assert answer.json()["outputs"][0]["data"] == [3.0, 6.0]
    assert answer.json()["model_name"] == "custom"


def test_the_memory_of_a_version_is_what_the_server_grew_by(mixed: Mesh) -> None:
    assert ask(mixed, "net", body(IRIS)).status_code == 200

    def measured() -> dict[str, Any] | None:
        found = mixed.call("GET", "/models/default/net").json()["status"]["versions"]["v1"]
        return found if found.get("loadSeconds") else None

    status = until(measured, 10)
    assert 5 << 20 < status["memoryBytes"] < 500 << 20  # a process of Triton's Python backend with onnxruntime
    copies = [copy for copy in mixed.node()["copies"] if copy["version"] == "default/net/v1"]
    assert [copy["memoryBytes"] for copy in copies] == [status["memoryBytes"]]
    assert status["signature"]["inputs"][0]["name"] == "x"


@pytest.mark.parametrize(
    ("model", "content"),
    [
        ("iris", body([[1.0, 2.0, 3.0]])),
        ("iris", {"inputs": 3}),
        ("iris", {}),
        ("net", body(IRIS, name="z")),
        ("net", body([[1.0, 2.0]])),
        ("net", {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP99", "data": [1, 2, 3, 4]}]}),
    ],
    ids=["features", "inputs no list", "no inputs", "input name", "shape", "datatype"],
)
def test_a_clients_mistake_is_the_clients(mixed: Mesh, model: str, content: Any) -> None:
    answer = ask(mixed, model, content)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]
    for leak in ("Traceback", 'File "', "/site-packages", str(mixed.data), "-v1-"):
        assert leak not in answer.text


def test_a_clients_mistake_by_grpc(mixed: Mesh, models: Path) -> None:
    # MLServer does not tell by gRPC whose mistake an exception of a model is; a declared signature does.
    signature = {
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}],
        "outputs": [{"name": "predict", "datatype": "INT64", "shape": [-1, 1]}],
    }
    declared = {"format": "sklearn", "trusted": True, "signature": signature}
    mixed.apply([peers.model("signed", models / "iris.joblib", "mlserver", **declared)])
    mixed.wait_valid(within_s=30, of="signed")
    assert ask(mixed, "signed", body(IRIS)).status_code == 200
    assert ask(mixed, "signed", body([[1.0, 2.0, 3.0]])).status_code == 400
    client = grpc_client.InferenceServerClient(mixed.gateway.removeprefix("http://"))
    for name, tensor_name, shape in (("net", "z", [1, 4]), ("signed", "x", [1, 3])):
        tensor = grpc_client.InferInput(tensor_name, shape, "FP32")
        tensor.set_data_from_numpy(np.zeros(shape, np.float32))
        with pytest.raises(grpc_client.InferenceServerException) as refused:
            client.infer(name, [tensor])
        assert refused.value.status() == "StatusCode.INVALID_ARGUMENT", refused.value
        assert "Traceback" not in refused.value.message()
    client.close()


@pytest.mark.parametrize(("runtime", "file"), [("mlserver", "junk.joblib"), ("triton", "junk.onnx")])
def test_a_corrupt_model_gives_the_servers_own_words(mixed: Mesh, models: Path, runtime: str, file: str) -> None:
    kind = {"mlserver": "sklearn", "triton": "onnx"}[runtime]
    name = f"junk-{runtime}"
    mixed.apply([peers.model(name, models / file, runtime, format=kind, trusted=True)])
    mixed.wait_valid(within_s=30, of=name)
    answer = ask(mixed, name, body(IRIS))
    assert answer.status_code == 503, answer.text
    assert answer.json()["code"] == "load_failed"
    assert {"mlserver": "Error: ", "triton": "model.onnx"}[runtime] in answer.json()["error"]
    for leak in ("Traceback", 'File "', "/site-packages", str(mixed.data)):
        assert leak not in answer.text
    assert ask(mixed, "iris", body(IRIS)).status_code == 200  # its neighbours are not harmed
    mixed.call("DELETE", f"/models/default/{name}")


def test_code_in_an_artifact_needs_trust(mixed: Mesh, models: Path) -> None:
    mixed.apply([peers.model("distrusted", models / "iris.joblib", "mlserver", format="sklearn")])

    def failed() -> str | None:
        status = mixed.call("GET", "/models/default/distrusted").json().get("status", {})
        return status.get("versions", {}).get("v1", {}).get("reason")

    assert until(failed, 20) == "untrusted"
    mixed.call("DELETE", "/models/default/distrusted")


def test_unloading_gives_the_model_back_and_a_request_brings_it_again(mixed: Mesh) -> None:
    assert ask(mixed, "net", body(IRIS)).status_code == 200
    token = {"authorization": f"Bearer {mixed.token}"}
    unload = httpx.post(f"{mixed.api}/v2/repository/models/net/unload", headers=token, timeout=60)
    assert unload.status_code == 200, unload.text

    def gone() -> bool:
        return not any(copy["version"] == "default/net/v1" for copy in mixed.node()["copies"])

    until(gone, 30)
    children = [child.name() for child in server_of(mixed, "triton").children(recursive=True)]
    assert not any("stub" in name for name in children)
    assert ask(mixed, "net", body(IRIS)).status_code == 200


@pytest.mark.parametrize(("runtime", "model"), [("mlserver", "iris"), ("triton", "net")])
def test_a_killed_server_heals(mixed: Mesh, runtime: str, model: str) -> None:
    assert ask(mixed, model, body(IRIS)).status_code == 200
    before = server_of(mixed, runtime).pid
    os.kill(before, signal.SIGKILL)
    answer = ask(mixed, model, body(IRIS))  # at once: it is held until the copy is back
    assert answer.status_code == 200, answer.text
    assert server_of(mixed, runtime).pid != before
    assert worker_of(mixed, runtime)["restarts"] >= 1
    assert ask(mixed, "builtin", body(IRIS)).status_code == 200


def test_servers_outlive_a_killed_node_process(mixed: Mesh) -> None:
    assert ask(mixed, "iris", body(IRIS)).status_code == 200
    assert ask(mixed, "net", body(IRIS)).status_code == 200
    before = {name: server_of(mixed, name).pid for name in ("mlserver", "triton")}
    mixed.kill_node_process()
    assert ask(mixed, "iris", body(IRIS)).status_code == 200  # without a node process
    mixed.start()
    assert {name: server_of(mixed, name).pid for name in before} == before
    copies = {copy["version"]: copy["state"] for copy in mixed.node()["copies"]}
    assert (copies["default/iris/v1"], copies["default/net/v1"]) == ("Ready", "Ready")
    assert ask(mixed, "net", body(IRIS)).status_code == 200


def test_what_is_measured_to_be_small_leaves_room_for_more(models: Path) -> None:
    with mesh("--workers", "1", "--capacity", str(900 << 20)) as small:
        small.apply([peers.triton(memoryOverhead="150Mi")])
        for number, file in enumerate(("net.onnx", "net2.onnx")):
            small.apply([peers.model(f"m{number}", models / file, "triton", memory="500Mi")])
        small.wait_valid(within_s=30)
        assert ask(small, "m0", body(IRIS)).status_code == 200
        assert ask(small, "m1", body(IRIS)).status_code == 200  # declared at 500 MiB, both would not fit
        node = small.node()
        assert sum(copy["state"] == "Ready" for copy in node["copies"]) == 2
        assert node["usedBytes"] == (150 << 20) + sum(copy["memoryBytes"] for copy in node["copies"])


def test_commands_know_runtimes(mixed: Mesh) -> None:
    msm = msm_command(mixed.data)
    listed = msm("get", "runtimes")
    assert listed.code == 0, listed.err
    assert "mlserver" in listed.out
    assert "triton" in listed.out
    written = json.loads(msm("get", "runtime", "triton", "-o", "json").out)
    assert written["kind"] == "ServingRuntime"
    assert ask(mixed, "net", body(IRIS)).status_code == 200
    described = msm("describe", "runtime", "triton")
    assert described.code == 0, described.err
    assert worker_of(mixed, "triton")["id"] in described.out
    refused = msm("delete", "runtime", "triton")
    assert refused.code == 4
    assert "runs model/net" in refused.err
    again = msm("apply", "-f", "-", stdin=json.dumps(written))
    assert again.code == 0, again.err
    assert "unchanged" in again.out
