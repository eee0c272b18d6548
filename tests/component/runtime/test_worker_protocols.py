from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from msm.runtime.protocols import oip_grpc
from msm.runtime.protocols import oip_pb2 as pb
from tests.component.runtime.conftest import Models
from tests.support.workers import Answer, Channel, WorkerProcess, call, request_bytes, tensor

TARGET = "default/iris/v1"
ROW = [5.1, 3.5, 1.4, 0.2]


@pytest.fixture(autouse=True)
def _iris(worker: WorkerProcess, models: Models) -> None:
    assert worker.load(TARGET, models["iris.onnx"], digest="sha256:1").status == 200


def _grpc(worker: WorkerProcess, name: str, message: bytes, **headers: str) -> Answer:
    everything = {"content-type": "application/grpc", "te": "trailers", "x-msm-target": TARGET} | headers
    return call(worker.data, "POST", f"/{oip_grpc.SERVICE}/{name}", oip_grpc.frame(message), everything)


def _infer_request(**members: object) -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(model_name="iris", **members)
    message.inputs.add(name="X", datatype="FP32", shape=[1, 4])
    return message


def test_json_binary_and_grpc_give_the_same_numbers(worker: WorkerProcess, models: Models) -> None:
    rows = models.rows.astype(np.float32)
    count = len(rows)
    as_json = worker.infer(TARGET, tensor("X", "FP32", [count, 4], rows.ravel().tolist())).json()
    probabilities = np.array(as_json["outputs"][1]["data"], np.float32).reshape(count, 3)

    item = {"name": "X", "datatype": "FP32", "shape": [count, 4], "parameters": {"binary_data_size": rows.nbytes}}
    head = json.dumps({"inputs": [item], "parameters": {"binary_data_output": True}}).encode()
    binary = call(
        worker.data, "POST", "/v2/models/iris/infer", head + rows.tobytes(),
        {"x-msm-target": TARGET, "Inference-Header-Content-Length": str(len(head))},
    )  # fmt: skip
    size = int(binary.headers["inference-header-content-length"])
    sizes = [out["parameters"]["binary_data_size"] for out in json.loads(binary.body[:size])["outputs"]]
    assert sizes == [8 * count, 12 * count]
    np.testing.assert_array_equal(np.frombuffer(binary.body[size + sizes[0] :], np.float32), probabilities.ravel())

    message = pb.ModelInferRequest(model_name="iris", id="abc")
    message.inputs.add(name="X", datatype="FP32", shape=[count, 4]).contents.fp32_contents.extend(rows.ravel())
    answer = _grpc(worker, "ModelInfer", message.SerializeToString())
    assert answer.grpc == (0, "")
    response = pb.ModelInferResponse.FromString(oip_grpc.unframe(answer.body))
    assert (response.model_name, response.model_version, response.id) == ("iris", "v1", "abc")
    assert [(out.name, out.datatype, list(out.shape)) for out in response.outputs] == [
        ("label", "INT64", [count]), ("probabilities", "FP32", [count, 3]),
    ]  # fmt: skip
    np.testing.assert_array_equal(np.frombuffer(response.raw_output_contents[1], np.float32), probabilities.ravel())


def test_every_answer_names_who_gave_it(worker: WorkerProcess) -> None:
    for answer in (
        worker.infer(TARGET, tensor("X", "FP32", [1, 4], ROW)),
        worker.infer(TARGET, tensor("X", "FP32", [1, 3], ROW[:3])),
        _grpc(worker, "ModelInfer", _infer_request(raw_input_contents=[b""]).SerializeToString()),
        call(worker.data, "GET", "/v2/models/iris", headers={"x-msm-target": TARGET}),
    ):
        said = (answer.headers["x-msm-model"], answer.headers["x-msm-version"], answer.headers["x-msm-worker"])
        assert said == ("iris", "v1", "w0")


def test_the_header_chooses_the_version_and_without_it_the_path_does(worker: WorkerProcess, models: Models) -> None:
    worker.load("team/other/v2", models["zipmap.onnx"])
    body = json.dumps({"inputs": [tensor("X", "FP32", [1, 4], ROW)]}).encode()
    by_header = call(worker.data, "POST", "/v2/models/iris/infer", body, {"x-msm-target": "team/other/v2"})
    assert by_header.json()["model_name"] == "team/other"
    for path in ("/v2/models/iris/infer", "/v2/models/iris/versions/v1/infer", "/v2/models/iris/infer?x=1"):
        assert call(worker.data, "POST", path, body).json()["model_version"] == "v1"
    hidden = call(worker.data, "POST", "/v2/models/iris/infer", body, {"x-other": "x-msm-target: team/other/v2"})
    assert hidden.json()["model_name"] == "iris"


