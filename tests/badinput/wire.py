"""One HTTP/1.1 connection that sends any bytes whatever, and reads what comes back with a strict parser."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import h11

Address = tuple[str, int] | Path
CLOSED = 0
"""The status of an answer that did not come: the connection was closed instead."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back: `status` CLOSED when the connection was closed without an answer."""

    status: int
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    trailers: tuple[tuple[str, str], ...] = ()
    took_s: float = 0.0
    reusable: bool = False

    def header(self, name: str) -> str | None:
        """A header, or a trailer, by its lower-case name; the last one wins."""
        return dict((*self.headers, *self.trailers)).get(name)

    @property
    def text(self) -> str:
        """Everything a person could read in the answer."""
        lines = [f"{name}: {value}" for name, value in (*self.headers, *self.trailers)]
        return "\n".join([*lines, self.body.decode("utf-8", "replace")])


class Line:
    """A connection. Use as a context manager."""

    def __init__(self, address: Address, *, receive_buffer: int | None = None) -> None:
        family = socket.AF_UNIX if isinstance(address, Path) else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        if receive_buffer is not None:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self._socket.settimeout(10)
        self._socket.connect(str(address) if isinstance(address, Path) else address)
        self._socket.setblocking(False)
        self._left = b""  # came after the last answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def push(self, data: bytes) -> int:
        """Send what the socket takes now; returns how much that was."""
        try:
            return self._socket.send(data)
        except (BlockingIOError, BrokenPipeError, ConnectionResetError):
            return 0

    def ask(self, data: bytes, *, method: str = "POST", within_s: float = 10.0, head_only: bool = False) -> Answer:
        """Send `data`, reading at the same time (who refuses may stop reading), and return the next answer, or the
        head of one that does not end.

        Raises TimeoutError when there is none in time, h11.RemoteProtocolError when it is not HTTP.
        """
        return self._ask(_Reader(method, head_only=head_only), [data], 0, within_s)

    def ask_paced(self, pieces: Iterable[bytes], *, every_s: float, within_s: float = 10.0) -> Answer:
        """As `ask`, one piece after the other with a pause of `every_s` between them."""
        return self._ask(_Reader("POST"), pieces, every_s, within_s)

    def _ask(self, reader: _Reader, pieces: Iterable[bytes], every_s: float, within_s: float) -> Answer:
        began = time.monotonic()
        reader.feed(self._left)
        self._left = b""
        source = iter(pieces)
        pending, next_at = memoryview(next(source, b"")), began
        while not reader.done:
            now = time.monotonic()
            if now - began > within_s:
                raise TimeoutError(f"no complete answer within {within_s} s, got {bytes(reader.seen[:200])!r}")
            writable = [self._socket] if pending and now >= next_at else []
            wait = min(began + within_s - now, max(next_at - now, 0) if pending and not writable else 60)
            readable, writable, _ = select.select([self._socket], writable, [], max(wait, 0))
            if readable:
                reader.feed(self._receive())
            if writable and not reader.done:
                pending = self._advance(pending, reader)
                if not pending:
                    pending, next_at = memoryview(next(source, b"")), time.monotonic() + every_s
        self._left = reader.left
        return reader.answer(time.monotonic() - began)

    def _receive(self) -> bytes | None:
        try:
            return self._socket.recv(1 << 18) or None
        except ConnectionResetError:
            return None

    def _advance(self, pending: memoryview, reader: _Reader) -> memoryview:
        try:
            return pending[self._socket.send(pending[: 1 << 18]) :]
        except BlockingIOError:
            return pending
        except (BrokenPipeError, ConnectionResetError):
            reader.feed(self._receive())
            return memoryview(b"")


class _Reader:
    """Reads one answer out of what comes."""

    def __init__(self, method: str, *, head_only: bool = False) -> None:
        self._head_only = head_only
        self._parser = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
        known = method if method in ("HEAD", "GET", "PUT", "DELETE") else "POST"
        self._parser.send(h11.Request(method=known, target="/", headers=[("host", "x"), ("content-length", "0")]))
        self._parser.send(h11.EndOfMessage())
        self._head: h11.Response | None = None
        self._body = bytearray()
        self._trailers: tuple[tuple[str, str], ...] = ()
        self.seen = bytearray()
        self.done = False

    @property
    def left(self) -> bytes:
        return bytes(self._parser.trailing_data[0])

    def feed(self, data: bytes | None) -> None:
        """Take bytes; None is the end of the connection."""
        if data == b"" or self.done:
            return
        if data is None and self._head is None and not self.seen:
            self.done = True
            return
        self.seen += data or b""
        self._parser.receive_data(data or b"")
        while not self.done:
            event = self._parser.next_event()
            if event is h11.NEED_DATA or event is h11.PAUSED:
                return
            self._take(event)

    def _take(self, event: object) -> None:
        match event:
            case h11.Response():
                self._head = event
                self.done = self._head_only
            case h11.Data():
                self._body += event.data
            case h11.EndOfMessage():
                self._trailers = _texts(event.headers)
                self.done = True
            case h11.ConnectionClosed():
                self.done = True

    def answer(self, took_s: float) -> Answer:
        if self._head is None:
            return Answer(CLOSED, took_s=took_s)
        return Answer(
            self._head.status_code,
            _texts(self._head.headers),
            bytes(self._body),
            self._trailers,
            took_s,
            self._parser.their_state is h11.DONE,
        )


def _texts(headers: Iterable[tuple[bytes, bytes]]) -> tuple[tuple[str, str], ...]:
    return tuple((name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in headers)


def request(method: str, path: str, headers: Iterable[tuple[str, str]], body: bytes | None) -> bytes:
    """A request as bytes. A content-length is added when there is a body and no framing header is given."""
    lines = list(headers)
    names = {name.lower() for name, _ in lines}
    if "host" not in names:
        lines.insert(0, ("host", "mesh"))
    if body is not None and not names & {"content-length", "transfer-encoding"}:
        lines.append(("content-length", str(len(body))))
    head = "".join(f"{name}: {value}\r\n" for name, value in lines)
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + (body or b"")
