"""One generating call of a model: from its steps, in a thread or on the loop, to the one task that reads them.

A plain generator gets a thread to itself for as long as it lives, because libraries keep state by thread (whether
gradients are recorded, a connection, a stream of a GPU). It is never more than `WINDOW` steps ahead of its reader, so a
slow reader costs no memory. Steps of different calls of one version take turns, as many at once as the version allows.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from dataclasses import dataclass
from time import monotonic
from typing import Any, Final, Generic, TypeVar

from msm.kit.errors import Internal, MsmError
from msm.runtime.blackbox import BlackBox
from msm.runtime.formats.base import Cancelled, Steps, first_line

log = logging.getLogger(__name__)

WINDOW: Final = 16
T = TypeVar("T")
_END: Final = object()


class Turns:
    """A lock that `limit` threads may hold, given on in the order in which it was asked for.

    The standard library's semaphore lets who gives it back have it again at once: one stream would starve the others.
    """

    def __init__(self, limit: int) -> None:
        self._free = limit
        self._lock = threading.Lock()
        self._waiting: deque[threading.Lock] = deque()

    def take(self) -> None:
        """Wait for a turn."""
        with self._lock:
            if self._free:
                self._free -= 1
                return
            turn = threading.Lock()
            turn.acquire()
            self._waiting.append(turn)
        turn.acquire()

    def give(self) -> None:
        """The turn is over."""
        with self._lock:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._free += 1


class Blamed(Generic[T]):
    """An awaitable that names its version in the black box while its own code runs, and not while it waits."""

    def __init__(self, work: Awaitable[T], box: BlackBox, label: bytes) -> None:
        self._work = work.__await__()
        self._box = box
        self._label = label

    def __await__(self) -> Generator[Any, Any, T]:
        step: Callable[[], Any] = lambda: next(self._work)  # noqa: E731 - what to resume with changes each time
        while True:
            slot = self._box.enter(self._label)
            try:
                waits_for = step()
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            finally:
                self._box.leave(slot)
            try:
                value = yield waits_for
            except BaseException as error:
                step = _throwing(self._work, error)
            else:
                step = _sending(self._work, value)


def _throwing(work: Generator[Any, Any, T], error: BaseException) -> Callable[[], Any]:
    return lambda: work.throw(error)


def _sending(work: Generator[Any, Any, T], value: Any) -> Callable[[], Any]:
    return lambda: next(work) if value is None else work.send(value)


@dataclass(frozen=True, slots=True)
class FeedShell:
    """What the feeds of one version share. `pump` starts a task for an asynchronous generator."""

    loop: asyncio.AbstractEventLoop
    blackbox: BlackBox
    label: bytes
    turns: Turns
    pump: Callable[[Any], asyncio.Task[None]]


class Feed(Generic[T]):
    """The steps of one call. `run` is for a thread; all else for the loop.

    `make` is called in the thread and gives the generator. `on_end` is called when nothing of the call runs any more.
    """

    def __init__(
        self, shell: FeedShell, make: Callable[[Cancelled], Steps[T]], on_end: Callable[[Feed[T]], None]
    ) -> None:
        self._shell = shell
        self._make: Callable[[Cancelled], Steps[T]] | None = make
        self._on_end = on_end
        self._items: deque[T] = deque()
        self._room = threading.Semaphore(WINDOW)
        self._told = False
        self.stopped = False
        self._error: MsmError | None = None
        self._failed_by: MsmError | None = None  # from outside; the thread may still run
        self._waiter: asyncio.Future[None] | None = None
        self._has_room: asyncio.Future[None] | None = None
        self._pump: asyncio.Task[None] | None = None
        self.step_started: float | None = None  # by `monotonic`, while the model's code runs in the thread
        self.stuck = False
        self.ended = False

    # ---- the reader, on the loop

    async def get(self) -> T:
        """The next step. Raises StopAsyncIteration after the last one, or the error that ended the call."""
        while True:
            if self._failed_by is not None:
                raise self._failed_by
            if self._items:
                self._room.release()
                _wake(self._has_room)
                return self._items.popleft()
            if self.ended:
                if self._error is not None:
                    raise self._error
                raise StopAsyncIteration
            self._waiter = self._shell.loop.create_future()
            await self._waiter

    def stop(self) -> None:
        """Nobody reads any more: the model is told, and closed after the step that runs."""
        self.stopped = True
        self._room.release()
        self._items.clear()
        if self._pump is not None:
            self._pump.cancel()

    def fail(self, error: MsmError) -> None:
        """Have the reader get `error` now, whatever the model does."""
        self._failed_by = error
        _wake(self._waiter)

    def _cancelled(self) -> bool:
        return self.stopped

    # ---- the thread

    def run(self) -> None:
        """All of a plain generator, or the beginning of an asynchronous one."""
        error: BaseException | None = None
        make, self._make = self._make, None
        try:
            if not self.stopped and make is not None:
                source = self._step(lambda: make(self._cancelled))
                if hasattr(source, "__anext__"):
                    self._tell(self._go_on_here, source)
                    return
                self._iterate(source)
        except BaseException as failure:  # also SystemExit: a model must not end the worker
            error = failure
        self._tell(self._end, error)

    def _iterate(self, source: Iterator[T]) -> None:
        try:
            while True:
                self._room.acquire()
                if self.stopped:
                    return
                item = self._step(lambda: next(source, _END))
                if item is _END:
                    return
                self._items.append(item)
                if not self._told:
                    self._told = True
                    self._tell(self._arrived)
        finally:
            close = getattr(source, "close", None)
            if close is not None:
                self._step(close)

    def _step(self, work: Callable[[], Any]) -> Any:
        shell = self._shell
        shell.turns.take()
        self.step_started = monotonic()
        slot = shell.blackbox.enter(shell.label)
        try:
            return work()
        finally:
            shell.blackbox.leave(slot)
            self.step_started = None
            shell.turns.give()

    def _tell(self, callback: Callable[..., None], *values: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the process is ending
            self._shell.loop.call_soon_threadsafe(callback, *values)

    # ---- what the thread tells the loop

    def _arrived(self) -> None:
        self._told = False
        _wake(self._waiter)

    def _end(self, error: BaseException | None) -> None:
        if error is not None and not self.stopped:
            self._error = model_error(error)
        self.ended = True
        _wake(self._waiter)
        self._on_end(self)

    def _go_on_here(self, source: AsyncIterator[T]) -> None:
        self._pump = self._shell.pump(self._read(source))
        if self.stopped:
            self._pump.cancel()

    async def _read(self, source: AsyncIterator[T]) -> None:
        """As `_iterate`, for an asynchronous generator."""
        shell = self._shell
        error: BaseException | None = None
        try:
            while True:
                while not self._room.acquire(blocking=False):
                    self._has_room = shell.loop.create_future()
                    await self._has_room
                try:
                    item = await Blamed(source.__anext__(), shell.blackbox, shell.label)
                except StopAsyncIteration:
                    break
                self._items.append(item)
                self._arrived()
        except asyncio.CancelledError:
            if not self.stopped:
                error = Internal("the model cancelled itself", reason="model_error")
        except BaseException as failure:
            error = failure
        finally:
            close = getattr(source, "aclose", None)
            if close is not None:
                try:
                    await Blamed(close(), shell.blackbox, shell.label)
                except BaseException:  # the outcome of the stream is known; only its end went wrong
                    log.warning("the generator of the model failed when it was closed", exc_info=True)
            self._end(error)


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)


def model_error(error: BaseException) -> MsmError:
    """What a caller is told of an exception that a model raised."""
    if isinstance(error, MsmError):
        return error
    told = Internal(f"the model raised {first_line(error)}", reason="model_error")
    told.__cause__ = error
    return told
