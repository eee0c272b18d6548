"""Answers that do not end: bounded, ended by their server, honest about errors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from msm.api.streams import Streams
from msm.kit.errors import Conflict, Overloaded
from tests.support.eventually import eventually


def body_of(streams: Streams, source: AsyncGenerator[tuple[str, Any], None]) -> AsyncGenerator[bytes, None]:
    body = streams.events(source).body_iterator
    assert isinstance(body, AsyncGenerator)
    return body


class Source:
    """Events that come when they are told to; remembers whether it was closed."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[str] = asyncio.Queue()
        self.begun = self.closed = False

    async def events(self) -> AsyncGenerator[tuple[str, Any], None]:
        self.begun = True
        try:
            while (value := await self.queue.get()) != "end":
                if value == "fail":
                    raise Conflict("the history is gone", reason="compacted")
                yield "event", {"value": value}
        finally:
            self.closed = True


async def test_events_are_told_as_they_come_until_the_source_ends():
    source, streams = Source(), Streams()
    for value in ("a", "b", "end"):
        source.queue.put_nowait(value)
    parts = [part async for part in body_of(streams, source.events())]
    assert parts[1:] == [b'event: event\ndata: {"value":"a"}\n\n', b'event: event\ndata: {"value":"b"}\n\n']
    assert source.closed
    assert streams.open == 0


async def test_an_error_of_the_source_is_the_last_event():
    source = Source()
    source.queue.put_nowait("fail")
    parts = [part async for part in body_of(Streams(), source.events())]
    assert parts[-1] == b'event: error\ndata: {"reason":"compacted","detail":"the history is gone"}\n\n'


async def test_a_quiet_stream_is_kept_alive_without_losing_events():
    source = Source()
    parts = body_of(Streams(heartbeat_s=0.01), source.events())
    assert await anext(parts) == b": stream\n\n"
    assert await anext(parts) == b": quiet\n\n"
    source.queue.put_nowait("late")
    while (part := await anext(parts)) == b": quiet\n\n":
        pass
    assert b"late" in part
    await parts.aclose()


async def test_a_reader_who_leaves_closes_the_source():
    source, streams = Source(), Streams()
    body = body_of(streams, source.events())
    source.queue.put_nowait("a")
    assert await anext(body) == b": stream\n\n"
    assert b"a" in await anext(body)
    await body.aclose()
    assert source.closed
    assert streams.open == 0


async def test_closing_ends_every_stream_and_refuses_new_ones():
    source, streams = Source(), Streams()
    reading = asyncio.create_task(read_all(body_of(streams, source.events())))
    await eventually(lambda: streams.open == 1 and source.begun)
    streams.close()
    assert await asyncio.wait_for(reading, 5) == [b": stream\n\n"]
    assert source.closed
    with pytest.raises(Overloaded):
        streams.events(Source().events())


async def read_all(parts: AsyncGenerator[bytes, None]) -> list[bytes]:
    return [part async for part in parts]


async def test_the_number_of_streams_is_limited():
    streams = Streams(most=1)
    held = body_of(streams, Source().events())
    await anext(held)
    with pytest.raises(Overloaded, match="1 streams"):
        streams.events(Source().events())
    await held.aclose()
    assert streams.events(Source().events())
