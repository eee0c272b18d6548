"""HTTP, REST and binary tensors of the catalogue (3.1 to 3.3), through Envoy and straight to the worker."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.badinput.bodies import request_of
from tests.badinput.cases import HttpCase, read
from tests.badinput.checks import as_expected, harmless, rest_error
from tests.badinput.mesh import Doorway, Subject, Worker
from tests.badinput.wire import Answer

FILES = ("http", "rest", "binary", "openai", "forms")
ALL = [case for name in FILES for case in read(name, HttpCase)]


def through(door: str) -> Any:
    """Every quick case that goes through that door."""
    cases = [case for case in ALL if door in case.through and case.pace_s is None]
    return pytest.mark.parametrize("case", cases, ids=lambda case: f"{case.id} {case.title}")


@through("gateway")
def test_bad_input_gets_its_answer_through_envoy_and_changes_nothing(case: HttpCase, subject: Subject):
    run(case, subject.gateway)
    subject.is_unchanged()


@through("worker")
def test_bad_input_gets_its_answer_from_the_worker_itself(case: HttpCase, worker: Worker):
    run(case, worker.data)


def run(case: HttpCase, door: Doorway) -> None:
    """Send the case, judge the answer, and then see that a valid request is served: on the same connection if it
    stays open, else on another."""
    sent = request_of(case, door.door)
    with door.line() as line:
        answer = line.ask(sent, method=case.method)
        judge(case, answer, door, sent)
        if case.closes:
            assert not answer.reusable, "the connection stays open"
        door.serves(line if answer.reusable and b" HTTP/1.0\r\n" not in sent else None)


def judge(case: HttpCase, answer: Answer, door: Doorway, sent: bytes) -> None:
    """Everything about one answer."""
    right = case.expected(door.door)
    as_expected(answer, right)
    harmless(answer, sent)
    if right is case or not case.answer:
        for name, pattern in case.answer.items():
            assert re.search(pattern, answer.header(name) or ""), f"{name}: {answer.text[:500]}"
    if answer.status == 200 and case.outputs:
        given = {output["name"]: output["data"] for output in json.loads(answer.body)["outputs"]}
        assert given == case.outputs


def test_a_slow_head_is_ended_in_time(subject: Subject):
    (case,) = [case for case in ALL if case.pace_s is not None]
    answer = subject.slow.result(timeout=20)
    as_expected(answer, case)
    rest_error(answer)
    assert 8 <= answer.took_s <= 14
    subject.gateway.serves()
