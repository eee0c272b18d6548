"""The streams of one loaded version: how many at once, who waits, what is over its time, and what is in flight.

Beside `engine`, which answers requests by one run of the model each. A place is held until nothing of a call runs any
more, so that callers who come and go cannot pile up work in a model that is slow to notice.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Final, Generic, TypeVar

from msm.kit.errors import DeadlineExceeded, Internal, MsmError, Overloaded, Unavailable
from msm.kit.tasks import Tasks
from msm.runtime.blackbox import label_of
from msm.runtime.engine import Counters, Settings, Shell, State
from msm.runtime.feed import Feed, FeedShell, Turns
from msm.runtime.formats.base import Cancelled, LoadedModel, Steps, tasks_of
from msm.runtime.signature import Signature
from msm.runtime.threads import Threads

log = logging.getLogger(__name__)

MAX_STREAMS: Final = 16
MAX_STREAM_S: Final = 3600.0
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Limits:
    """`streams` at once, the others wait; `stream_s` for one of them in all. A single step is bounded by the time-out
    of the version."""

    streams: int = MAX_STREAMS
    stream_s: float = MAX_STREAM_S


@dataclass(frozen=True, slots=True)
class StreamShell:
    """What the versions of a worker share for their streams."""

    shell: Shell
    threads: Threads
    tasks: Tasks


class Stream(Generic[T]):
    """The steps of one call, to be read by one task. A step that is late raises DeadlineExceeded."""

    def __init__(self, feed: Feed[T], step_s: float, deadline: float, late: Callable[[], MsmError]) -> None:
        self._feed = feed
        self._step_s = step_s
        self._deadline = deadline
        self._late = late

    def __aiter__(self) -> Stream[T]:
        return self

    async def __anext__(self) -> T:
        now = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout_at(min(now + self._step_s, self._deadline)):
                return await self._feed.get()
        except TimeoutError as error:
            raise self._late() from error


@dataclass(slots=True)
class _Places:
    """Who runs and who waits. A place that is given back goes to the one who waits longest."""

    limit: int
    taken: int = 0
    waiting: deque[asyncio.Future[None]] = field(default_factory=deque)

    def take(self) -> asyncio.Future[None] | None:
        """None when there was a place; else what to wait for."""
        if self.taken < self.limit:
            self.taken += 1
            return None
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiting.append(waiter)
        return waiter

    def leave(self) -> None:
        while self.waiting:
            waiter = self.waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
        self.taken -= 1

    def give_up(self, waiter: asyncio.Future[None]) -> None:
        """Who waited does not any more, with or without having been given the place."""
        if waiter in self.waiting:
            self.waiting.remove(waiter)
        elif waiter.done() and not waiter.cancelled() and waiter.exception() is None:
            self.leave()


class Generation:
    """Runs the generating calls of one version. All methods are called on the event loop."""

    def __init__(
        self, target: str, model: LoadedModel, settings: Settings, limits: Limits, streams: StreamShell
    ) -> None:
        shell = streams.shell
        self.target = target
        self.signature: Signature = model.signature
        self.accepts = model.accepts
        self.exact_outputs = model.exact_outputs
        self.tasks = tasks_of(model)
        self.counters = Counters(last_used=shell.loop.time())
        self.state: State = "READY"
        self._model: Any = model
        self._settings = settings
        self._limits = limits
        self._loop = shell.loop
        self._threads = streams.threads
        self._places = _Places(limits.streams)
        self._feeds: set[Feed[Any]] = set()
        self._idle = asyncio.Event()
        self._shell = FeedShell(
            shell.loop,
            shell.blackbox,
            label_of(target),
            Turns(settings.max_concurrency),
            lambda work: streams.tasks.start(f"stream of {target}", work),
        )

    @property
    def queued(self) -> int:
        """Calls that wait for a place."""
        return len(self._places.waiting)

    @asynccontextmanager
    async def stream(
        self, make: Callable[[Any, Cancelled], Steps[T]], timeout_s: float | None = None
    ) -> AsyncIterator[Stream[T]]:
        """Run `make(model, cancelled)`, which gives a generator; the block reads its steps.

        `timeout_s` is the caller's own limit for all of it. Raises Unavailable when the version is not served here,
        Overloaded when too many wait, DeadlineExceeded. Leaving the block ends the call.
        """
        if self.state != "READY":
            raise Unavailable(f"version {self.target} is {self.state.lower()} on this worker", reason="not_loaded")
        if self.queued >= self._settings.max_queue:
            raise Overloaded(
                f"{self.queued} requests wait for version {self.target}, which is its limit", reason="queue_full"
            )
        deadline = self._loop.time() + min(self._limits.stream_s, timeout_s or self._limits.stream_s)
        self._entered()
        feed: Feed[T] | None = None
        try:
            await self._place(deadline)
            feed = self._start(make)
            yield Stream(feed, self._settings.timeout_s, deadline, self._late)
        except (Internal, DeadlineExceeded) as error:
            self.counters.failures += 1
            log.warning(error.message, extra={"target": self.target, "reason": error.reason}, exc_info=error.__cause__)
            raise
        finally:
            if feed is None:
                self._left()
            else:
                feed.stop()
                if feed.ended:
                    self._left()
                else:
                    self._look(feed)

    def _start(self, make: Callable[[Any, Cancelled], Steps[T]]) -> Feed[T]:
        model = self._model
        if model is None:
            self._places.leave()
            raise Unavailable(f"version {self.target} was unloaded", reason="not_loaded")
        feed: Feed[T] = Feed(self._shell, lambda cancelled: make(model, cancelled), self._ended)
        self._feeds.add(feed)
        self._threads.submit(feed.run)
        return feed

    async def _place(self, deadline: float) -> None:
        waiter = self._places.take()
        if waiter is None:
            return
        try:
            async with asyncio.timeout_at(min(deadline, self._loop.time() + self._settings.timeout_s)):
                await waiter
        except TimeoutError as error:
            self._places.give_up(waiter)
            raise self._late() from error
        except BaseException:
            self._places.give_up(waiter)
            raise

    def _late(self) -> MsmError:
        return DeadlineExceeded(f"version {self.target} did not answer in time")

    def _entered(self) -> None:
        self.counters.requests += 1
        self.counters.in_flight += 1
        self.counters.last_used = self._loop.time()

    def _left(self) -> None:
        self.counters.in_flight -= 1
        self.counters.last_used = self._loop.time()
        if not self.counters.in_flight:
            self._idle.set()

    def _ended(self, feed: Feed[Any]) -> None:
        """Nothing of a call runs any more."""
        self._feeds.discard(feed)
        self._places.leave()
        if feed.stuck:
            log.warning("a step that was stuck has ended", extra={"target": self.target})
            if self.state == "HUNG" and not any(other.stuck for other in self._feeds):
                self.state = "READY"
        if feed.stopped:  # else it is still being read
            self._left()

    def _look(self, feed: Feed[Any]) -> None:
        """A call that nobody waits for must end by itself within the time of one step, or it is stuck."""
        if feed.ended or feed.stuck:
            return
        started = feed.step_started
        ran = 0.0 if started is None else monotonic() - started
        if started is not None and ran >= self._settings.timeout_s:
            feed.stuck = True
            self._threads.write_off()
            if self.state == "READY":
                self.state = "HUNG"
            log.error("a step of the model is stuck", extra={"target": self.target, "seconds": round(ran, 1)})
            self._refuse_waiting("hung")
            return
        self._loop.call_later(max(0.01, self._settings.timeout_s - ran), self._look, feed)

    def _refuse_waiting(self, why: str) -> None:
        waiting = self._places.waiting
        while waiting:
            waiter = waiting.popleft()
            if not waiter.done():
                error = Unavailable(f"version {self.target} is {why} on this worker", reason="not_loaded")
                waiter.set_exception(error)

    async def drain(self, drain_s: float) -> None:
        """Take no new calls; return when all have ended, after `drain_s` with the rest of them failed."""
        self.state = "UNLOADING"
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(drain_s):
                while self.counters.in_flight:
                    self._idle.clear()
                    await self._idle.wait()
        self._refuse_waiting("unloaded")
        for feed in list(self._feeds):
            feed.fail(Unavailable(f"version {self.target} was unloaded", reason="not_loaded"))

    def close(self) -> None:
        """Let go of the model. After `drain`."""
        self._model = None
