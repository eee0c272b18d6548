"""Every task has an owner: a group that knows their names, reports their failures and ends them together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Self

FailureHandler = Callable[[str, BaseException], None]


class Tasks:
    """Owns background tasks. Leaving the context cancels what still runs and waits until all have ended.

    A task that fails is reported to `on_failure` with its name; it does not end the others, because a node that
    lost one loop must go on serving. Loops that must live for ever restart themselves with `backoff_s`.
    """

    def __init__(self, on_failure: FailureHandler) -> None:
        self._on_failure = on_failure
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closing = False

    def start(self, name: str, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run `work` until it ends or the group is closed."""
        if self._closing:
            work.close()
            raise RuntimeError(f"task {name!r} was started while its owner is closing")
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (failure := task.exception()) is not None:
            self._on_failure(task.get_name(), failure)

    async def close(self) -> None:
        """Cancel every task and wait for the end of each. May be called twice."""
        self._closing = True
        while self._tasks:
            running = list(self._tasks)
            for task in running:
                task.cancel()
            await asyncio.wait(running)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, failure: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def backoff_s(attempt: int, *, base_s: float = 0.1, most_s: float = 10.0) -> float:
    """Exponential back-off without jitter: base, 2 base, 4 base … up to `most_s`. `attempt` counts from 0."""
    return min(most_s, base_s * 2.0 ** min(attempt, 30))
