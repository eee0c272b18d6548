"""Where HTTP messages end, however the bytes are cut."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msm.gateway.answers import error_answer
from msm.gateway.messages import AnswerReader, RequestReader, raw_answer
from msm.kit.errors import InputTooLarge, InvalidInput, LoadFailed, Unavailable

PLAIN = b"POST /x HTTP/1.1\r\nHost: h\r\nX-MSM-Target: a/b/c\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = (
    b"POST /x HTTP/1.1\r\nhost: h\r\ncontent-type: application/grpc\r\ntransfer-encoding: chunked\r\n\r\n"
    b"3\r\nabc\r\n0\r\n\r\n"
)
ANSWER = b"HTTP/1.1 200 OK\r\nConnection: keep-alive\r\ncontent-length: 5\r\nx-a: b\r\n\r\nhello"
TRAILERS = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/grpc\r\ntransfer-encoding: chunked\r\n\r\n"
    b"5\r\nhello\r\n0\r\ngrpc-status: 0\r\n\r\n"
)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % len(data) for cut in cuts), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges) if a < b]


cuts = st.lists(st.integers(0, 1000), max_size=8)


@given(cuts, st.sampled_from([PLAIN, CHUNKED]))
def test_a_request_is_read_to_its_end_and_kept_as_it_came(cuts, sent):
    reader = RequestReader(10_000)
    for piece in pieces(sent, cuts):
        assert not reader.complete
        reader.feed(piece)
    assert reader.complete
    assert reader.request.raw == sent
    assert reader.request.method == "POST"
    assert reader.request.grpc is (sent is CHUNKED)


def test_headers_are_found_in_any_case():
    reader = RequestReader(10_000)
    reader.feed(PLAIN)
    assert reader.request.headers["x-msm-target"] == "a/b/c"


def test_a_request_over_the_limit_is_refused():
    with pytest.raises(InputTooLarge, match="larger than the 50 bytes"):
        RequestReader(50).feed(PLAIN)


def test_what_is_not_http_is_refused():
    with pytest.raises(InvalidInput):
        RequestReader(1000).feed(b"\x00\x01\x02\r\n\r\n")
    with pytest.raises(Unavailable):
        AnswerReader("GET").feed(b"nonsense\r\n\r\n")


@given(cuts, st.sampled_from([ANSWER, TRAILERS]))
def test_an_answer_passes_through_but_for_its_connection_header(cuts, sent):
    reader, out = AnswerReader("POST"), b""
    for piece in pieces(sent, cuts):
        assert not reader.complete
        out += reader.feed(piece)
    assert reader.complete
    line, rest = sent.split(b"\r\n", 1)
    assert out == line + b"\r\nconnection: close\r\n" + rest.replace(b"Connection: keep-alive\r\n", b"")


def test_the_answer_to_head_ends_with_its_head():
    reader = AnswerReader("HEAD")
    reader.feed(b"HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n")
    assert reader.complete


def test_an_interim_answer_is_not_the_end():
    reader = AnswerReader("POST")
    reader.feed(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert not reader.complete
    reader.feed(ANSWER)
    assert reader.complete


@pytest.mark.parametrize("grpc", [False, True])
def test_an_error_is_a_whole_answer(grpc):
    raw = raw_answer(error_answer(LoadFailed("100 % “bad”")), grpc_caller=grpc)
    reader = AnswerReader("POST")
    reader.feed(raw)
    assert reader.complete
    assert b"connection: close\r\n" in raw
    if grpc:
        assert raw.startswith(b"HTTP/1.1 200 ")
        assert b"grpc-status: 14\r\ngrpc-message: 100 %25 %E2%80%9Cbad%E2%80%9D\r\n" in raw
    else:
        assert raw.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 1\r\n" in raw
