"""The HTTP/1.1 reader gives the same requests however the bytes are cut, and refuses what can be read in two ways."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msm.http.body import ChunkedBody, single_chunk
from msm.http.head import headers_known, parse
from msm.http.request import Request, json_answer, plain_refusal
from msm.http.server import Connection, Listener
from msm.kit.errors import InputTooLarge, InvalidInput


class Wire(asyncio.Transport):
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written.append(bytes(data))

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def is_reading(self) -> bool:
        return True


Seen = tuple[bytes, bytes, bytes]


def serve(pieces: list[bytes], *, max_body: int = 10_000) -> tuple[list[Seen], Wire]:
    """Feed a connection; what the handler saw, and the wire with one answer each."""
    seen: list[Seen] = []

    def handle(request: Request) -> None:
        seen.append((request.method, request.path, request.body))
        request.respond(json_answer(200, {}))

    async def run() -> Wire:
        connection, wire = Connection(Listener(handle, plain_refusal, max_body)), Wire()
        connection.connection_made(wire)
        for piece in pieces:
            connection.data_received(piece)
        return wire

    return seen, asyncio.run(run())


def chunked(body: bytes, sizes: list[int]) -> bytes:
    parts, position = [], 0
    for size in sizes:
        piece = body[position : position + size]
        position += size
        if piece:
            parts.append(b"%x;ext=1\r\n%b\r\n" % (len(piece), piece))
    rest = body[position:]
    if rest:
        parts.append(b"%X\r\n%b\r\n" % (len(rest), rest))
    return b"".join(parts) + b"0\r\nx-trailer: y\r\n\r\n"


@st.composite
def requests(draw: st.DrawFn) -> tuple[bytes, Seen]:
    body = draw(st.binary(max_size=300))
    path = draw(st.sampled_from([b"/", b"/v2/models/x/infer", b"/a?b=c"]))
    name = draw(st.sampled_from([b"content-length", b"Content-Length", b"CONTENT-LENGTH"]))
    if draw(st.booleans()):
        sizes = draw(st.lists(st.integers(1, 100), max_size=5))
        return b"POST %b HTTP/1.1\r\nTransfer-Encoding: Chunked\r\n\r\n%b" % (path, chunked(body, sizes)), (
            b"POST", path, body,
        )  # fmt: skip
    return b"POST %b HTTP/1.1\r\nhost: a\r\n%b:%d \r\n\r\n%b" % (path, name, len(body), body), (b"POST", path, body)


@given(st.lists(requests(), min_size=1, max_size=4), st.lists(st.integers(1, 60), max_size=40))
def test_requests_are_the_same_however_the_bytes_are_cut(cases: list[tuple[bytes, Seen]], cuts: list[int]) -> None:
    stream = b"".join(data for data, _ in cases)
    pieces, position = [], 0
    for cut in cuts:
        pieces.append(stream[position : position + cut])
        position += cut
    seen, wire = serve([piece for piece in [*pieces, stream[position:]] if piece])
    assert seen == [expected for _, expected in cases]
    assert len(wire.written) == len(cases)


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"POST / HTTP/1.1\r\ncontent-length: 2\r\ncontent-length: 2\r\n\r\n{}", 400),
        (b"POST / HTTP/1.1\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 415),
        (b"POST / HTTP/1.1\r\ncontent-length : 2\r\n\r\n{}", 400),
        (b"POST / HTTP/1.1\r\ntransfer-encoding\t: chunked\r\n\r\n0\r\n\r\n", 400),
        *((b"POST / HTTP/1.1\r\ncontent-length: %b\r\n\r\n{}" % value, 400)
          for value in (b"-1", b"+2", b"0x2", b"2, 2", b"2x", b"", b"9" * 20)),
        (b"POST / HTTP/1.1\r\ncontent-length: 10001\r\n\r\n", 413),
        (b"POST / HTTP/1.1\r\nx: a\r\n b\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nx: a\0b\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nx: a\nb\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nx: a\rb\r\n\r\n", 400),
        (b"POST / HTTP/2.0\r\n\r\n", 400),
        (b"POST /\r\n\r\n", 400),
        (b"G{T / HTTP/1.1\r\n\r\n", 400),
        (b"OPTIONS * HTTP/1.1\r\n\r\n", 400),
        (b"GET /" + b"a" * 70_000, 413),
        (b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0x2\r\n{}\r\n", 400),
        (b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n1\r\n{}\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n2\n{}\n0\n\n", 400),
        (b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nffffffffffff\r\n", 413),
    ],
)  # fmt: skip
def test_what_can_be_read_in_two_ways_is_refused_and_the_connection_not_used_again(head: bytes, status: int) -> None:
    seen, wire = serve([head, b"GET /smuggled HTTP/1.1\r\n\r\n"])
    assert seen == []
    assert len(wire.written) == 1
    assert wire.written[0].startswith(b"HTTP/1.1 %d " % status)
    assert b"\r\nconnection: close\r\n" in wire.written[0]


def test_headers_are_known_by_their_whole_name_in_any_case_and_keep_their_value() -> None:
    head = parse(
        b"POST /a HTTP/1.1\r\nInference-Header-Content-Length: 7\r\nX-MSM-Target:  a/B/c \r\n"
        b"x-b: x-msm-target: d/e/f\r\nx-content-type: no\r\ncontent-length:0\r\nhost:\r\n",
        headers_known("x-msm-target", "inference-header-content-length"),
    )
    assert (head.method, head.path, head.last) == (b"POST", b"/a", False)
    assert head.headers == {
        b"inference-header-content-length": b"7", b"x-msm-target": b"a/B/c", b"content-length": b"0",
    }  # fmt: skip


@given(st.lists(st.tuples(st.sampled_from(["/a", "/b"]), st.booleans(), st.integers(0, 3)), min_size=1, max_size=12))
def test_heads_that_repeat_on_a_connection_give_what_they_say_each_time(calls: list[tuple[str, bool, int]]) -> None:
    pieces = []
    for path, in_chunks, size in calls:
        framing = "transfer-encoding: chunked" if in_chunks else f"content-length: {size}"
        body = chunked(b"x" * size, [size]) if in_chunks else b"x" * size
        pieces.append(f"POST {path} HTTP/1.1\r\n{framing}\r\n\r\n".encode() + body)
    seen, wire = serve(pieces)
    assert seen == [(b"POST", path.encode(), b"x" * size) for path, _, size in calls]
    assert len(wire.written) == len(calls)


def test_a_wrong_head_after_good_ones_on_its_connection_is_refused() -> None:
    good = b"POST / HTTP/1.1\r\ncontent-length: 1\r\n\r\nx"
    bad = b"POST / HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nx"
    seen, wire = serve([good, good, bad, good])
    assert len(seen) == 2
    assert wire.written[2].startswith(b"HTTP/1.1 400 ")
    assert len(wire.written) == 3


def test_a_client_that_waits_for_permission_to_send_gets_it() -> None:
    head = b"POST / HTTP/1.1\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n"
    seen, wire = serve([head, b"{}"])
    assert wire.written[0] == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert seen == [(b"POST", b"/", b"{}")]


@pytest.mark.parametrize("head", [b"GET / HTTP/1.0\r\n\r\n", b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n"])
def test_a_connection_that_is_not_to_be_kept_is_closed_after_its_answer(head: bytes) -> None:
    seen, wire = serve([head])
    assert len(seen) == 1
    assert wire.closed


async def test_a_client_that_goes_marks_its_request_and_cancels_its_task() -> None:
    held: list[Request] = []
    listener = Listener(held.append, plain_refusal, 100)
    connection, wire = listener.connect(), Wire()
    connection.connection_made(wire)
    connection.data_received(b"GET / HTTP/1.1\r\n\r\n")
    request = held[0]
    request.task = cast("asyncio.Task[None]", asyncio.ensure_future(asyncio.Event().wait()))
    connection.connection_lost(None)
    assert request.done
    with pytest.raises(asyncio.CancelledError):
        await request.task
    request.respond(b"late")
    assert wire.written == []
    assert listener.connections == set()


async def test_pipelined_requests_wait_for_the_answer_before_them() -> None:
    held: list[Request] = []
    connection, wire = Listener(held.append, plain_refusal, 100).connect(), Wire()
    connection.connection_made(wire)
    connection.data_received(b"GET /1 HTTP/1.1\r\n\r\nGET /2 HTTP/1.1\r\n\r\n")
    connection.data_received(b"GET /3 HTTP/1.1\r\n\r\n")
    assert [request.path for request in held] == [b"/1"]
    for count in (1, 2, 3):
        held[-1].respond(b"answer")
        assert len(wire.written) == count
    assert [request.path for request in held] == [b"/1", b"/2", b"/3"]


async def test_stopping_closes_idle_connections_now_and_busy_ones_after_their_answer() -> None:
    held: list[Request] = []
    listener = Listener(held.append, plain_refusal, 100)
    wires = [Wire(), Wire()]
    connections = [listener.connect() for _ in wires]
    for connection, wire in zip(connections, wires, strict=True):
        connection.connection_made(wire)
    connections[1].data_received(b"GET / HTTP/1.1\r\n\r\n")
    listener.stop()
    assert [wire.closed for wire in wires] == [True, False]
    held[0].respond(b"answer")
    assert wires[1].closed


def test_a_body_in_too_many_tiny_chunks_is_refused_before_it_costs() -> None:
    with pytest.raises(InvalidInput) as refused:
        ChunkedBody(10**9).feed(b"1\r\nx\r\n" * 20_000)
    assert refused.value.reason == "too_many_chunks"


@pytest.mark.parametrize("data", [b"1\r\n11\r\n", b"5;" + b"e" * 2000, b"0\r\n" + b"t" * 2000])
def test_broken_lines_between_chunks_are_refused(data: bytes) -> None:
    with pytest.raises((InvalidInput, InputTooLarge)):
        ChunkedBody(100).feed(data)


@given(st.binary(min_size=1, max_size=50), st.binary(max_size=3))
def test_the_short_cut_for_one_chunk_agrees_with_the_long_way(body: bytes, rest: bytes) -> None:
    data = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) + rest
    whole = single_chunk(data, 0, 1000)
    reader = ChunkedBody(1000)
    used = reader.feed(data)
    assert used == len(data) - len(rest)
    assert reader.value() == body
    assert whole == (None if rest else body)
    assert single_chunk(data, 0, len(body) - 1) is None
