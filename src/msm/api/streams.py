"""Answers that do not end: a bounded number of event streams, all ended when the server stops."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, TypeVar

import msgspec
from starlette.responses import StreamingResponse

from msm.kit.errors import MsmError, Overloaded

MOST_STREAMS = 100
HEARTBEAT_S = 15.0
T = TypeVar("T")


class Streams:
    """The open streams of a server. A reader that is slow holds back its own source and nobody else."""

    def __init__(self, most: int = MOST_STREAMS, heartbeat_s: float = HEARTBEAT_S) -> None:
        self._most = most
        self._heartbeat_s = heartbeat_s
        self._open = 0
        self._readers: set[asyncio.Task[Any]] = set()
        self._closed = False

    @property
    def open(self) -> int:
        """How many streams are being read."""
        return self._open

    def close(self) -> None:
        """End all streams, now and for ever."""
        self._closed = True
        for reader in self._readers:
            reader.cancel()

    def events(self, source: AsyncGenerator[tuple[str, Any], None]) -> StreamingResponse:
        """Server-sent events from pairs of an event's name and its value. Raises Overloaded at the limit."""
        return self._answer(_encode(source), "text/event-stream", first=b": stream\n\n", quiet=b": quiet\n\n")

    def text(self, source: AsyncGenerator[bytes, None]) -> StreamingResponse:
        """Plain text that grows. Raises Overloaded at the limit."""
        return self._answer(source, "text/plain; charset=utf-8", first=b"", quiet=b"")

    def _answer(
        self, source: AsyncGenerator[bytes, None], media_type: str, *, first: bytes, quiet: bytes
    ) -> StreamingResponse:
        if self._closed or self._open >= self._most:
            raise Overloaded(f"{self._most} streams are open; no more are allowed", retry_after_s=5)
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        return StreamingResponse(self._body(source, first, quiet), media_type=media_type, headers=headers)

    async def _body(self, source: AsyncGenerator[bytes, None], first: bytes, quiet: bytes) -> AsyncIterator[bytes]:
        """`first`, then the parts of `source`; `quiet` when there was none for a while, to notice a dead reader."""
        following: asyncio.Task[bytes | None] | None = None
        self._open += 1
        try:
            yield first
            while not self._closed:
                following = following or self._read(source)
                done, _ = await asyncio.wait({following}, timeout=self._heartbeat_s)
                if not done:
                    yield quiet
                elif following.cancelled() or (part := following.result()) is None:
                    return
                else:
                    following = None
                    yield part
        finally:
            self._open -= 1
            if following is not None:
                following.cancel()
                await asyncio.wait({following})
            await source.aclose()

    def _read(self, source: AsyncGenerator[bytes, None]) -> asyncio.Task[bytes | None]:
        reader = asyncio.get_running_loop().create_task(_next(source), name="api stream")
        self._readers.add(reader)
        reader.add_done_callback(self._readers.discard)
        return reader


@contextlib.asynccontextmanager
async def closing(source: AsyncIterator[T]) -> AsyncIterator[AsyncIterator[T]]:
    """`source`, closed at the end instead of when it is collected: a watch holds its place in the store until then."""
    try:
        yield source
    finally:
        if isinstance(source, AsyncGenerator):
            await source.aclose()


async def _next(source: AsyncGenerator[bytes, None]) -> bytes | None:
    return await anext(source, None)


async def _encode(source: AsyncGenerator[tuple[str, Any], None]) -> AsyncGenerator[bytes, None]:
    """Events on the wire; an error of the source is the last event, so that the client knows why it ended."""
    try:
        async for name, value in source:
            yield b"event: %s\ndata: %s\n\n" % (name.encode(), msgspec.json.encode(value))
    except MsmError as error:
        value = {"reason": error.reason, "detail": error.message}
        yield b"event: error\ndata: %s\n\n" % msgspec.json.encode(value)
    finally:
        await source.aclose()
