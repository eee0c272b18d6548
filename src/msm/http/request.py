"""One request of a connection, and its answer: whole, or a stream that waits while its reader is slow."""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

import orjson

from msm.http.head import Head
from msm.http.status import PHRASES, http_status
from msm.kit.errors import MsmError

_MAX_UNREAD: Final = 256 * 1024


class Wire(Protocol):
    """What a request needs of its connection."""

    def answered(self, answer: bytes) -> None:
        """Take the answer, or the end of it."""
        ...

    def send(self, data: bytes) -> None:
        """Take a part of the answer."""
        ...

    async def drained(self) -> None:
        """Return when more can be taken. To be called by one task."""
        ...

    def unread_taken(self) -> None:
        """Hear that there is room for more of the body."""
        ...


class Incoming:
    """A body that is read while it comes. Who does not read makes the sender wait."""

    __slots__ = ("_connection", "_ended", "_unread", "_waiter")

    def __init__(self, connection: Wire) -> None:
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

    def __init__(self, connection: Wire, head: Head) -> None:
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


def json_answer(status: int, body: object, headers: bytes = b"") -> bytes:
    """A complete answer with a JSON body. `headers` are whole lines with their line ends."""
    return bytes_answer(status, b"application/json", orjson.dumps(body), headers)


def bytes_answer(status: int, content_type: bytes, body: bytes, headers: bytes = b"") -> bytes:
    """A complete answer."""
    phrase = PHRASES.get(status, "Unknown").encode()
    return b"HTTP/1.1 %d %b\r\ncontent-type: %b\r\n%bcontent-length: %d\r\n\r\n%b" % (
        status, phrase, content_type, headers, len(body), body,
    )  # fmt: skip


def plain_refusal(request: Request | None, error: MsmError) -> bytes:
    """The answer to an error as `{"error", "reason"}`: for sockets that speak no inference protocol."""
    return json_answer(http_status(error), {"error": error.message, "reason": error.reason})
