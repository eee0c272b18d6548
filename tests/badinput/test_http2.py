"""HTTP/2 used as a weapon (3.1, T16 and T17): the connection is ended or refused, and nobody else notices.

The frames are made by hand (RFC 9113); headers are literals without indexing and without Huffman coding (RFC 7541), so
that no library is in the way of what must be wrong.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from tests.badinput.mesh import Subject

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, END_HEADERS = 1, 4
GIVE_UP_S = 8.0
BLOCK_LITERAL = (
    (":method", "POST"), (":scheme", "http"), (":authority", "mesh"), (":path", "/v2/models/perceptron/infer"),
    ("content-type", "application/json"),
)  # fmt: skip


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def integer(value: int, prefix: int, first: int = 0) -> bytes:
    """An HPACK integer with a prefix of that many bits (RFC 7541, section 5.1)."""
    most = (1 << prefix) - 1
    if value < most:
        return bytes([first | value])
    out, value = bytearray([first | most]), value - most
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def literal(name: str, value: str, *, index: bool = False) -> bytes:
    text = integer(len(name), 7) + name.encode() + integer(len(value), 7) + value.encode()
    return (b"\x40" if index else b"\x00") + text


def block(*more: tuple[str, str], path: str | None = None) -> bytes:
    fields = [(name, path if name == ":path" and path is not None else value) for name, value in BLOCK_LITERAL]
    return b"".join(literal(name, value) for name, value in (*fields, *more))


class Attacker:
    """A connection that sends frames and looks only at the kinds of the frames that come back."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._socket = socket.create_connection(address, timeout=5)
        self._socket.sendall(PREFACE + frame(SETTINGS, 0, 0))
        self._read = b""
        self.kinds: list[int] = []
        self.closed = False

    def send(self, data: bytes) -> None:
        """Send all of it, as far as it is taken; reads meanwhile."""
        rest = memoryview(data)
        deadline = time.monotonic() + GIVE_UP_S
        while rest and not self.closed and time.monotonic() < deadline:
            self._socket.settimeout(0.05)
            try:
                rest = rest[self._socket.send(rest[:65536]) :]
            except TimeoutError:
                self.read(0.05)
            except OSError:
                self.closed = True

    def pour(self, data: bytes) -> None:
        """Send without reading what comes back, until it is refused."""
        self._socket.settimeout(5)
        with contextlib.suppress(OSError):
            self._socket.sendall(data)

    def read(self, wait_s: float) -> None:
        """Take in what comes within that time."""
        self._socket.settimeout(wait_s)
        try:
            data = self._socket.recv(1 << 18)
        except TimeoutError:
            return
        except OSError:
            data = b""
        if not data:
            self.closed = True
            return
        self._read += data
        while len(self._read) >= 9 and len(self._read) >= 9 + int.from_bytes(self._read[:3], "big"):
            self.kinds.append(self._read[3])
            self._read = self._read[9 + int.from_bytes(self._read[:3], "big") :]

    def is_ended(self) -> bool:
        """Whether the server ends the connection, by GOAWAY or by closing it, within the time."""
        return self._sees(lambda: self.closed or GOAWAY in self.kinds)

    def sees(self, *kinds: int) -> bool:
        """Whether a frame of one of these kinds comes within the time."""
        return self._sees(lambda: self.closed or bool(set(kinds) & set(self.kinds)))

    def _sees(self, condition: Callable[[], bool]) -> bool:
        deadline = time.monotonic() + GIVE_UP_S
        while not condition() and time.monotonic() < deadline:
            self.read(0.05)
        return condition()

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def attacker(subject: Subject) -> Iterator[Attacker]:
    """An attacker; afterwards everybody else is served by the same processes."""
    before = subject.pids()
    address = subject.gateway.address
    assert isinstance(address, tuple)
    with contextlib.closing(Attacker(address)) as started:
        yield started
        subject.gateway.serves()
    subject.gateway.serves()
    assert subject.pids() == before


def streams(count: int, make: Callable[[int], bytes]) -> bytes:
    return b"".join(make(1 + 2 * number) for number in range(count))


def test_rapid_reset_ends_the_connection(attacker: Attacker):
    attacker.send(
        streams(3000, lambda i: frame(HEADERS, END_HEADERS, i, block()) + frame(RST_STREAM, 0, i, b"\0\0\0\x08"))
    )
    assert attacker.is_ended()


def test_headers_that_never_end_are_refused(attacker: Attacker):
    part = frame(CONTINUATION, 0, 1, literal("x-a", "b" * 8000))
    attacker.send(frame(HEADERS, 0, 1, block()) + part * 500)
    assert attacker.sees(RST_STREAM, GOAWAY)


def test_a_flood_of_empty_continuations_ends_the_connection(attacker: Attacker):
    attacker.send(frame(HEADERS, 0, 1, block()) + frame(CONTINUATION, 0, 1) * 100_000)
    assert attacker.is_ended()


