"""Time as an argument: shells take a `Clock`, decisions take plain floats of seconds."""

from __future__ import annotations

import asyncio
import heapq
import time
from typing import Protocol


class Clock(Protocol):
    """Where a shell gets its time from."""

    def wall(self) -> float:
        """Seconds since the epoch: for people and records, never for measuring a duration."""
        ...

    def monotonic(self) -> float:
        """Seconds that never run backwards: for durations, deadlines and the decisions' `now`."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Return when `monotonic` has advanced by `seconds`."""
        ...


class SystemClock:
    """The machine's clock."""

    def wall(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class ManualClock:
    """A clock that stands still until `advance`: for tests and the simulator."""

    def __init__(self, start: float = 1_000.0) -> None:
        self._now = start
        self._sleepers: list[tuple[float, int, asyncio.Event]] = []
        self._count = 0

    def wall(self) -> float:
        return self._now

    def monotonic(self) -> float:
        return self._now

    async def sleep(self, seconds: float) -> None:
        wake = asyncio.Event()
        self._count += 1
        heapq.heappush(self._sleepers, (self._now + seconds, self._count, wake))
        await wake.wait()

    async def advance(self, seconds: float) -> None:
        """Move time forward, waking sleepers in order, and let each run until it waits again."""
        target = self._now + seconds
        while self._sleepers and self._sleepers[0][0] <= target:
            self._now, _, wake = heapq.heappop(self._sleepers)
            wake.set()
            await settle()
        self._now = target
        await settle()


async def settle(turns: int = 20) -> None:
    """Give every ready task a chance to run until it waits for something real."""
    for _ in range(turns):
        await asyncio.sleep(0)
