"""One loaded version: its queue, its batches, its counters.

Stands between the protocols, which submit jobs with checked inputs, and the model. Runs the model on the event loop
while that is known to be fast, else in a thread. Knows no protocol: a job is told its outcome.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from time import monotonic, thread_time
from typing import Literal

from msm.kit.errors import DeadlineExceeded, Internal, MsmError, Overloaded, Unavailable
from msm.runtime import batching
from msm.runtime.batching import Limits
from msm.runtime.blackbox import BlackBox, label_of
from msm.runtime.compute import Compute
from msm.runtime.execution import FAST_S, Bounds, Execution, Profile, choose
from msm.runtime.formats.base import LoadedModel
from msm.runtime.lag import LagMeter, Span
from msm.runtime.solo import SoloModel
from msm.runtime.threads import Threads
from msm.runtime.waiting import Job, Outcome, Waiting

log = logging.getLogger(__name__)

TIMEOUT_S = 30.0
_SPLITS_UNTIL_ALONE = 3
_LIMITS = Limits()
_LOOK_EVERY = 8  # runs after which the way to run the version is chosen anew

State = Literal["READY", "UNLOADING", "HUNG"]


@dataclass(frozen=True, slots=True)
class Settings:
    """How a version is run. `timeout_s` bounds a request from its arrival and a single run of the model."""

    timeout_s: float = TIMEOUT_S
    max_queue: int = 2048
    max_concurrency: int = 1
    batching: bool = True
    limits: Limits = _LIMITS
    predict_s: float | None = None
    may_move: bool = False


@dataclass(slots=True)
class Counters:
    """What the index tells of a version. `in_flight` counts what is accepted and not answered, waiting ones too."""

    requests: int = 0
    failures: int = 0
    in_flight: int = 0
    last_used: float = 0.0


@dataclass(slots=True, eq=False)
class _Run:
    """A batch given to a thread. `started` is None until a thread was free for it."""

    jobs: list[Job]
    span: Span | None
    started: float | None = None
    computed_s: float = 0.0
    elapsed_s: float = 0.0
    stuck: bool = False

    def stuck_at(self, limit_s: float) -> float | None:
        """When this run must be called stuck, if it can be by now."""
        return None if self.stuck or self.started is None else self.started + limit_s


@dataclass(frozen=True, slots=True)
class Shell:
    """What the versions of a worker share."""

    loop: asyncio.AbstractEventLoop
    threads: Threads
    blackbox: BlackBox
    lag: LagMeter


class Engine:
    """Runs one version. All methods are called on the event loop."""

    def __init__(
        self,
        target: str,
        model: LoadedModel,
        settings: Settings,
        shell: Shell,
        on_move: Callable[[Engine], None] = lambda engine: None,
    ) -> None:
        """`on_move` is called once when the model should have a process of its own; answer it with `move`."""
        self.target = target
        self.signature = model.signature
        self.accepts = model.accepts
        self.settings = settings
        self.counters = Counters(last_used=shell.loop.time())
        self.state: State = "READY"
        self._compute = Compute(target, model, joinable=settings.batching and model.signature.row_wise)
        self._shell = shell
        self._on_move = on_move
        self._label = label_of(target)
        self._queue = Waiting()
        self._runs: list[_Run] = []
        self._uniform = model.signature.fixed_rows
        self._splits = 0
        self._scheduled = False
        self._profile = Profile(settings.predict_s)
        self._bounds = Bounds(settings.limits.rows, settings.max_concurrency, model.may_block, settings.may_move)
        self._execution = choose(self._profile, self._bounds)
        self._timer: asyncio.TimerHandle | None = None
        self._idle = asyncio.Event()

    @property
    def execution(self) -> Execution:
        """How the version is run at the moment, and why."""
        return self._execution

    @property
    def model(self) -> LoadedModel | None:
        """The model, None after `close`."""
        return self._compute.model

    @property
    def queued(self) -> int:
        """Requests that wait for the model."""
        return len(self._queue)

    def submit(self, job: Job, timeout_s: float | None = None) -> None:
        """Queue a job with checked inputs; its outcome is told to it later, at the latest after the timeout.

        Raises Unavailable when the version is not (or no longer) served here, Overloaded when the queue is full.
        """
        if self.state != "READY":
            raise Unavailable(f"version {self.target} is {self.state.lower()} on this worker", reason="not_loaded")
        if len(self._queue) >= self.settings.max_queue:
            full = Overloaded(
                f"{len(self._queue)} requests wait for version {self.target}, which is its limit", reason="queue_full"
            )
            given_up = self._queue.give_up_for(job)
            if given_up is None:
                raise full
            self._fail(given_up, full)
        now = self._shell.loop.time()
        own = self.settings.timeout_s
        job.deadline = now + (own if timeout_s is None or timeout_s > own else timeout_s)
        if self._compute.joinable:
            job.shape = batching.shape_of(job.inputs, uniform=self._uniform)
        self.counters.requests += 1
        self.counters.in_flight += 1
        self.counters.last_used = now
        self._queue.put(job)
        if self._runs:
            self._watch(job.deadline)
        if not self._scheduled and len(self._runs) < self._execution.concurrency:
            self._scheduled = True
            self._shell.loop.call_soon(self._flush)

    def move(self, model: LoadedModel) -> LoadedModel | None:
        """Go on with `model`, which calls a process of its own; returns the one used so far. None: it was unloaded."""
        before = self._compute.model
        if before is None:
            return None
        self._compute.model = model
        self._bounds = replace(self._bounds, moved=True)
        self._execution = choose(self._profile, self._bounds)
        return before

    def _flush(self) -> None:
        """Run what is waiting: one batch on the loop, or as many as may run at once in threads."""
        self._scheduled = False
        while self._queue and len(self._runs) < self._execution.concurrency and self.state != "HUNG":
            jobs = self._take()
            if not jobs:
                continue
            if self._execution.where == "loop":
                self._run_here(jobs)
                if self._queue and not self._scheduled:  # let other versions have the loop in between
                    self._scheduled = True
                    self._shell.loop.call_soon(self._flush)
                return
            self._run_in_thread(jobs)

    def _take(self) -> list[Job]:
        queue = self._queue
        limits = Limits(self._execution.rows, self.settings.limits.bytes)
        count = batching.cut((job.shape for job in queue), limits)
        jobs: list[Job] = []
        now = self._shell.loop.time()
        for _ in range(count):
            job = queue.take()
            if job.abandoned:
                self._settle(job)
            elif job.deadline <= now:
                self._fail(job, self._late())
            else:
                jobs.append(job)
        return jobs

    def _run_here(self, jobs: list[Job]) -> None:
        box = self._shell.blackbox
        slot = box.enter(self._label)
        started = thread_time()
        outcomes, split = self._compute.outcomes(jobs)
        took = thread_time() - started
        box.leave(slot)
        self._learn(jobs, split, took)
        self._deliver(jobs, outcomes)

    def _run_in_thread(self, jobs: list[Job]) -> None:
        loop = self._shell.loop
        box = self._shell.blackbox
        run = _Run(jobs, self._shell.lag.begin() if self._bounds.may_move else None)
        self._runs.append(run)
        self._watch(min(job.deadline for job in jobs))

        def work() -> None:
            run.started = monotonic()  # the clock of the loop, which itself may be read by its own thread only
            slot = box.enter(self._label)
            started = thread_time()
            outcomes, split = self._compute.outcomes(jobs)
            run.computed_s = thread_time() - started
            run.elapsed_s = monotonic() - run.started
            box.leave(slot)
            with contextlib.suppress(RuntimeError):  # the loop is closed: the process is ending
                loop.call_soon_threadsafe(self._ended, run, outcomes, split)

        self._shell.threads.submit(work)

    def _ended(self, run: _Run, outcomes: list[Outcome], split: bool) -> None:
        self._runs.remove(run)
        held_s = None if run.span is None else run.span.end()
        if held_s is not None:
            self._profile.held(held_s)
        self._learn(run.jobs, split, run.computed_s, run.elapsed_s)
        if run.stuck and self.state == "HUNG" and not any(other.stuck for other in self._runs):
            log.warning("a run that was stuck has ended", extra={"target": self.target, "seconds": run.elapsed_s})
            self.state = "READY"
        self._deliver(run.jobs, outcomes)
        self._flush()

    def _learn(self, jobs: Sequence[Job], split: bool, computed_s: float, elapsed_s: float | None = None) -> None:
        """Take in what a run cost: in processor time, because waiting for other work says nothing of a model."""
        profile = self._profile
        rows = 0 if split else sum(job.shape.rows for job in jobs)
        profile.learn(rows, computed_s, elapsed_s)
        if profile.runs < _LOOK_EVERY or profile.runs % _LOOK_EVERY == 0 or computed_s > FAST_S:
            self._execution = choose(profile, self._bounds)
            if self._execution.where == "process" and not self._bounds.moved:
                self._bounds = replace(self._bounds, may_move=False)
                self._on_move(self)
        if split:
            self._splits += 1
            if self._splits >= _SPLITS_UNTIL_ALONE and self._compute.joinable:
                log.warning("batches fail where single requests do not: batching is off", extra={"target": self.target})
                self._compute.joinable = False

    def _deliver(self, jobs: Sequence[Job], outcomes: Sequence[Outcome]) -> None:
        for job, outcome in zip(jobs, outcomes, strict=True):
            if job.settled:
                continue
            if isinstance(outcome, MsmError):
                self._fail(job, outcome)
                continue
            self._settle(job)
            try:
                job.succeed(outcome)
            except MsmError as error:
                self._report(job, error)

    def _fail(self, job: Job, error: MsmError) -> None:
        self._settle(job)
        self._report(job, error)

    def _report(self, job: Job, error: MsmError) -> None:
        if isinstance(error, Internal | DeadlineExceeded):
            self.counters.failures += 1
            log.warning(error.message, extra={"target": self.target, "reason": error.reason}, exc_info=error.__cause__)
        job.fail(error)

    def _settle(self, job: Job) -> None:
        job.settled = True
        counters = self.counters
        counters.in_flight -= 1
        counters.last_used = self._shell.loop.time()
        if not counters.in_flight:
            self._idle.set()

    def _watch(self, when: float) -> None:
        """See that `_sweep` runs at `when`, or before."""
        timer = self._timer
        if timer is not None:
            if timer.when() <= when:
                return
            timer.cancel()
        self._timer = self._shell.loop.call_at(when, self._sweep)

    def _sweep(self) -> None:
        """Fail what is over its deadline; a run that is over the timeout is stuck."""
        self._timer = None
        now = self._shell.loop.time()
        limit = self.settings.timeout_s
        for run in self._runs:
            for job in run.jobs:
                if not job.settled and job.deadline <= now:
                    self._fail(job, self._late())
            stuck_at = run.stuck_at(limit)
            if stuck_at is not None and stuck_at <= now:
                self._mark_stuck(run)
        for job in [job for job in self._queue if job.deadline <= now]:
            self._queue.remove(job)
            self._fail(job, self._late())
        pending = [job.deadline for run in self._runs for job in run.jobs if not job.settled]
        pending += [when for run in self._runs if (when := run.stuck_at(limit)) is not None]
        pending += [job.deadline for job in self._queue]
        if pending:
            self._watch(min(pending))

    def _late(self) -> DeadlineExceeded:
        return DeadlineExceeded(f"version {self.target} did not answer in time")

    def _mark_stuck(self, run: _Run) -> None:
        run.stuck = True
        if isinstance(self._compute.model, SoloModel):  # its process can be ended, and with that the run
            self._compute.model.abort()
            return
        self._shell.threads.write_off()
        if self.state == "READY":
            self.state = "HUNG"
        log.error("a run of the model is stuck", extra={"target": self.target, "timeout_s": self.settings.timeout_s})
        self._drop_queue("hung")

    def _drop_queue(self, why: str) -> None:
        while self._queue:
            error = Unavailable(f"version {self.target} is {why} on this worker", reason="not_loaded")
            self._fail(self._queue.take(), error)

    async def drain(self, drain_s: float) -> None:
        """Take no new jobs; return when all are answered, after `drain_s` with the rest of them failed."""
        self.state = "UNLOADING"
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(drain_s):
                while self.counters.in_flight:
                    self._idle.clear()
                    await self._idle.wait()
        self._drop_queue("unloaded")
        for run in self._runs:
            for job in run.jobs:
                if not job.settled:
                    self._fail(job, Unavailable(f"version {self.target} was unloaded", reason="not_loaded"))

    def close(self) -> LoadedModel | None:
        """Give the model away, so that the caller can let its memory go. After `drain`."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        model, self._compute.model = self._compute.model, None
        return model
