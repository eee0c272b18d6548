"""How long a run in a thread kept the event loop from running: by the interpreter's lock, not by other processes.

While a span is open the loop wakes every few milliseconds. How much later than wished it woke, less the time that the
system let the ready thread wait for a processor (the second field of Linux' schedstat), is what the lock cost.
"""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Final

_TICK_S: Final = 0.005


class Span:
    """One run. `held_s` is the longest time the loop was held up, None when another run may have been the cause."""

    __slots__ = ("_expected", "_loop", "_meter", "_timer", "_waited_s", "_worst_s", "alone")

    def __init__(self, meter: LagMeter, loop: asyncio.AbstractEventLoop) -> None:
        self._meter = meter
        self._loop = loop
        self._worst_s = 0.0
        self.alone = True
        self._arm()

    def _arm(self) -> None:
        self._waited_s = self._meter.waited_s()
        self._expected = self._loop.time() + _TICK_S
        self._timer = self._loop.call_at(self._expected, self._tick)

    def _tick(self) -> None:
        self._look()
        self._arm()

    def _look(self) -> None:
        late_s = self._loop.time() - self._expected
        if late_s > _TICK_S:
            self._worst_s = max(self._worst_s, late_s - (self._meter.waited_s() - self._waited_s))

    def end(self) -> float | None:
        """The run has ended. On the event loop, as all of this."""
        self._timer.cancel()
        self._look()
        self._meter.ended(self)
        return self._worst_s if self.alone else None


class LagMeter:
    """Opens spans and knows which of them overlapped. Make it and use it on the thread of the event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._open: set[Span] = set()
        self._stat = Path(f"/proc/self/task/{threading.get_native_id()}/schedstat")

    def begin(self) -> Span:
        """A run begins."""
        span = Span(self, self._loop)
        self._open.add(span)
        if len(self._open) > 1:
            for each in self._open:
                each.alone = False
        return span

    def ended(self, span: Span) -> None:
        """A span tells that it has ended."""
        self._open.discard(span)

    def waited_s(self) -> float:
        """Seconds that the thread of the loop was ready and waited for a processor; 0 where the system doesn't tell."""
        try:
            return int(self._stat.read_bytes().split()[1]) / 1e9
        except (OSError, IndexError):
            return 0.0
