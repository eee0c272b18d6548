"""Delta ADS over gRPC: hands the world to the proxies that are connected and knows what they have accepted.

One change sends only what changed. A refused resource stays refused until its content changes; it is reported, and the
proxy goes on with what it had.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import grpc
from envoy.service.discovery.v3 import discovery_pb2

from msm.observe.logs import get_logger
from msm.xds.snapshot import Change, Key, World
from msm.xds.subscription import Answer, Stream

SERVICE = "envoy.service.discovery.v3.AggregatedDiscoveryService"
log = get_logger("xds")

OnRefusal = Callable[[Key, str], None]
OnConnection = Callable[[bool], None]


@dataclass(frozen=True, slots=True)
class Acceptance:
    """The outcome of a wait: `missing` was not answered in time, `refused` was refused, each with the reason."""

    missing: frozenset[Key] = frozenset()
    refused: tuple[tuple[Key, str], ...] = ()

    @property
    def complete(self) -> bool:
        return not self.missing and not self.refused


@dataclass(slots=True, eq=False)
class _Waiter:
    keys: frozenset[Key]
    missing: set[Key]
    done: asyncio.Future[None]
    refused: dict[Key, str] = field(default_factory=dict)


class AdsServer:
    """Serves one `World`.

    `on_refusal(key, reason)` is told of every refused resource, `on_connection(connected)` when the first stream comes
    and when the last one has gone; both from the event loop.
    """

    def __init__(
        self, world: World, *, on_refusal: OnRefusal | None = None, on_connection: OnConnection | None = None
    ) -> None:
        self.world = world
        self._on_refusal = on_refusal
        self._on_connection = on_connection
        self._streams: dict[Stream, asyncio.Event] = {}
        self._waiters: dict[Key, set[_Waiter]] = {}

    @property
    def connected(self) -> bool:
        """Whether a proxy is listening."""
        return bool(self._streams)

    def register(self, server: grpc.aio.Server) -> None:
        """Add this service to a gRPC server that has not been started yet."""
        handler = grpc.stream_stream_rpc_method_handler(
            self._stream,
            request_deserializer=discovery_pb2.DeltaDiscoveryRequest.FromString,
            response_serializer=bytes,
        )
        handlers = {"DeltaAggregatedResources": handler}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))

    def apply(self, change: Change) -> None:
        """Take the change over and send it to whoever is connected."""
        if not change:
            return
        self.world.apply(change)
        keys = change.keys
        for stream, wake in self._streams.items():
            stream.dirty(keys)
            wake.set()

    async def wait_acked(self, keys: Collection[Key], deadline_s: float) -> Acceptance:
        """Wait until every connected proxy has accepted the present version of these resources.

        Returns at once when none is connected, at the latest after `deadline_s` seconds, and early when a resource is
        refused or the last proxy goes away.
        """
        waiter = _Waiter(frozenset(keys), set(keys), asyncio.get_running_loop().create_future())
        self._settle(waiter, keys)
        if not self._streams or waiter.done.done():
            return Acceptance(refused=tuple(waiter.refused.items()))
        for key in waiter.missing:
            self._waiters.setdefault(key, set()).add(waiter)
        try:
            async with asyncio.timeout(deadline_s):
                await waiter.done
        except TimeoutError:
            return Acceptance(frozenset(waiter.missing), tuple(waiter.refused.items()))
        finally:
            self._forget(waiter)
        return Acceptance(refused=tuple(waiter.refused.items()))

    async def _stream(self, requests: AsyncIterator[Any], context: Any) -> None:
        stream, wake = Stream(self.world), asyncio.Event()
        self._streams[stream] = wake
        if len(self._streams) == 1 and self._on_connection is not None:
            self._on_connection(True)
        reader = asyncio.create_task(self._read(requests, stream, wake))
        try:
            while not reader.done():
                await wake.wait()
                wake.clear()
                # All frames are made at once: what changes while they are written comes in a later round, in order.
                for frame in tuple(stream.frames()):
                    await context.write(frame)
        finally:
            self._gone(stream)
            reader.cancel()
            await asyncio.wait((reader,))
            if not reader.cancelled() and (failure := reader.exception()) is not None:
                log.info("the stream of a proxy broke", error=repr(failure))

    async def _read(self, requests: AsyncIterator[Any], stream: Stream, wake: asyncio.Event) -> None:
        try:
            async for request in requests:
                for answer in stream.on_request(request):
                    self._on_answer(answer)
                wake.set()
        finally:
            wake.set()

    def _gone(self, stream: Stream) -> None:
        self._streams.pop(stream, None)
        waiting = {waiter for waiters in self._waiters.values() for waiter in waiters}
        for waiter in waiting:
            if self._streams:
                self._settle(waiter, tuple(waiter.missing))
            elif not waiter.done.done():
                waiter.done.set_result(None)
        if not self._streams and self._on_connection is not None:
            self._on_connection(False)

    def _on_answer(self, answer: Answer) -> None:
        if answer.refused is not None and self._on_refusal is not None:
            for key in answer.keys:
                self._on_refusal(key, answer.refused)
        for key in answer.keys:
            for waiter in tuple(self._waiters.get(key, ())):
                self._settle(waiter, (key,))

    def _settle(self, waiter: _Waiter, keys: Collection[Key]) -> None:
        """Take from the waiter's list what is answered by now; end it when nothing is left."""
        for key in keys:
            if (reason := self._refusal(key)) is not None:
                waiter.refused[key] = reason
                waiter.missing.discard(key)
            elif all(stream.accepted(key) for stream in self._streams):
                waiter.missing.discard(key)
        if not waiter.missing and not waiter.done.done():
            waiter.done.set_result(None)

    def _refusal(self, key: Key) -> str | None:
        return next((reason for s in self._streams if (reason := s.refusal(key)) is not None), None)

    def _forget(self, waiter: _Waiter) -> None:
        for key in waiter.keys & self._waiters.keys():
            self._waiters[key].discard(waiter)
            if not self._waiters[key]:
                del self._waiters[key]