def test_a_version_that_is_not_held_is_refused_so_that_another_worker_is_tried(worker: WorkerProcess) -> None:
    rest = worker.infer("default/absent/v1", tensor("X", "FP32", [1, 4], ROW))
    assert (rest.status, rest.headers["x-msm-retriable"], rest.headers["x-msm-model"]) == (503, "true", "absent")
    grpc = _grpc(worker, "ModelInfer", _infer_request().SerializeToString(), **{"x-msm-target": "default/absent/v1"})
    assert (grpc.status, grpc.grpc[0], grpc.headers["x-msm-retriable"]) == (200, 14, "true")
    assert call(worker.data, "GET", "/v2/models/absent/ready").status == 503


def test_metadata_readiness_and_liveness_over_rest(worker: WorkerProcess) -> None:
    metadata = call(worker.data, "GET", "/v2/models/iris").json()
    assert metadata == {
        "name": "iris", "versions": ["v1"], "platform": "onnx",
        "inputs": [{"name": "X", "datatype": "FP32", "shape": [-1, 4]}],
        "outputs": [
            {"name": "label", "datatype": "INT64", "shape": [-1]},
            {"name": "probabilities", "datatype": "FP32", "shape": [-1, 3]},
        ],
    }  # fmt: skip
    assert call(worker.data, "GET", "/v2/models/iris/versions/v1/ready").json()["ready"] is True
    assert call(worker.data, "GET", "/v2").json()["extensions"] == ["binary_tensor_data", "generate"]
    assert call(worker.data, "GET", "/v2/health/live").status == 200
    assert call(worker.data, "GET", "/v2/health/ready").status == 200


def test_metadata_readiness_and_liveness_over_grpc(worker: WorkerProcess) -> None:
    for name, kind, field in (
        ("ServerLive", pb.ServerLiveResponse, "live"),
        ("ServerReady", pb.ServerReadyResponse, "ready"),
        ("ModelReady", pb.ModelReadyResponse, "ready"),
    ):
        answer = _grpc(worker, name, b"")
        assert answer.grpc == (0, "")
        assert getattr(kind.FromString(oip_grpc.unframe(answer.body)), field) is True
    metadata = pb.ModelMetadataResponse.FromString(oip_grpc.unframe(_grpc(worker, "ModelMetadata", b"").body))
    assert (metadata.platform, metadata.inputs[0].name, list(metadata.inputs[0].shape)) == ("onnx", "X", [-1, 4])
    server = pb.ServerMetadataResponse.FromString(oip_grpc.unframe(_grpc(worker, "ServerMetadata", b"").body))
    assert server.name == "msm"


def test_grpc_mistakes_get_their_status_in_trailers_only(worker: WorkerProcess) -> None:
    unknown = _grpc(worker, "NoSuchCall", b"")
    assert (unknown.status, unknown.grpc[0], unknown.body) == (200, 12, b"")
    assert _grpc(worker, "ModelInfer", b"\xff\xff\xff").grpc[0] == 13
    compressed = call(
        worker.data, "POST", f"/{oip_grpc.SERVICE}/ModelInfer", b"\1\0\0\0\1x", {"content-type": "application/grpc"}
    )
    assert compressed.grpc[0] == 12
    wrong = _infer_request()
    wrong.inputs[0].name = "größe 100%"
    wrong.inputs[0].contents.fp32_contents.extend(ROW)
    status, message = _grpc(worker, "ModelInfer", wrong.SerializeToString()).grpc
    assert status == 3
    assert "'gr%C3%B6%C3%9Fe 100%25'" in message
    late = _infer_request(raw_input_contents=[np.array(ROW, "<f4").tobytes()]).SerializeToString()
    assert _grpc(worker, "ModelInfer", late, **{"grpc-timeout": "0m"}).grpc[0] == 4
    assert _grpc(worker, "ModelInfer", late, **{"grpc-timeout": "99999999H"}).grpc[0] == 0


