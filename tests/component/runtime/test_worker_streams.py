"""Streams of a real worker: they flow, wait for slow readers, end when nobody reads, and tell their errors."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from msm.runtime import blackbox
from msm.runtime.protocols import oip_grpc, oip_stream
from msm.runtime.protocols import oip_pb2 as pb
from tests.support.generating import ASYNC_SOURCE, SOURCE, write_generating
from tests.support.workers import Answer, Channel, WorkerProcess, call, request_bytes, running_worker, tensor

JSON = {"content-type": "application/json"}
STREAM_INFER = "/inference.GRPCInferenceService/ModelStreamInfer"


def _until(condition: Callable[[], Any], within_s: float = 20.0) -> Any:
    deadline = time.monotonic() + within_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not true within {within_s} s"
        threading.Event().wait(0.01)
    return value


class Subject:
    """One version of a generating model of its own in the worker."""

    def __init__(self, worker: WorkerProcess, name: str, folder: Path, source: str = SOURCE, **spec: Any) -> None:
        self.worker, self.folder, self.target = worker, write_generating(folder, source), f"default/{name}/v1"
        loaded = worker.load(self.target, self.folder, trusted=True, **spec)
        assert loaded.status == 200, loaded.body

    @property
    def headers(self) -> dict[str, str]:
        return {**JSON, "x-msm-target": self.target}

    @property
    def entry(self) -> dict[str, Any]:
        return self.worker.index()[self.target]

    def ask(self, verb: str = "generate", **values: Any) -> Answer:
        return call(self.worker.data, "POST", f"/v2/models/m/{verb}", json.dumps(values).encode(), self.headers)

    def open(self, path: str = "/v2/models/m/generate_stream", **values: Any) -> Channel:
        channel = Channel(self.worker.data)
        channel.send(request_bytes("POST", path, json.dumps(values).encode(), self.headers))
        return channel

    def closed(self, text: str) -> bool:
        return (self.folder / f"closed-{text}").exists()

    def steps(self) -> int:
        answer = self.worker.infer(self.target, tensor("text", "BYTES", [1], ["count"]))
        return int(answer.json()["outputs"][0]["data"][0])

    def most_inside(self) -> int:
        answer = self.worker.infer(self.target, tensor("text", "BYTES", [1], ["most"]))
        return int(answer.json()["outputs"][0]["data"][0])


@pytest.fixture
def subject(worker: WorkerProcess, tmp_path: Path) -> Iterator[Subject]:
    made = Subject(worker, "generates", tmp_path / "model")
    yield made
    worker.unload(made.target, drain_s=0.1)


def events(body: bytes) -> list[tuple[str, Any]]:
    """Name and data of each event."""
    found = []
    for block in body.decode().split("\n\n")[:-1]:
        lines = dict(line.split(": ", 1) for line in block.split("\n"))
        data = lines["data"]
        found.append((lines.get("event", ""), data if data == "[DONE]" else json.loads(data)))
    return found


def texts(body: bytes) -> list[str]:
    return [data["text"] for name, data in events(body) if not name]


def test_each_step_is_an_event_that_comes_when_the_model_gives_it(subject: Subject) -> None:
    channel = subject.open(text="gate", id="7")
    head = channel.head()
    assert (head.status, head.headers["content-type"]) == (200, "text/event-stream")
    assert head.headers["x-msm-model"] == "generates"
    whole = {"model_name": "generates", "model_version": "v1", "id": "7", "text": "gate0 "}
    assert events(channel.chunk()) == [("", whole)]
    for at in (1, 2):
        (subject.folder / f"go-{at}").touch()
        assert texts(channel.chunk()) == [f"gate{at} "]
    assert channel.chunk() == b""
    channel.close()
    _until(lambda: subject.entry["in_flight"] == 0)
    assert subject.entry["requests"] == 1


def test_generate_gives_all_steps_as_one_answer(subject: Subject) -> None:
    answer = subject.ask(text="a", parameters={"length": 4, "unknown": 1})
    assert answer.json() == {"model_name": "generates", "model_version": "v1", "text": "a0 a1 a2 a3 "}
    assert subject.ask(text="a", length=0).json() == {"model_name": "generates", "model_version": "v1"}


def test_a_model_that_does_not_generate_answers_in_one_step(worker: WorkerProcess, python_model: Any) -> None:
    worker.load("default/plain/v1", python_model("return {'y': x.sum(axis=1)}"), trusted=True)
    headers = {**JSON, "x-msm-target": "default/plain/v1"}
    body = json.dumps({"x": [[1, 2], [3, 4]]}).encode()
    answer = call(worker.data, "POST", "/v2/models/plain/generate", body, headers)
    assert answer.json() == {"model_name": "plain", "model_version": "v1", "y": [3.0, 7.0]}
    streamed = call(worker.data, "POST", "/v2/models/plain/generate_stream", body, headers)
    assert [data["y"] for _, data in events(streamed.body)] == [[3.0, 7.0]]


def test_an_asynchronous_generator_streams_and_ends_with_its_reader(worker: WorkerProcess, tmp_path: Path) -> None:
    subject = Subject(worker, "async", tmp_path / "model", ASYNC_SOURCE, timeout_s=1)
    assert subject.ask(text="a").json()["text"] == "a0a1a2a3a4"
    answer = subject.ask("generate_stream", text="raise")
    assert texts(answer.body) == ["raise0", "raise1"]
    assert events(answer.body)[-1][1]["error"] == "the model raised ValueError: on purpose"
    late = subject.ask("generate_stream", text="wait")
    assert events(late.body)[-1][1]["code"] == "deadline_exceeded"
    _until(lambda: subject.closed("wait") and subject.entry["in_flight"] == 0)
    assert subject.entry["state"] == "READY"
    assert subject.ask(text="b").status == 200


def test_an_error_before_the_first_step_has_its_status_and_a_later_one_is_an_event(subject: Subject) -> None:
    first = subject.ask("generate_stream", text="raise-first")
    assert (first.status, first.json()["code"]) == (500, "model_error")
    later = subject.ask("generate_stream", text="raise", length=5)
    assert texts(later.body) == ["raise0 ", "raise1 "]
    error = {"error": "the model raised ValueError: on purpose", "code": "model_error"}
    assert events(later.body)[-1] == ("error", error)
    assert subject.ask(text="raise").json() == error
    ended = subject.ask("generate_stream", text="exit")
    assert events(ended.body)[-1][1]["error"] == "the model raised SystemExit: 3"
    _until(lambda: subject.entry["in_flight"] == 0)
    assert subject.entry["failures"] == 4
    assert "secret" in subject.worker.log


@pytest.mark.parametrize("text", ["patient", "large"])
def test_the_model_is_told_when_its_client_goes(subject: Subject, text: str) -> None:
    channel = subject.open(text=text, length=1_000_000)
    assert channel.head().status == 200
    channel.chunk()
    channel.close()
    _until(lambda: subject.closed(text), within_s=5)
    _until(lambda: subject.entry["in_flight"] == 0, within_s=5)
    assert subject.entry["failures"] == 0


def test_a_slow_reader_stops_the_model_and_costs_no_memory(subject: Subject) -> None:
    rss = call(subject.worker.control, "GET", "/v2/health/live").json()["rss_bytes"]
    channel = subject.open(text="large", length=4000)  # 262 MB in all
    assert channel.head().status == 200
    seen = [-1, subject.steps()]
    while seen[-1] != seen[-2] or not seen[-1]:
        threading.Event().wait(0.2)
        seen.append(subject.steps())
    assert seen[-1] < 100
    grown = call(subject.worker.control, "GET", "/v2/health/live").json()["rss_bytes"] - rss
    assert grown < 32 * 2**20
    count = 0
    while data := channel.chunk():
        count += len(texts(data))
    assert count == 4000
    channel.close()


def test_steps_of_several_streams_take_turns_and_never_run_at_once(subject: Subject) -> None:
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda n: subject.ask(text=f"s{n}-", length=200), range(4)))
    assert [answer.json()["text"] for answer in answers] == [
        "".join(f"s{n}-{at} " for at in range(200)) for n in range(4)
    ]
    assert subject.most_inside() == 1


def test_unloading_waits_for_streams_and_ends_them_when_its_time_is_over(worker: WorkerProcess, tmp_path: Path) -> None:
    subject = Subject(worker, "leaves", tmp_path / "model")
    channel = subject.open(text="gate")
    assert channel.head().status == 200
    channel.chunk()
    with ThreadPoolExecutor(1) as pool:
        unloaded = pool.submit(worker.unload, subject.target, 20)
        _until(lambda: subject.entry["state"] == "UNLOADING")
        refused = subject.ask(text="b")
        assert (refused.status, refused.headers["x-msm-retriable"]) == (503, "true")
        assert not unloaded.done()
        for at in (1, 2):
            (subject.folder / f"go-{at}").touch()
        assert texts(channel.chunk() + channel.chunk()) == ["gate1 ", "gate2 "]
        assert channel.chunk() == b""
        assert unloaded.result().status == 200
    channel.close()
    assert subject.target not in worker.index()
    again = Subject(worker, "leaves", tmp_path / "again")
    channel = again.open(text="gate")
    assert channel.head().status == 200
    channel.chunk()
    assert worker.unload(again.target, 0.1).status == 200
    assert events(channel.chunk())[-1] == (
        "error", {"error": "version default/leaves/v1 was unloaded", "code": "not_loaded"},
    )  # fmt: skip
    (again.folder / "go-1").touch()
    _until(lambda: again.closed("gate"))
    channel.close()


def test_a_late_step_is_told_and_one_that_never_ends_makes_the_version_hung(
    worker: WorkerProcess, tmp_path: Path
) -> None:
    subject = Subject(worker, "hangs", tmp_path / "model", timeout_s=0.5)
    late = subject.ask("generate_stream", text="hang-first")
    error = {"error": "version default/hangs/v1 did not answer in time", "code": "deadline_exceeded"}
    assert (late.status, late.json()) == (504, error)
    _until(lambda: subject.entry["state"] == "HUNG")
    assert subject.ask(text="b").status == 503
    (subject.folder / "let-go").touch()
    _until(lambda: subject.entry["state"] == "READY")
    (subject.folder / "let-go").unlink()
    later = subject.ask("generate_stream", text="hang")
    assert events(later.body)[-1] == ("error", error)
    (subject.folder / "let-go").touch()
    _until(lambda: subject.entry["in_flight"] == 0)
    # The caller's own limit bounds all of it.
    bounded = subject.ask("generate_stream", text="patient", parameters={"timeout": 300_000})
    assert events(bounded.body)[-1] == ("error", error)


def test_so_many_streams_at_once_and_so_many_that_wait(worker: WorkerProcess, tmp_path: Path) -> None:
    limits = {"maxStreams": 1, "maxQueue": 1}
    subject = Subject(worker, "busy", tmp_path / "model", parameters=limits)
    first = subject.open(text="gate")
    assert first.head().status == 200
    second = subject.open(text="b")
    _until(lambda: subject.entry["queued"] == 1)
    refused = subject.ask(text="c")
    assert (refused.status, refused.json()["code"]) == (429, "queue_full")
    assert "retry-after" in refused.headers
    for at in (1, 2):
        (subject.folder / f"go-{at}").touch()
    assert second.head().status == 200
    first.close()
    second.close()
    # Who waits and goes gives its place to the next.
    (subject.folder / "go-1").unlink()
    first = subject.open(text="gate")
    assert first.head().status == 200
    waiting = subject.open(text="b")
    _until(lambda: subject.entry["queued"] == 1)
    waiting.close()
    _until(lambda: subject.entry["queued"] == 0)
    first.close()
    (subject.folder / "go-1").touch()
    assert subject.ask(text="d").status == 200


def _read_all(channel: Channel) -> None:
    channel.head()
    while channel.chunk():
        pass


def test_the_black_box_names_the_model_that_ends_the_process_within_a_step(short_folder: Path, tmp_path: Path) -> None:
    with running_worker(short_folder) as worker:
        subject = Subject(worker, "dies", tmp_path / "model")
        other = Subject(worker, "other", tmp_path / "other")
        waiting = other.open(text="large", length=100_000)  # open, but waiting for its reader: not to blame
        assert waiting.head().status == 200
        (subject.folder / "die-now").touch()
        channel = subject.open(text="die", length=5)
        with pytest.raises((ConnectionError, ValueError)):
            _read_all(channel)
        channel.close()
        worker.process.wait(10)
        assert subject.target in blackbox.read(worker.blackbox)
        waiting.close()


def test_a_worker_that_is_stopped_finishes_its_streams(short_folder: Path, tmp_path: Path) -> None:
    with running_worker(short_folder) as worker:
        subject = Subject(worker, "stops", tmp_path / "model")
        channel = subject.open(text="gate")
        assert channel.head().status == 200
        channel.chunk()
        with ThreadPoolExecutor(1) as pool:
            code = pool.submit(worker.stop)
            for at in (1, 2):
                (subject.folder / f"go-{at}").touch()
            assert texts(channel.chunk() + channel.chunk()) == ["gate1 ", "gate2 "]
            assert channel.chunk() == b""
            assert code.result() == 0
        channel.close()


# ---- ModelStreamInfer, as Envoy hands it on


def _message(text: str, *, length: int = 2, ident: str = "", model: str = "", **parameters: bool) -> bytes:
    message = pb.ModelInferRequest(model_name=model, id=ident)
    message.inputs.add(name="text", datatype="BYTES", shape=[1]).contents.bytes_contents.append(text.encode())
    message.inputs.add(name="length", datatype="INT32", shape=[1]).contents.int_contents.append(length)
    for name, value in parameters.items():
        message.parameters[name].bool_param = value
    return oip_grpc.frame(message.SerializeToString())


class Stream:
    """One call of ModelStreamInfer."""

    def __init__(self, subject: Subject, **headers: str) -> None:
        self.channel = Channel(subject.worker.data)
        lines = {"content-type": "application/grpc", "x-msm-target": subject.target, **headers}
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        self.channel.send(f"POST {STREAM_INFER} HTTP/1.1\r\ntransfer-encoding: chunked\r\n{head}\r\n".encode())

    def send(self, data: bytes) -> None:
        self.channel.send(b"%x\r\n%b\r\n" % (len(data), data))

    def end(self) -> None:
        self.channel.send(b"0\r\n\r\n")

    def answer(self) -> tuple[str, str, list[bytes], bool]:
        """Error, id, output and whether it is the last one, of the next answer."""
        (message,) = oip_stream.Deframer(10**6).feed(self.channel.chunk())
        return _told(message)

    def status(self) -> tuple[int, str]:
        assert self.channel.chunk() == b""
        trailers = self.channel.trailers()
        return int(trailers["grpc-status"]), trailers.get("grpc-message", "")


def _told(message: bytes) -> tuple[str, str, list[bytes], bool]:
    error, at = "", 0
    infer = pb.ModelInferResponse()
    while at < len(message):
        size, shift, start = 0, 0, at + 1
        while True:
            byte = message[start]
            size |= (byte & 0x7F) << shift
            shift, start = shift + 7, start + 1
            if byte < 0x80:
                break
        value = message[start : start + size]
        if message[at] == 0x0A:
            error = value.decode()
        else:
            infer = pb.ModelInferResponse.FromString(value)
        at = start + size
    outputs = [raw[4:] for raw in infer.raw_output_contents]
    return error, infer.id, outputs, infer.parameters["triton_final_response"].bool_param


def test_a_stream_of_messages_answers_each_with_its_steps(subject: Subject) -> None:
    stream = Stream(subject)
    assert stream.channel.head().status == 200  # before anything was sent
    stream.send(_message("a", ident="1"))
    assert [stream.answer() for _ in range(2)] == [("", "1", [b"a0 "], False), ("", "1", [b"a1 "], False)]
    stream.send(_message("b", ident="2", length=1, triton_enable_empty_final_response=True))
    assert [stream.answer() for _ in range(2)] == [("", "2", [b"b0 "], False), ("", "2", [], True)]
    both = _message("c", length=1) + _message("d", length=1)
    for at in range(0, len(both), 7):
        stream.send(both[at : at + 7])
    assert [stream.answer()[2] for _ in range(2)] == [[b"c0 "], [b"d0 "]]
    stream.end()
    assert stream.status() == (0, "")
    stream.channel.close()


def test_an_error_of_one_message_leaves_the_stream_open(subject: Subject) -> None:
    stream = Stream(subject)
    stream.channel.head()
    stream.send(_message("raise", ident="1", length=5))
    assert [stream.answer()[0] for _ in range(3)] == ["", "", "the model raised ValueError: on purpose"]
    stream.send(_message("a", ident="2", model="another"))
    error, ident, _, last = stream.answer()
    assert (error, ident, last) == (
        "the message names model 'another', but the stream is for 'generates'", "2", True,
    )  # fmt: skip
    stream.send(oip_grpc.frame(pb.ModelInferRequest(id="3").SerializeToString()))
    assert stream.answer()[0].startswith("inputs")
    stream.send(_message("a", length=1))
    assert stream.answer()[2] == [b"a0 "]
    stream.end()
    assert stream.status() == (0, "")
    stream.channel.close()


@pytest.mark.parametrize(
    ("data", "status", "sentence"),
    [
        (b"\x01\0\0\0\x01x", 12, "compressed messages are not offered"),
        (b"\x09\0\0\0\x01x", 13, "a gRPC frame begins with neither 0 nor 1"),
        (b"\0\xff\0\0\0", 8, "a message has 4278190080 bytes, the limit is 1000000"),
        (oip_grpc.frame(b"\xff\xff"), 13, "a message of the stream is not a ModelInferRequest"),
        (b"\0\0\0", 13, "the stream ended within a message"),
    ],
)
def test_what_is_no_message_ends_the_stream_with_its_status(
    subject: Subject, data: bytes, status: int, sentence: str
) -> None:
    stream = Stream(subject)
    stream.channel.head()
    stream.send(data)
    stream.end()
    code, message = stream.status()
    assert code == status
    assert message.startswith(sentence)
    assert subject.ask(text="a").status == 200
    stream.channel.close()


def test_broken_framing_breaks_a_stream_off_and_ends_what_runs_for_it(subject: Subject) -> None:
    stream = Stream(subject)
    stream.channel.head()
    stream.send(_message("patient"))
    stream.answer()
    stream.channel.send(b"zz\r\n")
    with pytest.raises((ConnectionError, ValueError)):
        stream.channel.chunk()
    _until(lambda: subject.closed("patient"), within_s=5)
    stream.channel.close()


def test_the_deadline_of_a_stream_and_a_version_that_is_not_here(subject: Subject) -> None:
    stream = Stream(subject, **{"grpc-timeout": "200m"})
    stream.channel.head()
    assert stream.status() == (4, "the stream did not end in time")
    stream.channel.close()
    absent = Channel(subject.worker.data)
    absent.send(
        f"POST {STREAM_INFER} HTTP/1.1\r\ncontent-type: application/grpc\r\nx-msm-target: default/no/v1\r\n"
        "transfer-encoding: chunked\r\n\r\n".encode()
    )
    answer = absent.receive()
    assert answer.grpc[0] == 14
    assert answer.headers["x-msm-retriable"] == "true"
    absent.close()
