"""HTTP/1.1 on a stream socket: from segments of bytes to `Request` objects.

The peer is the node's own Envoy or node process, so what matters is to be exact and cheap. Framing is strict (RFC
9112): what can be read in two ways is refused and the connection closed. One request of a connection is worked on at
a time; pipelined ones wait. An answer is whole, or a stream that waits while its reader is slow; a body too can be read
while it comes. It knows no paths and no protocol above HTTP.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, cast

from msm.http.body import Body, ChunkedBody, SizedBody, single_chunk
from msm.http.head import FRAMING, Head, parse
from msm.http.request import Incoming, Request
from msm.kit.errors import InputTooLarge, Internal, InvalidInput, MsmError, Unsupported

log = logging.getLogger(__name__)

MAX_HEAD: Final = 64 * 1024
LINGER_S: Final = 2.0
_MAX_BACKLOG: Final = 64 * 1024
_MAX_SEEN: Final = 4096
_CHUNKED: Final = -1


Handler = Callable[[Request], None]
ErrorWriter = Callable[[Request | None, MsmError], bytes]


@dataclass(slots=True)
class Listener:
    """What the connections of one socket share: limits, who answers, and whether they are to end.

    `known` are the headers that requests are to carry (`msm.http.head.headers_known`); all others are dropped. Requests
    that `streamed` picks by their head are handled before their body has come.
    """

    handler: Handler
    refuse: ErrorWriter
    max_body: int
    known: re.Pattern[bytes] = FRAMING
    streamed: Callable[[Head], bool] | None = None
    connections: set[Connection] = field(default_factory=set)
    stopping: bool = False

    def connect(self) -> Connection:
        """A new connection: the protocol factory of the socket."""
        return Connection(self)

    def stop(self) -> None:
        """End each connection: idle ones now, the others after their answer."""
        self.stopping = True
        for connection in list(self.connections):
            connection.stop()

    def abort(self) -> None:
        """End each connection at once, answered or not."""
        self.stopping = True
        for connection in list(self.connections):
            connection.abort()


class Connection(asyncio.Protocol):
    """One connection. Feeds requests to the listener's handler, one at a time."""

    __slots__ = (
        "_backlog", "_body", "_close", "_feeding", "_head", "_lingering", "_listener", "_paused", "_request",
        "_room", "_seen", "_transport",
    )  # fmt: skip

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._transport: asyncio.Transport | None = None
        self._request: Request | None = None  # being read, or being worked on
        self._body: Body | None = None  # of the request being read
        # The last head, and what was read from it (the framing, whether the body is streamed): callers repeat it.
        self._seen: tuple[bytes, Head, int, bool] | None = None
        self._head = bytearray()  # an unfinished head
        self._backlog = bytearray()  # what came while a request was being worked on
        self._close = self._lingering = self._paused = self._feeding = False
        self._room: asyncio.Future[None] | None = None  # somebody waits for `resume_writing`

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._listener.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._listener.connections.discard(self)
        request, self._request = self._request, None
        if request is not None:
            request.leave()
        self._make_room()

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._make_room()
        self._next()

    def _make_room(self) -> None:
        room, self._room = self._room, None
        if room is not None and not room.done():
            room.set_result(None)

    def stop(self) -> None:
        """Close when there is nothing to answer; else after the answer."""
        self._close = True
        if self._request is None and self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close without an answer."""
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._lingering:
            return
        if (self._request is not None and self._body is None) or self._paused:
            self._backlog += data
            if len(self._backlog) > _MAX_BACKLOG and self._transport is not None:
                self._transport.pause_reading()
            return
        self._feed(data)

    def send(self, data: bytes) -> None:
        """Called by the request with a part of its answer."""
        if self._transport is not None:
            self._transport.write(data)

    async def drained(self) -> None:
        """Return when the transport takes more. To be called by one task."""
        if self._paused and self._transport is not None:
            self._room = asyncio.get_running_loop().create_future()
            await self._room

    def unread_taken(self) -> None:
        """Called by the request's body when there is room for more of it."""
        transport = self._transport
        if transport is not None and self._body is not None and not self._paused and not transport.is_closing():
            if not transport.is_reading():
                transport.resume_reading()
            if not self._feeding:
                self._next()

    def answered(self, answer: bytes) -> None:
        """Called by the request with its answer, or the end of it."""
        self._request = None
        transport = self._transport
        if transport is None:
            return
        transport.write(answer)
        if self._body is not None:  # answered before the end of its body: what is left of that can't be told apart
            self._linger(transport)
        elif self._close or self._listener.stopping:
            transport.close()
        elif self._backlog and not self._feeding:
            self._next()

    def _next(self) -> None:
        idle = self._request is None or self._body is not None
        if idle and self._backlog and self._transport is not None:
            data = bytes(self._backlog)
            self._backlog.clear()
            if not self._transport.is_reading() and not self._transport.is_closing():
                self._transport.resume_reading()
            self._feed(data)

    def _feed(self, data: bytes) -> None:
        self._feeding = True
        try:
            while data and not self._lingering:
                if self._request is None and not self._paused:
                    data = self._read_head(data)
                elif self._body is not None:
                    data = self._read_body(self._body, data)
                else:
                    self._backlog += data
                    break
        except MsmError as error:
            self._fail(error)
        finally:
            self._feeding = False

    def _read_head(self, data: bytes) -> bytes:
        """Take a head off `data`; returns what follows it."""
        if self._head:
            start = max(0, len(self._head) - 3)
            self._head += data
            index = self._head.find(b"\r\n\r\n", start)
            if index >= 0:
                data = bytes(self._head)
                self._head.clear()
        else:
            index = data.find(b"\r\n\r\n")
            if index < 0:
                self._head += data
        if index < 0 or index > MAX_HEAD:
            if max(len(self._head), index) > MAX_HEAD:
                raise InputTooLarge(f"the head of the request is over {MAX_HEAD} bytes", reason="head_too_large")
            return b""
        text = data[: index + 2]
        seen = self._seen
        if seen is None or seen[0] != text:
            seen = self._parse(text)
        _, head, size, streamed = seen
        if head.last:
            self._close = True
        request = self._request = Request(self, head)
        rest = index + 4
        if streamed:
            self._stream_body(request, self._body_of(size))
            return data[rest:]
        if not size:
            self._dispatch(request)
            return data[rest:]
        end = rest + size
        if size > 0 and len(data) >= end:  # the usual case: all of it is here
            request.body = data[rest:end]
            self._dispatch(request)
            return data[end:]
        return self._begin_body(request, data, rest, size)

    def _begin_body(self, request: Request, data: bytes, rest: int, size: int) -> bytes:
        """Start on a body of chunks, or one of which not all is here; returns what is left of `data` for it."""
        if size == _CHUNKED:
            whole = single_chunk(data, rest, self._listener.max_body)
            if whole is not None:
                request.body = whole
                self._dispatch(request)
                return b""
        self._body = self._body_of(size)
        if b"expect" in request.headers and self._transport is not None:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return data[rest:]

    def _body_of(self, size: int) -> Body | None:
        if size == _CHUNKED:
            return ChunkedBody(self._listener.max_body)
        return SizedBody(size) if size else None

    def _stream_body(self, request: Request, body: Body | None) -> None:
        """Have a request handled whose body is still to come."""
        request.incoming = Incoming(self)
        self._body = body
        if body is None:
            request.incoming.end()
        elif b"expect" in request.headers:
            self.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._dispatch(request)

    def _parse(self, text: bytes) -> tuple[bytes, Head, int, bool]:
        """What a head says that was not the last one's; kept unless it is long."""
        head = parse(text, self._listener.known)
        self._request = Request(self, head)  # a mistake in the framing is answered in the request's protocol
        streamed = self._listener.streamed is not None and self._listener.streamed(head)
        seen = text, head, self._framing(head.headers), streamed
        self._seen = seen if len(text) <= _MAX_SEEN else None
        return seen

    def _read_body(self, body: Body, data: bytes) -> bytes:
        """Give `data` to the unfinished body; returns what follows it."""
        used = body.feed(data)
        request = cast("Request", self._request)
        if request.incoming is not None:
            if request.incoming.put(body.take()) and self._transport is not None:
                self._transport.pause_reading()
            if used is None:
                return b""
            self._body = None
            request.incoming.end()
            return data[used:]
        if used is None:
            return b""
        self._body = None
        request.body = body.value()
        self._dispatch(request)
        return data[used:] if used < len(data) else b""

    def _dispatch(self, request: Request) -> None:
        try:
            self._listener.handler(request)
        except MsmError as error:
            request.respond(self._listener.refuse(request, error))
        except Exception:
            log.exception("a request could not be handled")
            request.respond(self._listener.refuse(request, Internal("the request could not be handled")))

    def _framing(self, headers: dict[bytes, bytes]) -> int:
        """The bytes of a request's body, `_CHUNKED` when only its chunks tell."""
        limit = self._listener.max_body
        length = headers.get(b"content-length")
        coding = headers.get(b"transfer-encoding")
        if coding is not None:
            if length is not None:
                raise InvalidInput("content-length and transfer-encoding exclude each other", reason="bad_framing")
            if coding.lower() != b"chunked":
                raise Unsupported("the only transfer-encoding that is offered is chunked", reason="transfer_encoding")
            return _CHUNKED
        if length is None:
            return 0
        if not length.isdigit() or len(length) > 15:
            raise InvalidInput("content-length is not a number of bytes", reason="bad_framing")
        size = int(length)
        if size > limit:
            raise InputTooLarge(f"the body has {size} bytes, the limit is {limit}")
        return size

    def _fail(self, error: MsmError) -> None:
        """Answer a request that can't be read on, and close.

        Closing a socket with unread bytes would discard the answer, so the rest is read and dropped for a moment.
        """
        transport, request = self._transport, self._request
        self._request = None
        if transport is None:
            return
        if request is not None and request.incoming is not None:
            request.leave()
            if request.started:  # to break off is all that is left to tell it
                transport.abort()
                return
        answer = self._listener.refuse(request, error)
        transport.write(answer.replace(b"\r\n", b"\r\nconnection: close\r\n", 1))
        self._linger(transport)

    def _linger(self, transport: asyncio.Transport) -> None:
        self._body = None
        self._lingering = True
        if not transport.is_reading() and not transport.is_closing():
            transport.resume_reading()
        asyncio.get_running_loop().call_later(LINGER_S, transport.close)
