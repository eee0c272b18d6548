"""Answers in chunks and bodies read while they come: order, back-pressure, and what breaks them."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from msm.http.head import Head
from msm.http.request import Request, plain_refusal
from msm.http.server import Connection, Listener
from tests.unit.http.test_server import Wire, chunked

HEAD = b"HTTP/1.1 200 OK\r\n"
STREAM = b"POST /stream HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n"


class PausedWire(Wire):
    """Also notes whether reading is paused."""

    def __init__(self) -> None:
        super().__init__()
        self.reading, self.aborted = True, False

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def is_reading(self) -> bool:
        return self.reading

    def abort(self) -> None:
        self.aborted = True


def streamed(head: Head) -> bool:
    return head.path == b"/stream"


def connected() -> tuple[Connection, PausedWire, list[Request]]:
    held: list[Request] = []
    connection, wire = Listener(held.append, plain_refusal, 100, streamed=streamed).connect(), PausedWire()
    connection.connection_made(wire)
    return connection, wire, held


async def test_an_answer_in_chunks_and_then_the_next_request() -> None:
    connection, wire, held = connected()
    connection.data_received(b"GET /a HTTP/1.1\r\n\r\nGET /b HTTP/1.1\r\n\r\n")
    request = held[0]
    request.start(HEAD)
    request.write(b"one")
    request.write(b"")  # an empty chunk would end the body
    request.finish(b"grpc-status: 0\r\n")
    assert b"".join(wire.written) == (
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n0\r\ngrpc-status: 0\r\n\r\n"
    )
    assert request.done
    assert [seen.path for seen in held] == [b"/a", b"/b"]
    request.write(b"late")
    request.finish()
    assert len(wire.written) == 3


async def test_a_writer_waits_for_its_reader_and_is_let_go_with_it() -> None:
    connection, _, held = connected()
    connection.data_received(b"GET /a HTTP/1.1\r\n\r\n")
    request = held[0]
    request.start(HEAD)
    await request.drained()
    connection.pause_writing()
    waits = asyncio.ensure_future(request.drained())
    await asyncio.sleep(0)
    assert not waits.done()
    connection.resume_writing()
    await waits
    connection.pause_writing()
    waits = asyncio.ensure_future(request.drained())
    await asyncio.sleep(0)
    connection.connection_lost(None)
    await waits
    assert request.done


@given(st.binary(max_size=90), st.lists(st.integers(1, 30), max_size=6), st.lists(st.integers(1, 20), max_size=30))
def test_a_body_read_while_it_comes_is_the_body(body: bytes, sizes: list[int], cuts: list[int]) -> None:
    async def run() -> None:
        connection, _, held = connected()
        data, at = STREAM + chunked(body, sizes), 0
        found = b""
        for cut in [*cuts, len(data)]:
            if data[at : at + cut]:
                connection.data_received(data[at : at + cut])
            at += cut
        (request,) = held
        assert request.incoming is not None
        while piece := await request.incoming.read():
            found += piece
        assert found == body
        request.respond(b"answer")
        connection.data_received(b"GET /b HTTP/1.1\r\n\r\n")
        assert len(held) == 2

    asyncio.run(run())


async def test_who_does_not_read_makes_the_sender_wait() -> None:
    connection, wire, held = connected()
    connection.data_received(STREAM)
    incoming = held[0].incoming
    assert incoming is not None
    sent = 0
    while wire.reading:
        connection.data_received(b"40\r\n" + b"x" * 64 + b"\r\n")
        sent += 64
    assert sent <= 300_000
    assert len(await incoming.read()) == sent
    assert wire.reading


async def test_an_answer_before_the_end_of_a_streamed_body_ends_the_connection() -> None:
    connection, wire, held = connected()
    connection.data_received(STREAM + b"3\r\nabc\r\n")
    held[0].respond(b"answer")
    connection.data_received(b"3\r\nabc\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\n\r\n")
    assert [request.path for request in held] == [b"/stream"]
    assert wire.written == [b"answer"]


async def test_broken_framing_cancels_what_runs_and_breaks_off_what_has_begun() -> None:
    connection, wire, held = connected()
    connection.data_received(STREAM)
    request = held[0]
    request.task = asyncio.ensure_future(asyncio.Event().wait())  # type: ignore[assignment]
    request.start(HEAD)
    connection.data_received(b"zz\r\n")
    assert wire.aborted
    assert request.done
    await asyncio.wait([request.task])
    assert request.task.cancelled()
