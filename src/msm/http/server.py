"""HTTP/1.1 on a stream socket: from segments of bytes to `Request` objects, and one write for each answer.

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

import orjson

from msm.http.body import Body, ChunkedBody, SizedBody, single_chunk
from msm.http.head import FRAMING, Head, parse
from msm.http.status import PHRASES, http_status
from msm.kit.errors import InputTooLarge, Internal, InvalidInput, MsmError, Unsupported

log = logging.getLogger(__name__)

MAX_HEAD: Final = 64 * 1024
LINGER_S: Final = 2.0
_MAX_BACKLOG: Final = 64 * 1024
_MAX_SEEN: Final = 4096
_CHUNKED: Final = -1
_MAX_UNREAD: Final = 256 * 1024


class Incoming:
    """A body that is read while it comes. Who does not read makes the sender wait."""

    __slots__ = ("_connection", "_ended", "_unread", "_waiter")

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._unread = bytearray()
        self._ended = False
        self._waiter: asyncio.Future[None] | None = None

    async def read(self) -> bytes:
        """The next bytes; none at all when the body has ended. To be called by one task."""
        while not self._unread and not self._ended:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        data = bytes(self._unread)
        self._unread.clear()
        self._connection.unread_taken()
        return data

    def put(self, data: bytes) -> bool:
        """Take bytes in; whether no more should come for now."""
        self._unread += data
        self._wake()
        return len(self._unread) > _MAX_UNREAD

    def end(self) -> None:
        """The body is complete."""
        self._ended = True
        self._wake()

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)


class Request:
    """One request, answered exactly once: by `respond`, or by `start`, any number of `write` and `finish`.

    `done` becomes true with the end of the answer or when the client has gone: what still waits for it may then be
    dropped. `task`, when set, is cancelled if the client goes. `headers` may be those of an earlier request with the
    same head: they are only read. `incoming` is there instead of `body` when the listener wants the body of this
    request while it comes.
    """

    __slots__ = ("_connection", "body", "done", "headers", "incoming", "method", "path", "started", "task")

    def __init__(self, connection: Connection, head: Head) -> None:
        self._connection = connection
        self.method = head.method
        self.path = head.path
        self.headers = head.headers
        self.body = b""
        self.done = self.started = False
        self.incoming: Incoming | None = None
        self.task: asyncio.Task[None] | None = None

    @property
    def is_grpc(self) -> bool:
        """Whether the caller speaks gRPC, and so must be told of errors in its way."""
        return self.headers.get(b"content-type", b"").lower().startswith(b"application/grpc")

    def respond(self, answer: bytes) -> None:
        """Send the whole answer, head and body. Does nothing when the client has gone."""
        if not self.done:
            self.done = True
            self._connection.answered(answer)

    def start(self, head: bytes) -> None:
        """Begin an answer in chunks. `head` is the status line and the header lines, without the empty line."""
        if not self.done:
            self.started = True
            self._connection.send(head + b"transfer-encoding: chunked\r\n\r\n")

    def write(self, data: bytes) -> None:
        """Send a part of the body; then wait for `drained` before the next one."""
        if data and not self.done:
            self._connection.send(b"%x\r\n%b\r\n" % (len(data), data))

    async def drained(self) -> None:
        """Return when the client has read enough for more to be written, at once when it has gone."""
        if not self.done:
            await self._connection.drained()

    def finish(self, trailers: bytes = b"") -> None:
        """End the answer. `trailers` are whole lines."""
        if not self.done:
            self.done = True
            self._connection.answered(b"0\r\n%b\r\n" % trailers)

    def leave(self) -> None:
        """Nobody waits for the answer any more."""
        self.done = True
        if self.task is not None:
            self.task.cancel()


Handler = Callable[[Request], None]
ErrorWriter = Callable[[Request | None, MsmError], bytes]


def json_answer(status: int, body: object, headers: bytes = b"") -> bytes:
    """A complete answer with a JSON body. `headers` are whole lines with their line ends."""
    return bytes_answer(status, b"application/json", orjson.dumps(body), headers)


def bytes_answer(status: int, content_type: bytes, body: bytes, headers: bytes = b"") -> bytes:
    """A complete answer."""
    phrase = PHRASES.get(status, "Unknown").encode()
    return b"HTTP/1.1 %d %b\r\ncontent-type: %b\r\n%bcontent-length: %d\r\n\r\n%b" % (
        status, phrase, content_type, headers, len(body), body,
    )  # fmt: skip


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


def plain_refusal(request: Request | None, error: MsmError) -> bytes:
    """The answer to an error as `{"error", "reason"}`: for sockets that speak no inference protocol."""
    return json_answer(http_status(error), {"error": error.message, "reason": error.reason})
