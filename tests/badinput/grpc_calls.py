"""gRPC calls of the catalogue, through Envoy over HTTP/2 and to the worker over HTTP/1.1 as Envoy sends them."""

from __future__ import annotations

import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import grpc
from google.protobuf.json_format import ParseDict

from msm.runtime.protocols import oip_pb2 as pb
from tests.badinput.cases import GrpcCase, content
from tests.badinput.mesh import Doorway
from tests.badinput.wire import Answer, request

CODES = {code.value[0]: code.name for code in grpc.StatusCode}
TENSORS: dict[str, dict[str, Any]] = {
    "perceptron": {"name": "x", "datatype": "FP32", "shape": [1, 4], "contents": {"fp32_contents": [5, 3, 1, 0]}},
    "echo": {"name": "text", "datatype": "BYTES", "shape": [1], "contents": {"bytes_contents": ["YQ=="]}},
    "every-type": {"name": "fp32", "datatype": "FP32", "shape": [1], "contents": {"fp32_contents": [1]}},
    "naughty": {"name": "x", "datatype": "FP32", "shape": [1], "contents": {"fp32_contents": [0]}},
}
INFER = "/inference.GRPCInferenceService/ModelInfer"
NO_LIMITS = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]


@dataclass(frozen=True, slots=True)
class Told:
    """How a call ended."""

    status: str
    message: str
    took_s: float

    @property
    def answer(self) -> Answer:
        """The same as an answer of HTTP, for what must hold of every answer."""
        return Answer(200 if self.status == "OK" else 400, (("grpc-message", self.message),), took_s=self.took_s)


def message_of(case: GrpcCase) -> bytes:
    """The message of a case."""
    if case.body is not None:
        return content(case.body)
    plain = {"model_name": case.model, "inputs": [TENSORS.get(case.model, TENSORS["perceptron"])], **case.request}
    message: bytes = ParseDict(plain, pb.ModelInferRequest()).SerializeToString()
    return message + content(case.tail)


def frame_of(case: GrpcCase) -> bytes:
    """The message with its frame, or what the case has in its place."""
    if case.frame is not None:
        return content(case.frame)
    message = message_of(case)
    return b"\0" + len(message).to_bytes(4, "big") + message


def metadata_of(case: GrpcCase) -> list[tuple[str, str]]:
    return [(name, value if isinstance(value, str) else content(value).decode()) for name, value in case.metadata]


def over_http2(case: GrpcCase, channel: grpc.Channel, gateway: Doorway, folder: Path) -> Told:
    """Through Envoy: by a gRPC client, or by curl where the frame is what is wrong."""
    if case.frame is not None:
        return _by_curl(case, gateway, folder)
    call = channel.unary_unary(case.method)
    began = time.monotonic()
    try:
        call(
            message_of(case),
            timeout=case.timeout_s if case.timeout_s is not None else 10,
            metadata=metadata_of(case),
            compression=grpc.Compression.Gzip if case.gzip else None,
        )
    except grpc.RpcError as error:
        return Told(error.code().name, error.details() or "", time.monotonic() - began)  # type: ignore[attr-defined]
    return Told("OK", "", time.monotonic() - began)


def _by_curl(case: GrpcCase, gateway: Doorway, folder: Path) -> Told:
    curl = shutil.which("curl")
    assert curl is not None, "this case needs curl"
    body, head = folder / "body", folder / "head"
    body.write_bytes(frame_of(case))
    host, port = gateway.address  # type: ignore[misc]
    options = ("-sS", "--http2-prior-knowledge", "--max-time", "10", "-D", head, "-o", folder / "answer")
    headers = ("-H", "content-type: application/grpc", "-H", "te: trailers", "-H", "expect:")
    began = time.monotonic()
    done = subprocess.run(
        [curl, *map(str, options), *headers, "--data-binary", f"@{body}", f"http://{host}:{port}{case.method}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split(": ", 1) for line in head.read_text().splitlines() if ": " in line]
    fields = {name.lower(): value for name, value in lines}
    return Told(_name(fields.get("grpc-status")), unquote(fields.get("grpc-message", "")), time.monotonic() - began)


def over_http1(case: GrpcCase, worker: Doorway) -> Told:
    """To the worker, in the form in which Envoy hands a call on."""
    headers = [
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        ("x-msm-target", f"default/{case.model}/v1"),
        *metadata_of(case),
    ]
    body = frame_of(case)
    if case.gzip:
        headers.append(("grpc-encoding", "gzip"))
        body = b"\1" + body[1:]
    with worker.line() as line:
        answer = line.ask(request("POST", case.method, headers, body))
    assert answer.status == 200, answer.text[:500]
    return Told(_name(answer.header("grpc-status")), unquote(answer.header("grpc-message") or ""), answer.took_s)


def _name(code: str | None) -> str:
    assert code is not None, "the answer has no grpc-status"
    return CODES[int(code)]