@pytest.mark.parametrize(
    ("method", "path", "headers", "status", "code"),
    [
        ("GET", "/v2/models/iris/infer", {}, 405, "method_not_allowed"),
        ("DELETE", "/v2/models/iris", {}, 405, "method_not_allowed"),
        ("POST", "/v2/models/iris/infer", {"content-type": "text/plain"}, 415, "wrong_content_type"),
        ("POST", "/v2/models/iris/infer", {"content-type": "application/json;charset=cp1"}, 415, "wrong_content_type"),
        ("POST", "/v2/models/iris/infer", {"content-encoding": "gzip"}, 415, "wrong_content_encoding"),
        ("POST", "/v2/models/iris/infer", {}, 400, "empty_body"),
        ("POST", "/v2/models/iris/infer", {"inference-header-content-length": "-1"}, 400, "invalid_header_length"),
        ("POST", "/v2/models/iris/infer", {"inference-header-content-length": "99"}, 400, "invalid_header_length"),
        ("GET", "/v3", {}, 404, "no_such_path"),
        ("POST", f"/{oip_grpc.SERVICE}/ModelInfer", {}, 415, "wrong_content_type"),
    ],
)  # fmt: skip
def test_rest_mistakes_get_their_status(
    worker: WorkerProcess, method: str, path: str, headers: dict[str, str], status: int, code: str
) -> None:
    answer = call(worker.data, method, path, headers=headers)
    assert (answer.status, answer.json()["code"]) == (status, code)
    assert ("allow" in answer.headers) == (status == 405)


def test_bodies_over_the_limit_are_refused_declared_or_not(worker: WorkerProcess) -> None:
    declared = Channel(worker.data)
    declared.send(request_bytes("POST", "/v2/models/iris/infer", headers={"content-length": "1000001"}))
    assert declared.receive().status == 413
    declared.close()
    chunked = Channel(worker.data)
    head = (
        b"POST /v2/models/iris/infer HTTP/1.1\r\ncontent-type: application/grpc\r\ntransfer-encoding: chunked\r\n\r\n"
    )
    chunked.send(head + b"80000\r\n" + bytes(0x80000) + b"\r\n80000\r\n")
    answer = chunked.receive()
    assert (answer.status, answer.grpc[0]) == (200, 8)
    chunked.close()
    exact = b'{"inputs":[]}'.ljust(1_000_000)
    assert call(worker.data, "POST", "/v2/models/iris/infer", exact).json()["code"] == "no_inputs"


def test_a_connection_lives_on_after_a_mistake_and_takes_pipelined_requests(worker: WorkerProcess) -> None:
    good = request_bytes(
        "POST", "/v2/models/iris/infer", json.dumps({"inputs": [tensor("X", "FP32", [1, 4], ROW)]}).encode()
    )
    bad = request_bytes("POST", "/v2/models/iris/infer", b"{")
    channel = Channel(worker.data)
    channel.send(good + bad + good)
    channel.send(bad)
    assert [channel.receive().status for _ in range(4)] == [200, 400, 200, 400]
    channel.close()


def test_a_request_may_come_byte_by_byte(worker: WorkerProcess) -> None:
    body = json.dumps({"inputs": [tensor("X", "FP32", [1, 4], ROW)]}).encode()
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(body[i : i + 7]), body[i : i + 7]) for i in range(0, len(body), 7))
    chunked = b"POST /v2/models/iris/infer HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"
    channel = Channel(worker.data)
    for data in (request_bytes("POST", "/v2/models/iris/infer", body), chunked):
        for index in range(len(data)):
            channel.send(data[index : index + 1])
        assert channel.receive().status == 200
    channel.close()


def test_control_calls_are_not_on_the_data_socket(worker: WorkerProcess) -> None:
    assert call(worker.data, "POST", "/v2/repository/index").status == 404


def test_the_sockets_are_for_their_owner_only(worker: WorkerProcess) -> None:
    modes = {path.stat().st_mode & 0o777 for path in (worker.data, worker.control, worker.blackbox)}
    assert modes == {0o600}


def test_a_large_body_arrives_whole(worker: WorkerProcess, tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(
        "class Model:\n    def predict(self, inputs):\n        return {'s': inputs['x'].sum(keepdims=True)}\n"
    )
    worker.load("default/sum/v1", tmp_path, trusted=True)
    values = np.arange(100_000, dtype=np.float64)
    answer = worker.infer("default/sum/v1", tensor("x", "FP64", [100_000], values.astype(int).tolist()))
    assert answer.json()["outputs"][0]["data"] == [values.sum()]
