"""HTTP/2 used as a weapon (3.1, T16 and T17): the connection is ended or refused, and nobody else notices.

The frames are made by hand (RFC 9113); headers are literals without indexing and without Huffman coding (RFC 7541), so
that no library is in the way of what must be wrong.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

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

    @property
    def ended(self) -> bool:
        """The server has ended the connection, by GOAWAY or by closing it."""
        return self.closed or GOAWAY in self.kinds

    @property
    def refused(self) -> bool:
        """The server has ended the connection, reset a stream, or answered with headers (of an error)."""
        return self.ended or bool({RST_STREAM, HEADERS} & set(self.kinds))

    def close(self) -> None:
        self._socket.close()


def streams(count: int, make: Callable[[int], bytes]) -> bytes:
    return b"".join(make(1 + 2 * number) for number in range(count))


REQUEST = frame(HEADERS, END_HEADERS, 1, block())
BIG = literal("x-bomb", "b" * 3900, index=True)
STORM = (integer(0, 5, 0x20) + integer(4096, 5, 0x20)) * 4000
RESET = b"\0\0\0\x08"

ENDED: dict[str, bytes] = {
    "T16 rapid reset": streams(
        3000, lambda i: frame(HEADERS, END_HEADERS, i, block()) + frame(RST_STREAM, 0, i, RESET)
    ),
    "T16 empty continuations": frame(HEADERS, 0, 1, block()) + frame(CONTINUATION, 0, 1) * 100_000,
    "T16 empty data frames": REQUEST + frame(DATA, 0, 1) * 1000,
    "T16 window overflow": frame(WINDOW_UPDATE, 0, 0, b"\x7f\xff\xff\xff") * 2,
    "T16 data on stream 0": frame(DATA, 0, 0, b"x"),
    "T16 even stream": frame(HEADERS, END_HEADERS, 2, block()),
    "T16 short reset": frame(RST_STREAM, 0, 1, b"\0"),
    "T16 short settings": frame(SETTINGS, 0, 0, b"\0\0\0"),
    "T16 lone continuation": frame(CONTINUATION, END_HEADERS, 1, block()),
    "T16 frame too long": (1 << 20).to_bytes(3, "big") + bytes([DATA, 0]) + (1).to_bytes(4, "big") + b"x" * 65536,
    "T17 bad HPACK": frame(HEADERS, END_HEADERS, 1, b"\xff" * 20),
    "T17 table larger than agreed": frame(HEADERS, 5, 1, integer(1 << 30, 5, 0x20) + block()),
}
# Their answers are never read, so that they pile up.
POURED: dict[str, bytes] = {
    "T16 pings": frame(PING, 0, 0, b"\0" * 8) * 600_000,
    "T16 settings": frame(SETTINGS, 0, 0, b"\0\x04\0\0\xff\xff") * 500_000,
}
REFUSED: dict[str, bytes] = {
    "T16 headers that never end": frame(HEADERS, 0, 1, block())
    + frame(CONTINUATION, 0, 1, literal("x-a", "b" * 8000)) * 500,
    "T16 too many streams": streams(2500, lambda i: frame(HEADERS, END_HEADERS, i, block())),
    # One entry of the table, named 16,000 times by one byte each: 64 MB of headers in 20 KB.
    "T17 header table bomb": frame(HEADERS, END_HEADERS | END_STREAM, 1, block() + BIG + b"\xbe" * 16_000),
    # Envoy takes any number of size updates, and answers: it must only be cheap.
    "T17 table sizes": streams(50, lambda i: frame(HEADERS, END_HEADERS | END_STREAM, i, STORM + block())),
}
MALFORMED: dict[str, bytes] = {
    "upper case": block(("X-Upper", "a")),
    "connection": block(("connection", "keep-alive")),
    "transfer-encoding": block(("transfer-encoding", "chunked")),
    "two paths": block((":path", "/v2/models/echo/infer")),
    "unknown pseudo header": block((":unknown", "a")),
    "path without a slash": block(path="v2/models/perceptron/infer"),
    "empty path": block(path=""),
    "line break": block(("x-a", "a\r\nx-msm-target: default/echo/v1")),
    "NUL": block(("x-a", "a\0b")),
    "wrong length": block(("content-length", "5")),
    "no path": literal(":method", "POST"),
    "pseudo header last": literal("x-a", "b") + block(),
}
REFUSED |= {
    f"T16 {name}": frame(HEADERS, END_HEADERS, 1, headers) + frame(DATA, END_STREAM, 1, b"{}")
    for name, headers in MALFORMED.items()
}


@dataclass(frozen=True)
class Aftermath:
    """What became of the attacks by their names, and of the mesh."""

    attackers: dict[str, Attacker]
    same_processes: bool


@pytest.fixture(scope="module")
def aftermath(subject: Subject) -> Iterator[Aftermath]:
    """All attacks at once, each on a connection of its own, while a valid request is answered after each of them."""
    before = subject.pids()
    address = subject.gateway.address
    assert isinstance(address, tuple)
    with contextlib.ExitStack() as stack:
        attackers: dict[str, Attacker] = {}
        for name, data in (ENDED | REFUSED | POURED).items():
            attackers[name] = stack.enter_context(contextlib.closing(Attacker(address)))
            (attackers[name].pour if name in POURED else attackers[name].send)(data)
            subject.gateway.serves()
        deadline = time.monotonic() + GIVE_UP_S
        while time.monotonic() < deadline and not all(
            attacker.refused if name in REFUSED else attacker.ended for name, attacker in attackers.items()
        ):
            for attacker in attackers.values():
                attacker.read(0.005)
        subject.gateway.serves()
        yield Aftermath(attackers, subject.pids() == before)


@pytest.mark.parametrize("name", [*ENDED, *POURED])
def test_an_attack_ends_its_connection(name: str, aftermath: Aftermath):
    assert aftermath.attackers[name].ended, aftermath.attackers[name].kinds


@pytest.mark.parametrize("name", REFUSED)
def test_an_attack_is_refused(name: str, aftermath: Aftermath):
    assert aftermath.attackers[name].refused, aftermath.attackers[name].kinds


def test_no_process_died_of_the_attacks(aftermath: Aftermath):
    assert aftermath.same_processes


def test_a_window_of_zero_holds_up_nobody_else(subject: Subject):
    address = subject.gateway.address
    assert isinstance(address, tuple)
    with contextlib.closing(Attacker(address)) as attacker:
        attacker.send(frame(SETTINGS, 0, 0, b"\0\x04\0\0\0\0"))
        attacker.send(streams(100, lambda i: frame(HEADERS, END_HEADERS | END_STREAM, i, block())))
        for _ in range(20):
            subject.gateway.serves()
