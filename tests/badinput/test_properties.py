"""Whatever is sent to a warm model: never a 5xx, always an answer in the caller's protocol, from the same process."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf.message import DecodeError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from msm.runtime.protocols import oip_pb2 as pb
from tests.badinput.bodies import GOOD
from tests.badinput.checks import harmless, rest_error
from tests.badinput.grpc_calls import CODES, message_of
from tests.badinput.mesh import GOOD_PATH, JSON, Doorway, Subject, Worker
from tests.badinput.test_grpc import GOOD as GOOD_CALL
from tests.badinput.wire import Line, request

EXAMPLES = int(os.environ.get("MSM_EXAMPLES", "200"))  # more of them for a long search
BUDGET = settings(
    max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
OUR_FAULT = {"UNKNOWN", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}
GRPC = ("content-type", "application/grpc")

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
anything = st.recursive(
    scalars | st.sampled_from(["x", "FP32", "BYTES", "inputs", [1, 4], [-1], [2**62, 4]]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
tensors = st.fixed_dictionaries(
    {},
    optional={
        "name": st.just("x") | anything,
        "shape": st.lists(st.integers(-(2**70), 2**70), max_size=5) | anything,
        "datatype": st.sampled_from(["FP32", "FP64", "INT64", "BYTES", "BOOL", "BF16", "FP16"]) | anything,
        "data": st.lists(scalars, max_size=8) | anything,
        "parameters": st.fixed_dictionaries({}, optional={"binary_data_size": anything}) | anything,
    },
)
requests = st.fixed_dictionaries(
    {},
    optional={
        "inputs": st.lists(tensors, max_size=3) | anything,
        "outputs": st.lists(st.fixed_dictionaries({}, optional={"name": anything, "parameters": anything})) | anything,
        "id": anything,
        "parameters": st.dictionaries(st.sampled_from(["timeout", "priority", "binary_data_output"]), anything)
        | anything,
    },
)


@st.composite
def mutated(draw: st.DrawFn, valid: bytes) -> bytes:
    """A valid body with some of its bytes changed, left out, doubled or put elsewhere."""
    body = bytearray(valid)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(body) - 1, 0)))
        end = min(len(body), at + draw(st.integers(0, 8)))
        piece = draw(
            st.binary(max_size=6)
            | st.just(bytes(body[at:end]) * 3)
            | st.sampled_from([b"1e999", b"-1", b"null", b"\\u0000", b'"', b"[[", b"}", b"\xff\xff\xff\xff\x0f"])
        )
        body[at:end] = piece
    return bytes(body)


@pytest.fixture
def places(subject: Subject, worker: Worker) -> Iterator[tuple[Doorway, Doorway]]:
    """Both doors; afterwards the processes behind them are still the same and serve."""
    before = subject.pids(), worker.pid()
    yield subject.gateway, worker.data
    assert (subject.pids(), worker.pid()) == before
    subject.gateway.serves()
    worker.data.serves()


def ask_rest(doors: tuple[Doorway, ...], body: bytes, headers: tuple[tuple[str, str], ...] = (JSON,)) -> None:
    for door in doors:
        sent = request("POST", GOOD_PATH, [*headers, *door.headers], body)
        with door.line() as line:
            answer = line.ask(sent)
        assert answer.status == 200 or 400 <= answer.status < 500, answer.text[:500]
        if answer.status == 200:
            json.loads(answer.body)
        else:
            rest_error(answer)
        harmless(answer, sent)


@BUDGET
@given(body=st.binary(max_size=300))
def test_random_bytes_are_the_callers_mistake(places: tuple[Doorway, Doorway], body: bytes):
    ask_rest(places, body)


@BUDGET
@given(value=requests | anything)
def test_random_json_is_the_callers_mistake_or_right(places: tuple[Doorway, Doorway], value: Any):
    ask_rest(places, json.dumps(value).encode())


@BUDGET
@given(body=mutated(GOOD))
def test_a_mutated_request_is_the_callers_mistake_or_right(places: tuple[Doorway, Doorway], body: bytes):
    ask_rest(places, body)


BINARY_HEAD = b'{"inputs":[{"name":"x","shape":[1,4],"datatype":"FP32","parameters":{"binary_data_size":16}}]}'


@BUDGET
@given(body=mutated(BINARY_HEAD + bytes(16)), length=st.integers(-2, 200) | st.text("0123456789+-ex ", max_size=6))
def test_a_mutated_binary_request_is_the_callers_mistake_or_right(
    places: tuple[Doorway, Doorway], body: bytes, length: int | str
):
    header = ("inference-header-content-length", str(length))
    ask_rest(places, body, (("content-type", "application/octet-stream"), header))


@BUDGET
@given(
    message=mutated(message_of(GOOD_CALL)),
    framed=st.booleans(),
)
def test_a_mutated_message_is_the_callers_mistake_or_right(worker: Worker, message: bytes, framed: bool):
    """Straight to the worker. INTERNAL is what gRPC asks for when a message cannot be read at all, and only then."""
    before = worker.pid()
    body = b"\0" + len(message).to_bytes(4, "big") + message if framed else message
    with Line(worker.data.address) as line:
        answer = line.ask(
            request("POST", "/inference.GRPCInferenceService/ModelInfer", [GRPC, *worker.data.headers], body)
        )
    status = CODES[int(answer.header("grpc-status") or "2")]
    if status in OUR_FAULT:
        assert not framed or not _is_message(message), answer.text[:500]
    harmless(answer, body)
    assert worker.pid() == before


def _is_message(data: bytes) -> bool:
    try:
        pb.ModelInferRequest.FromString(data)
    except DecodeError:
        return False
    return True
