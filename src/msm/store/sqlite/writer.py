"""The one thread that writes: it takes what has queued up, does it in one database transaction, and answers.

While one commit waits for the disk, the next batch gathers: many writers share one sync (group commit). Each job has
a savepoint of its own, so that a refused one leaves its neighbours alone. Nobody is answered before the commit.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import apsw

from msm.store.errors import StoreError, StoreUnavailable
from msm.store.sqlite import rows
from msm.store.sqlite.database import translated

T = TypeVar("T")
Work = Callable[[apsw.Connection, int], tuple[T, int]]  # (connection, revision) → (answer, revision after it)

MAX_BATCH = 256
IDLE_S = 1.0  # without writes for this long, the WAL is folded into the database


@dataclass(frozen=True, slots=True)
class _Job:
    work: Work[Any]
    answer: asyncio.Future[Any]


@dataclass(frozen=True, slots=True)
class _Outcome:
    job: _Job
    result: Any = None
    failure: Exception | None = None


class _Spoiled(Exception):
    """SQLite rolled back the whole batch because of one statement, before the commit."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


class Writer:
    """Owns the writing connection while it runs. `lock` is held during each batch, for those who share it.

    `on_commit(revision)` is called on the event loop after each batch that wrote, before its answers are given.
    """

    def __init__(self, connection: apsw.Connection, lock: threading.Lock, on_commit: Callable[[int], None]) -> None:
        self._connection = connection
        self._lock = lock
        self._on_commit = on_commit
        self._loop = asyncio.get_running_loop()
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._stopping = False
        # daemon: a store that nobody closed must not keep the process from ending; commits are atomic
        self._thread = threading.Thread(target=self._run, name="msm-store-write", daemon=True)
        self._thread.start()

    def submit(self, work: Work[T]) -> asyncio.Future[T]:
        """Queue one job; jobs are done in this order. Cancelling the future does not undo the work."""
        if self._stopping:
            raise StoreUnavailable("the store is closed")
        answer: asyncio.Future[T] = self._loop.create_future()
        self._queue.put(_Job(work, answer))
        return answer

    def stop(self) -> None:
        """Finish what is queued, then end the thread; `join` waits for it."""
        if not self._stopping:
            self._stopping = True
            self._queue.put(None)

    def join(self) -> None:
        self._thread.join()

    def _run(self) -> None:
        dirty = False
        while True:
            try:
                first = self._queue.get(timeout=IDLE_S if dirty else None)
            except queue.Empty:
                self._fold_wal()
                dirty = False
                continue
            batch, stop = self._gather(first)
            if batch:
                self._answer(*self._commit(batch))
                dirty = True
            if stop:
                return

    def _gather(self, first: _Job | None) -> tuple[list[_Job], bool]:
        batch: list[_Job] = []
        job = first
        while job is not None:
            batch.append(job)
            if len(batch) == MAX_BATCH:
                return batch, False
            try:
                job = self._queue.get_nowait()
            except queue.Empty:
                return batch, False
        return batch, True

    def _commit(self, batch: Sequence[_Job]) -> tuple[list[_Outcome], int | None]:
        """Do the batch; if one job spoils it for all (disk full), do them one by one."""
        with self._lock:
            try:
                return self._attempt(batch)
            except _Spoiled as spoiled:
                if len(batch) == 1:
                    return [_Outcome(batch[0], failure=_with_cause(spoiled.cause))], None
            except apsw.Error as failure:
                # Even rolling back failed: the thread lives on to say so, and each later batch will say it too.
                return [_Outcome(job, failure=_with_cause(failure, committing=True)) for job in batch], None
        outcomes: list[_Outcome] = []
        reached = None
        for job in batch:
            done, revision = self._commit([job])
            outcomes += done
            reached = revision or reached
        return outcomes, reached

    def _attempt(self, batch: Sequence[_Job]) -> tuple[list[_Outcome], int | None]:
        """One database transaction; returns the outcomes and the revision reached, None when nothing was written."""
        db = self._connection
        try:
            db.execute("BEGIN IMMEDIATE")
            before = revision = rows.revision_of(db)
        except apsw.Error as failure:
            return self._all_failed(batch, failure)
        outcomes = []
        for job in batch:
            outcome, revision = self._do(job, revision)
            outcomes.append(outcome)
        try:
            if revision != before:
                rows.set_revision(db, revision)
        except apsw.Error as failure:
            return self._all_failed(batch, failure)
        try:
            db.execute("COMMIT")
        except apsw.Error as failure:
            return self._all_failed(batch, failure, committing=True)
        return outcomes, revision if revision != before else None

    def _do(self, job: _Job, revision: int) -> tuple[_Outcome, int]:
        db = self._connection
        try:
            db.execute("SAVEPOINT job")
            result, after = job.work(db, revision)
            db.execute("RELEASE job")
        except Exception as failure:  # whatever it is, it is the caller's answer, and the thread must live on
            if not db.in_transaction:
                raise _Spoiled(failure) from failure
            db.execute("ROLLBACK TO job; RELEASE job")
            return _Outcome(job, failure=_with_cause(failure)), revision
        return _Outcome(job, result), after

    def _all_failed(
        self, batch: Sequence[_Job], failure: apsw.Error, *, committing: bool = False
    ) -> tuple[list[_Outcome], None]:
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")
        return [_Outcome(job, failure=_with_cause(failure, committing=committing)) for job in batch], None

    def _answer(self, outcomes: Sequence[_Outcome], revision: int | None) -> None:
        try:
            self._loop.call_soon_threadsafe(self._deliver, outcomes, revision)
        except RuntimeError:
            # The event loop was closed with the store still open: there is nobody left to answer.
            self._stopping = True

    def _deliver(self, outcomes: Sequence[_Outcome], revision: int | None) -> None:
        if revision is not None:
            self._on_commit(revision)
        for outcome in outcomes:
            answer = outcome.job.answer
            if answer.done():  # its caller was cancelled
                continue
            if outcome.failure is None:
                answer.set_result(outcome.result)
            else:
                answer.set_exception(outcome.failure)

    def _fold_wal(self) -> None:
        with self._lock:
            try:
                self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            except apsw.Error:
                # Housekeeping: a reader is in the way or the disk is full; the next commit tells if it matters.
                return


def _with_cause(failure: Exception, *, committing: bool = False) -> Exception:
    if isinstance(failure, StoreError) or not isinstance(failure, apsw.Error):
        return failure
    error = translated(failure, committing=committing)
    error.__cause__ = failure
    return error
