"""Threads for work that must not hold up the event loop: model loads and slow predictions.

Unlike the executors of the standard library these threads do not keep the process from ending, and one that a model
will not give back can be written off: then another takes its place.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
Work = Callable[[], None]


class Threads:
    """At most `limit` threads (beyond those written off), started when they are needed. Used from one event loop."""

    def __init__(self, limit: int, name: str) -> None:
        self._limit = limit
        self._name = name
        self._work: queue.SimpleQueue[Work] = queue.SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._started = 0

    def submit(self, work: Work) -> None:
        """Run `work`, which must not raise, in a thread as soon as one is free."""
        self._work.put(work)
        if not self._idle.acquire(blocking=False):
            self._start_one()

    def _start_one(self) -> None:
        if self._started < self._limit:
            self._started += 1
            name = f"{self._name}-{self._started}"
            threading.Thread(target=self._serve, name=name, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                work = self._work.get_nowait()
            except queue.Empty:
                self._idle.release()
                work = self._work.get()
            work()
            del work

    def write_off(self) -> None:
        """A thread is stuck: allow another one in its place."""
        self._limit += 1
        if not self._work.empty():
            self._start_one()

    async def call(self, function: Callable[[], T]) -> T:
        """The result of `function`, run in a thread. If the caller is cancelled the thread still goes on."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def work() -> None:
            try:
                result = function()
            except BaseException as error:  # also SystemExit of a model must reach the caller
                outcome: tuple[bool, object] = (False, error)
            else:
                outcome = (True, result)
            with contextlib.suppress(RuntimeError):  # the loop is closed: the process is ending
                loop.call_soon_threadsafe(_settle, future, outcome)

        self.submit(work)
        return await future


def _settle(future: asyncio.Future[T], outcome: tuple[bool, object]) -> None:
    if future.done():
        return
    good, value = outcome
    if good:
        future.set_result(value)  # type: ignore[arg-type]  # the value of the same call
    elif isinstance(value, Exception):
        future.set_exception(value)
    else:
        future.set_exception(RuntimeError(f"the work ended by {type(value).__name__}"))
