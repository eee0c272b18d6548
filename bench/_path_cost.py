"""Where the worker's processor time goes: each step of the request path called alone, with the bytes that Envoy sends.

python -m bench._path_cost prints µs per request and step, the least of some rounds, for a batch of 32 on one loop turn.
"""

from __future__ import annotations

import asyncio
import gc
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvloop

from bench._cases import TINY, cases, write_models
from msm.http import head
from msm.http.server import Listener
from msm.kit.tasks import Tasks
from msm.runtime import answers, batching
from msm.runtime.blackbox import BlackBox
from msm.runtime.data import KNOWN_HEADERS, DataApp
from msm.runtime.engine import Shell
from msm.runtime.jobs import RestJob
from msm.runtime.paths import route
from msm.runtime.protocols import oip_grpc, oip_json
from msm.runtime.protocols import oip_pb2 as pb
from msm.runtime.repository import LoadSpec, Repository
from msm.runtime.server import MAX_BODY_BYTES
from msm.runtime.threads import Threads
from msm.runtime.validate import check_inputs, check_outputs

BATCH, ROUNDS, CALLS = 32, 15, 2000
TARGET = f"default/{TINY}/v1"
# As a worker gets them from Envoy.
HEAD = (
    "host: 127.0.0.1:8080\r\nuser-agent: h2load nghttp2/1.52.0\r\ncontent-type: {kind}\r\n{more}"
    "x-forwarded-proto: http\r\nx-msm-service: {model}\r\nx-msm-target: {target}\r\n"
)


class Sink:
    """A transport that takes everything."""

    written = 0

    def write(self, data: bytes) -> None:
        self.written += 1

    def is_reading(self) -> bool:
        return True

    def is_closing(self) -> bool:
        return False


def least_us(call: Callable[[], Any], calls: int, of: int = 1) -> float:
    """Processor time of a call divided by `of`: the least of some rounds."""
    times = []
    for _ in range(ROUNDS):
        began = time.thread_time()
        for _ in range(calls):
            call()
        times.append((time.thread_time() - began) / calls / of * 1e6)
    return min(times)


def rest_bytes(body: bytes) -> bytes:
    fields = HEAD.format(kind="application/json", more=f"content-length: {len(body)}\r\n", model=TINY, target=TARGET)
    return f"POST /v2/models/{TINY}/infer HTTP/1.1\r\n{fields}\r\n".encode() + body


def grpc_bytes(body: bytes) -> bytes:
    more = "te: trailers\r\ntransfer-encoding: chunked\r\n"
    fields = HEAD.format(kind="application/grpc", more=more, model=TINY, target=TARGET)
    chunk = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    return f"POST /inference.GRPCInferenceService/ModelInfer HTTP/1.1\r\n{fields}\r\n".encode() + chunk


async def main(folder: Path) -> None:
    loop = asyncio.get_running_loop()
    models = write_models(folder / "models")
    rest, grpc = (case.ask.body.read_bytes() for case in cases(folder / "bodies")[:2])
    shell = Shell(loop, Threads(1, "predict"), BlackBox(folder / "box"))
    async with Tasks(lambda *_: None) as tasks:
        repository = Repository(shell, Threads(1, "load"), tasks)
        await repository.load(TARGET, LoadSpec(path=str(models[TINY]), format="onnx", predict_s=1e-5))
        app = DataApp("w0", repository)
        listener = Listener(app.handle, app.refuse, MAX_BODY_BYTES, KNOWN_HEADERS)
        gc.collect()
        gc.freeze()
        steps(repository, rest, grpc)
        for name, data in (("REST", rest_bytes(rest)), ("gRPC", grpc_bytes(grpc))):
            connections = [listener.connect() for _ in range(BATCH)]
            sinks = [Sink() for _ in connections]
            for connection, sink in zip(connections, sinks, strict=True):
                connection.connection_made(sink)  # type: ignore[arg-type]
            await whole(name, connections, sinks, data)


async def whole(name: str, connections: list[Any], sinks: list[Sink], data: bytes) -> None:
    """All of a request but its socket: 32 connections get their bytes, the next turn of the loop answers."""
    parts: list[tuple[float, float]] = []
    for _ in range(ROUNDS):
        coming = answering = 0.0
        for _ in range(100):
            began = time.thread_time()
            for connection in connections:
                connection.data_received(data)
            between = time.thread_time()
            await asyncio.sleep(0)
            while not all(sink.written for sink in sinks):
                await asyncio.sleep(0)
            coming, answering = coming + between - began, answering + time.thread_time() - between
            for sink in sinks:
                sink.written = 0
        parts.append((coming / 100 / BATCH * 1e6, answering / 100 / BATCH * 1e6))
    coming, answering = min(parts, key=sum)
    print(f"{name}: from bytes to the queue {coming:.2f}, from the queue to bytes {answering:.2f} us")


def steps(repository: Repository, rest: bytes, grpc: bytes) -> None:
    """Each function of the path alone."""
    engine = repository.find(TARGET)
    assert engine is not None
    model: Any = engine._model
    signature, source = engine.signature, answers.origin(TARGET, "w0")
    call = oip_json.decode(rest, None)
    inputs = check_inputs(signature, frozenset(), call.inputs)
    joined = batching.join([inputs] * BATCH)
    given = model.predict(joined)
    outputs = check_outputs(signature, given, exact=False)
    one = batching.scatter(outputs, [1] * BATCH)[0]
    message = oip_grpc.parse(pb.ModelInferRequest, grpc)
    grpc_call = oip_grpc.decode(message)
    line = rest_bytes(rest)
    first = line[: line.index(b"\r\n\r\n") + 2]
    path = head.parse(first, KNOWN_HEADERS).path
    request: Any = None

    def job() -> RestJob:
        made = RestJob(inputs, request, source, call)
        made.shape = batching.shape_of(inputs, uniform=True)
        return made

    shapes = [batching.shape_of(inputs, uniform=True)] * BATCH
    told: list[tuple[str, Callable[[], Any], int]] = [
        ("head.parse", lambda: head.parse(first, KNOWN_HEADERS), 1),
        ("data.route", lambda: route(path), 1),
        ("oip_json.decode", lambda: oip_json.decode(rest, None), 1),
        ("oip_grpc.parse", lambda: oip_grpc.parse(pb.ModelInferRequest, grpc), 1),
        ("oip_grpc.decode", lambda: oip_grpc.decode(message), 1),
        ("check_inputs", lambda: check_inputs(signature, frozenset(), call.inputs), 1),
        ("job and shape", job, 1),
        ("batching.cut", lambda: batching.cut(iter(shapes), engine.settings.limits), BATCH),
        ("batching.join", lambda: batching.join([inputs] * BATCH), BATCH),
        ("model.predict (session.run)", lambda: model.predict(joined), BATCH),
        ("check_outputs", lambda: check_outputs(signature, given, exact=False), BATCH),
        ("batching.scatter", lambda: batching.scatter(outputs, [1] * BATCH), BATCH),
        ("answers.rest_inference", lambda: answers.rest_inference(source, call, one), 1),
        ("answers.grpc_inference", lambda: answers.grpc_inference(source, grpc_call, one), 1),
    ]
    for name, function, of in told:
        print(f"{name:<30} {least_us(function, CALLS if of == 1 else CALLS // 10, of):6.2f} us")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        uvloop.run(main(Path(name)))