def test_a_flood_of_pings_whose_answers_are_not_read_ends_the_connection(attacker: Attacker):
    attacker.pour(frame(PING, 0, 0, b"\0" * 8) * 600_000)
    assert attacker.is_ended()


def test_a_flood_of_settings_ends_the_connection(attacker: Attacker):
    attacker.pour(frame(SETTINGS, 0, 0, b"\0\x04\0\0\xff\xff") * 500_000)
    assert attacker.is_ended()


def test_empty_data_frames_end_the_connection(attacker: Attacker):
    attacker.send(frame(HEADERS, END_HEADERS, 1, block()) + frame(DATA, 0, 1) * 1000)
    assert attacker.is_ended()


def test_a_window_of_zero_holds_up_nobody_else(attacker: Attacker, subject: Subject):
    attacker.send(frame(SETTINGS, 0, 0, b"\0\x04\0\0\0\0"))
    attacker.send(streams(100, lambda i: frame(HEADERS, END_HEADERS | END_STREAM, i, block())))
    for _ in range(20):
        subject.gateway.serves()


def test_more_streams_than_allowed_are_refused(attacker: Attacker):
    attacker.send(streams(2500, lambda i: frame(HEADERS, END_HEADERS, i, block())))
    assert attacker.sees(RST_STREAM, GOAWAY)


def test_a_window_update_that_overflows_ends_the_connection(attacker: Attacker):
    attacker.send(frame(WINDOW_UPDATE, 0, 0, b"\x7f\xff\xff\xff") * 2)
    assert attacker.is_ended()


def test_a_header_table_bomb_ends_or_is_refused(attacker: Attacker):
    """One entry of 4,000 bytes is put into the table, then named 16,000 times by one byte each."""
    big = literal("x-bomb", "b" * 3900, index=True)
    attacker.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, block() + big + b"\xbe" * 16_000))
    assert attacker.sees(RST_STREAM, GOAWAY, HEADERS)


def test_a_storm_of_table_sizes_costs_nothing(attacker: Attacker):
    """Envoy takes any number of size updates, and answers: 400,000 of them in less than a second or two."""
    storm = (integer(0, 5, 0x20) + integer(4096, 5, 0x20)) * 4000
    began = time.monotonic()
    attacker.send(streams(50, lambda i: frame(HEADERS, END_HEADERS | END_STREAM, i, storm + block())))
    assert attacker.sees(RST_STREAM, GOAWAY, HEADERS)
    assert time.monotonic() - began < 5


def test_a_table_larger_than_agreed_ends_the_connection(attacker: Attacker):
    attacker.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, integer(1 << 30, 5, 0x20) + block()))
    assert attacker.is_ended()


@pytest.mark.parametrize(
    "payload",
    [
        frame(DATA, 0, 0, b"x"),
        frame(HEADERS, END_HEADERS, 2, block()),
        frame(RST_STREAM, 0, 1, b"\0"),
        frame(SETTINGS, 0, 0, b"\0\0\0"),
        frame(CONTINUATION, END_HEADERS, 1, block()),
        frame(HEADERS, END_HEADERS, 1, b"\xff" * 20),
        (1 << 20).to_bytes(3, "big") + bytes([DATA, 0]) + (1).to_bytes(4, "big") + b"x" * 65536,
    ],
    ids=[
        "data on stream 0",
        "even stream",
        "short reset",
        "short settings",
        "lone continuation",
        "bad HPACK",
        "too long",
    ],
)
def test_a_broken_frame_ends_the_connection(attacker: Attacker, payload: bytes):
    attacker.send(payload)
    assert attacker.is_ended()


@pytest.mark.parametrize(
    "headers",
    [
        block(("X-Upper", "a")),
        block(("connection", "keep-alive")),
        block(("transfer-encoding", "chunked")),
        block((":path", "/v2/models/echo/infer")),
        block((":unknown", "a")),
        block(path="v2/models/perceptron/infer"),
        block(path=""),
        block(("x-a", "a\r\nx-msm-target: default/echo/v1")),
        block(("x-a", "a\0b")),
        block(("content-length", "5")),
        literal(":method", "POST"),
        literal("x-a", "b") + block(),
    ],
    ids=[
        "upper case", "connection", "transfer-encoding", "two paths", "unknown pseudo header", "no slash",
        "empty path", "line break", "NUL", "wrong length", "no path", "pseudo header last",
    ],
)  # fmt: skip
def test_malformed_headers_are_refused(attacker: Attacker, headers: bytes):
    attacker.send(frame(HEADERS, END_HEADERS, 1, headers) + frame(DATA, END_STREAM, 1, b"{}"))
    assert attacker.sees(RST_STREAM, GOAWAY, HEADERS)
