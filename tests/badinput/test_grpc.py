"""gRPC of the catalogue (3.4), through Envoy and straight to the worker."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.badinput.cases import GrpcCase, read
from tests.badinput.checks import MOST_SENTENCE, harmless
from tests.badinput.grpc_calls import INFER, NO_LIMITS, Told, frame_of, message_of, over_http1, over_http2
from tests.badinput.mesh import Subject, Worker

CASES = read("grpc", GrpcCase)
GOOD = GrpcCase(id="good", title="a valid call", status="OK")


def through(door: str) -> Any:
    cases = [case for case in CASES if door in case.through]
    return pytest.mark.parametrize("case", cases, ids=lambda case: f"{case.id} {case.title}")


@pytest.fixture(scope="module")
def channel(subject: Subject) -> Iterator[grpc.Channel]:
    """One connection for all calls: it must live through every one of them."""
    with grpc.insecure_channel(subject.mesh.gateway.removeprefix("http://"), options=NO_LIMITS) as opened:
        yield opened


@through("gateway")
def test_a_bad_call_gets_its_status_through_envoy_and_changes_nothing(
    case: GrpcCase, subject: Subject, channel: grpc.Channel, tmp_path: Path
):
    judge(case, over_http2(case, channel, subject.gateway, tmp_path), case.statuses("gateway"))
    channel.unary_unary(INFER)(message_of(GOOD), timeout=10)
    subject.is_unchanged()


@through("worker")
def test_a_bad_call_gets_its_status_from_the_worker_itself(case: GrpcCase, worker: Worker):
    judge(case, over_http1(case, worker.data), case.statuses("worker"))
    assert over_http1(GOOD, worker.data).status == "OK"


def judge(case: GrpcCase, told: Told, right: list[str]) -> None:
    """Status and message are right, and the message is one sentence that holds nothing of the inside."""
    assert told.status in right, f"{told.status}, right is {right}: {told.message[:500]}"
    if told.status != "OK":
        assert 0 < len(told.message) <= MOST_SENTENCE, told.message[:500]
        assert told.message.isprintable(), told.message[:500]
        assert re.search(case.message, told.message, re.DOTALL), f"{case.message!r} is not in {told.message!r}"
    harmless(told.answer, frame_of(case))
