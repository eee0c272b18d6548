"""A gate that lets a few pass at once, the urgent ones first."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Container, Hashable
from contextlib import asynccontextmanager


class Gate:
    """At most `width` holders. When one leaves, the longest waiting urgent one enters, else the longest
    waiting.

    `urgent` is asked at that moment, so that one who waits already can become urgent.
    """

    def __init__(self, width: int, urgent: Container[Hashable]) -> None:
        self._free = width
        self._urgent = urgent
        self._waiting: dict[asyncio.Future[None], Hashable] = {}

    @asynccontextmanager
    async def pass_through(self, name: Hashable) -> AsyncIterator[None]:
        """Hold a place for the duration of the context."""
        await self._enter(name)
        try:
            yield
        finally:
            self._leave()

    async def _enter(self, name: Hashable) -> None:
        if self._free:
            self._free -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[turn] = name
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._leave()  # the place was given in the same moment: hand it on
            raise
        finally:
            self._waiting.pop(turn, None)

    def _leave(self) -> None:
        waiting = [turn for turn in self._waiting if not turn.done()]
        chosen = next((turn for turn in waiting if self._waiting[turn] in self._urgent), None)
        if chosen is None and waiting:
            chosen = waiting[0]
        if chosen is None:
            self._free += 1
        else:
            chosen.set_result(None)
