"""A small HTTP/1.1 client of one server on the loopback: bytes in, bytes out, connections kept and reused.

Answers may carry a Content-Length, come in chunks, or end with the connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from msm.kit.errors import Internal, Unavailable

HEAD_LIMIT: Final = 64 * 1024
ANSWER_LIMIT: Final = 1 << 30
KEEP_IDLE: Final = 64
AWAY: Final = "server_away"


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer: status, headers by lower-case name, body."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class _Connection:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


class Upstream:
    """Calls to the server at `port`. Safe for concurrent calls: each takes a connection of its own."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle: list[_Connection] = []

    async def call(self, method: str, path: str, body: bytes = b"", headers: bytes = b"") -> Reply:
        """One exchange; `headers` are whole lines. Raises Unavailable ("server_away") when the server does not
        answer, Internal when what it answers is not HTTP. A call that is cancelled closes its connection."""
        request = (
            b"%b %b HTTP/1.1\r\nhost: 127.0.0.1:%d\r\n%bcontent-length: %d\r\n\r\n"
            % (method.encode(), path.encode("ascii"), self._port, headers, len(body))
        ) + body
        try:
            return await self._exchange(request, method)
        except (OSError, asyncio.IncompleteReadError) as error:
            raise Unavailable("its server does not answer", reason=AWAY) from error
        except (ValueError, IndexError, asyncio.LimitOverrunError) as error:
            raise Internal("its server gave an answer that is not understood", reason="bad_answer") from error

    async def _exchange(self, request: bytes, method: str) -> Reply:
        while self._idle:
            connection = self._idle.pop()
            if connection.reader.at_eof() or connection.writer.is_closing():
                connection.writer.close()
                continue
            try:
                return await self._on(connection, request, method)
            except (ConnectionError, asyncio.IncompleteReadError) as error:
                if isinstance(error, asyncio.IncompleteReadError) and error.partial:
                    raise
                # The server closed an idle connection as we wrote: nothing was answered, a fresh one is tried.
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port, limit=HEAD_LIMIT)
        return await self._on(_Connection(reader, writer), request, method)

    async def _on(self, connection: _Connection, request: bytes, method: str) -> Reply:
        async with self._kept(connection) as keep:
            connection.writer.write(request)
            await connection.writer.drain()
            status = 100
            headers: dict[str, str] = {}
            while status == 100:
                status, headers = _head(await connection.reader.readuntil(b"\r\n\r\n"))
            body, reusable = await _body(connection.reader, status, headers, method)
            keep[0] = reusable and headers.get("connection", "").lower() != "close"
            return Reply(status, headers, body)

    @asynccontextmanager
    async def _kept(self, connection: _Connection) -> AsyncIterator[list[bool]]:
        keep = [False]
        try:
            yield keep
        finally:
            if keep[0] and len(self._idle) < KEEP_IDLE:
                self._idle.append(connection)
            else:
                connection.writer.close()

    def close(self) -> None:
        """Close the idle connections."""
        for connection in self._idle:
            connection.writer.close()
        self._idle.clear()


def _head(head: bytes) -> tuple[int, dict[str, str]]:
    lines = head.decode("latin-1").split("\r\n")
    headers: dict[str, str] = {}
    for line in lines[1:]:
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    return int(lines[0].split(" ", 2)[1]), headers


async def _body(
    reader: asyncio.StreamReader, status: int, headers: Mapping[str, str], method: str
) -> tuple[bytes, bool]:
    """The body, and whether the connection can be used again."""
    if method == "HEAD" or status in (204, 304):
        return b"", True
    if headers.get("transfer-encoding", "").lower() == "chunked":
        return await _chunks(reader), True
    if "content-length" in headers:
        length = int(headers["content-length"])
        if not 0 <= length <= ANSWER_LIMIT:
            raise ValueError("the answer is too long")
        return await reader.readexactly(length), True
    parts = bytearray()
    while part := await reader.read(1 << 16):
        parts += part
        if len(parts) > ANSWER_LIMIT:
            raise ValueError("the answer is too long")
    return bytes(parts), False


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    parts = bytearray()
    while True:
        size = int((await reader.readuntil(b"\r\n")).split(b";")[0], 16)
        if size < 0 or len(parts) + size > ANSWER_LIMIT:
            raise ValueError("the answer is too long")
        if not size:
            while await reader.readuntil(b"\r\n") != b"\r\n":  # trailers
                pass
            return bytes(parts)
        parts += await reader.readexactly(size)
        await reader.readexactly(2)
