"""A small HTTP/1.1 client over one unix socket: JSON in, JSON out, connections kept and reused.

The node asks each worker several times a second for as long as it lives; a general client costs about a
millisecond of processor time per call, this one a tenth of it. It speaks to this project's own servers only:
answers must carry a Content-Length.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import msgspec

from msm.kit.errors import DeadlineExceeded, Internal, Unavailable

HEAD_LIMIT = 64 * 1024
KEEP_IDLE = 4
PEER_AWAY = "peer_away"


@dataclass(frozen=True, slots=True)
class Answer:
    """Status and body of an answer."""

    status: int
    body: bytes


class UnixHttp:
    """Calls to the server behind `socket`. Safe for concurrent calls: each takes a connection of its own."""

    def __init__(self, socket: str, peer: str) -> None:
        """`peer` names the server in errors."""
        self._socket = socket
        self._peer = peer
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._open: set[asyncio.StreamWriter] = set()

    async def call(self, method: str, path: str, body: Any = None, *, timeout_s: float) -> Answer:
        """One exchange. Raises Unavailable when the server is away, DeadlineExceeded when it does not answer
        in time.
        """
        try:
            async with asyncio.timeout(timeout_s):
                return await self._exchange(_request(method, path, body))
        except TimeoutError as error:
            raise DeadlineExceeded(f"{self._peer} did not answer within {timeout_s:g} s") from error
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            raise Unavailable(f"{self._peer} does not answer", reason=PEER_AWAY) from error

    async def _exchange(self, request: bytes) -> Answer:
        while self._idle:
            reader, writer = self._idle.pop()
            if reader.at_eof() or writer.is_closing():
                self._drop(writer)
                continue
            try:
                return await self._on_connection(reader, writer, request)
            except (ConnectionError, asyncio.IncompleteReadError) as error:
                if isinstance(error, asyncio.IncompleteReadError) and error.partial:
                    raise
                # The server closed an idle connection as we wrote: nothing was answered, a fresh one is
                # tried.
        reader, writer = await asyncio.open_unix_connection(self._socket, limit=HEAD_LIMIT)
        self._open.add(writer)
        return await self._on_connection(reader, writer, request)

    async def _on_connection(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes
    ) -> Answer:
        reusable = False
        try:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            status, length, keep = _parse_head(head, self._peer)
            answer = Answer(status, await reader.readexactly(length))
            reusable = keep and writer in self._open and len(self._idle) < KEEP_IDLE
            return answer
        finally:
            if reusable:
                self._idle.append((reader, writer))
            else:
                self._drop(writer)

    def _drop(self, writer: asyncio.StreamWriter) -> None:
        self._open.discard(writer)
        writer.close()

    async def close(self) -> None:
        """Close every connection: calls in progress fail. Later calls open new ones."""
        closing, self._open, self._idle = self._open, set(), []
        for writer in closing:
            writer.close()
        for writer in closing:
            with suppress(OSError):  # the peer may have broken it first
                await writer.wait_closed()


def _request(method: str, path: str, body: Any) -> bytes:
    payload = b"" if body is None else msgspec.json.encode(body)
    head = f"{method} {path} HTTP/1.1\r\nhost: msm\r\ncontent-length: {len(payload)}\r\n"
    if payload:
        head += "content-type: application/json\r\n"
    return head.encode("ascii") + b"\r\n" + payload


def _parse_head(head: bytes, peer: str) -> tuple[int, int, bool]:
    """Status, body length and whether the connection stays open."""
    lines = head.decode("latin-1").split("\r\n")
    headers = {}
    for line in lines[1:]:
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    try:
        status = int(lines[0].split(" ", 2)[1])
        length = int(headers.get("content-length", "0" if status == 204 else ""))
    except (IndexError, ValueError) as error:
        raise Internal(f"{peer} gave an answer that is not understood") from error
    return status, length, headers.get("connection", "").lower() != "close"
