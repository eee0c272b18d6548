"""A loaded version as the calls that need a task ask it: one prediction, or the steps of a generation."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from msm.http.request import Request
from msm.kit.errors import Internal, MsmError, Unavailable
from msm.runtime.answers import Origin
from msm.runtime.batching import Outputs
from msm.runtime.engine import Engine
from msm.runtime.generation import Generation
from msm.runtime.protocols.tensors import Array
from msm.runtime.validate import check_outputs
from msm.runtime.waiting import Job

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Version:
    """A version that is held here: who answers, and what runs it."""

    source: Origin
    engine: Engine
    streams: Generation | None
    tasks: frozenset[str]


Find = Callable[[Request, str, str], Version]
"""The version that a request is for, which names this model and version itself. Raises Unavailable."""


class _Awaited(Job):
    """A request whose outcome a task waits for."""

    __slots__ = ("outcome",)

    def __init__(self, inputs: dict[str, Array]) -> None:
        super().__init__(inputs)
        self.outcome: asyncio.Future[Outputs] = asyncio.get_running_loop().create_future()

    @property
    def abandoned(self) -> bool:
        return self.outcome.done()

    def succeed(self, outputs: Outputs) -> None:
        if not self.outcome.done():
            self.outcome.set_result(outputs)

    def fail(self, error: MsmError) -> None:
        if not self.outcome.done():
            self.outcome.set_exception(error)
            self.outcome.exception()  # seen: who asked may have gone


def predict(engine: Engine, inputs: dict[str, Array], timeout_s: float | None) -> asyncio.Future[Outputs]:
    """Submit checked inputs now; the outputs later. Cancelling the future drops the request if it still waits."""
    job = _Awaited(inputs)
    engine.submit(job, timeout_s)
    return job.outcome


@asynccontextmanager
async def steps_of(
    version: Version, inputs: dict[str, Array], timeout_s: float | None
) -> AsyncIterator[AsyncIterator[Outputs]]:
    """The checked outputs of each step; a version that does not generate answers in one.

    Raises what `Generation.stream` and `Engine.submit` raise, and Internal for outputs that break the signature.
    """
    streams = version.streams
    if streams is None or "generate" not in version.tasks:
        outcome = predict(version.engine, inputs, timeout_s)
        try:
            yield _single(outcome)
        finally:
            outcome.cancel()
        return
    signature, exact = streams.signature, streams.exact_outputs
    async with streams.stream(lambda model, cancelled: model.generate(inputs, cancelled), timeout_s) as steps:
        yield (check_outputs(signature, step, exact=exact) async for step in steps)


async def _single(outcome: asyncio.Future[Outputs]) -> AsyncIterator[Outputs]:
    yield await outcome


async def answered(work: Coroutine[Any, Any, None], failed: Callable[[MsmError], None]) -> None:
    """Run `work`, which answers a request; `failed` is told of whatever keeps it from that.

    When the client has gone, `failed` does nothing; else a cancellation means that the worker is ending.
    """
    try:
        await work
    except MsmError as error:
        failed(error)
    except asyncio.CancelledError:
        failed(Unavailable("this worker is stopping", reason="stopping"))
        raise
    except Exception:
        log.exception("a request could not be handled")
        failed(Internal("the request could not be handled"))
