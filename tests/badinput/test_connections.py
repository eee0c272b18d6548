"""Connections used badly (3.1: T15, T18, T19): many of them, pipelined ones, and clients that do not read."""

from __future__ import annotations

import contextlib
import json
import time
from itertools import chain, repeat

from tests.badinput.bodies import infer_text
from tests.badinput.checks import rest_error
from tests.badinput.mesh import GOOD_PATH, JSON, Doorway, Subject, Worker
from tests.badinput.wire import Line, request

BAD = infer_text("perceptron", [{"data": "[1]"}]).encode()


def pipelined(door: Doorway) -> None:
    """100 requests in one write, every seventh bad: a hundred answers in the same order."""
    bodies = [BAD if i % 7 == 0 else infer_text("perceptron", also=f'"id":"{i}"').encode() for i in range(100)]
    headers = [JSON, *door.headers]
    with door.line() as line:
        first = line.ask(b"".join(request("POST", GOOD_PATH, headers, body) for body in bodies))
        answers = [first] + [line.ask(b"") for _ in range(99)]
    assert [answer.status for answer in answers] == [400 if i % 7 == 0 else 200 for i in range(100)]
    told = [json.loads(answer.body).get("id") for answer in answers]
    assert told == [None if i % 7 == 0 else str(i) for i in range(100)]


def test_pipelined_requests_are_answered_in_order_by_envoy(subject: Subject):
    pipelined(subject.gateway)


def test_pipelined_requests_are_answered_in_order_by_the_worker(worker: Worker):
    pipelined(worker.data)


def framing_error(door: Doorway) -> None:
    """What stands behind a framing error is never taken for a request."""
    smuggled = request("POST", GOOD_PATH, [JSON, *door.headers], BAD)
    head = b"POST %b HTTP/1.1\r\nhost: mesh\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"
    with door.line() as line:
        answer = line.ask(door.good() + head % GOOD_PATH.encode() + smuggled)
        assert answer.status == 200
        assert line.ask(b"").status == 400
        assert line.ask(b"").status == 0, "something was answered behind a framing error"
    door.serves()


def test_nothing_behind_a_framing_error_is_answered_by_envoy(subject: Subject):
    framing_error(subject.gateway)


def test_nothing_behind_a_framing_error_is_answered_by_the_worker(worker: Worker):
    framing_error(worker.data)


def test_a_body_of_unknown_length_is_ended_at_the_limit(subject: Subject):
    """T12: 64 MiB are allowed; this one says nothing of its size and would go on."""
    head = b"POST %b HTTP/1.1\r\nhost: mesh\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
    part = b"100000\r\n" + b" " * (1 << 20) + b"\r\n"
    with subject.gateway.line() as line:
        answer = line.ask_paced(chain([head % GOOD_PATH.encode()], repeat(part, 300)), every_s=0, within_s=30)
    assert answer.status == 413, answer.text[:500]
    assert "67108864" in rest_error(answer)["error"]
    subject.gateway.serves()


def test_500_idle_connections_hold_up_nobody(subject: Subject):
    with contextlib.ExitStack() as stack:
        for _ in range(500):
            stack.enter_context(subject.gateway.line())
        began = time.monotonic()
        for _ in range(20):
            subject.gateway.serves()
        assert time.monotonic() - began < 10


def test_clients_that_never_read_hold_up_nobody(subject: Subject, worker: Worker):
    for door in (subject.gateway, worker.data):
        many = door.good() * 2000
        with contextlib.ExitStack() as stack:
            for _ in range(10):
                line = stack.enter_context(Line(door.address, receive_buffer=4096))
                while line.push(many):
                    pass
            for _ in range(20):
                door.serves()
        door.serves()


def test_clients_that_leave_in_the_middle_hold_up_nobody(subject: Subject, worker: Worker):
    for door in (subject.gateway, worker.data):
        whole = door.good()
        for cut in range(1, len(whole), 7):
            with door.line() as line:
                line.push(whole[:cut])
        door.serves()


def test_a_client_that_sends_nothing_more_of_its_body_holds_up_nobody(subject: Subject, worker: Worker):
    for door in (subject.gateway, worker.data):
        with contextlib.ExitStack() as stack:
            for _ in range(50):
                stack.enter_context(door.line()).push(door.good()[:-10])
            for _ in range(20):
                door.serves()
