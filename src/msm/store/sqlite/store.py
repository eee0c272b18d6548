"""The embedded store: `Store` over one SQLite database.

Writes go to the writer thread and are answered when they are on disk. Point reads run on the event loop (20 µs; a
hop to a thread costs five times that), long ones on a reading thread. Watches read the log, woken by commits.
"""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import apsw

from msm.kit.clock import Clock
from msm.kit.tasks import Tasks
from msm.observe.logs import get_logger
from msm.store.errors import InvalidTxn, LeaseGone, StoreError, StoreUnavailable
from msm.store.rules import check_apply, check_key, check_txn
from msm.store.sqlite import rows
from msm.store.sqlite.database import (
    Ownership,
    integrity_problems,
    mapped_errors,
    open_reader,
    open_writer,
)
from msm.store.sqlite.writer import Work, Writer
from msm.store.values import Change, Listing, Reading, Txn, TxnResult

T = TypeVar("T")

MEMORY = ":memory:"
INLINE_KEYS = 64  # reads of up to this many keys or rows run on the event loop: below a quarter of a millisecond
BACKLOG_CHANGES = 5_000  # of one batch for a watch that has to catch up
FORGET_ROWS = 5_000  # freed by one job of a compaction, so that writes wait for it no longer than for one another
RETRY_S = 1.0


@dataclass(frozen=True, slots=True)
class _Source:
    """A connection to read from. The lock matters in memory only, where the writer's connection is the only one."""

    connection: apsw.Connection
    lock: threading.Lock

    def read(self, work: Callable[[apsw.Connection], T]) -> T:
        """Run `work` on one snapshot."""
        with self.lock, mapped_errors():
            self.connection.execute("BEGIN")
            try:
                return work(self.connection)
            finally:
                self.connection.execute("ROLLBACK")  # nothing was written, and unlike COMMIT it always ends the read


@dataclass(frozen=True, slots=True)
class _Files:
    """What `open` opened and `close` closes."""

    owner: Ownership | None
    writing: apsw.Connection
    inline: _Source
    long: _Source
    leases: tuple[tuple[int, float], ...]
    revision: int

    def close(self) -> None:
        for connection in (self.inline.connection, self.long.connection, self.writing):
            connection.close()
        if self.owner is not None:
            self.owner.release()


class SqliteStore:
    """`msm.store.base.Store` in one file. Belongs to the event loop that opened it; not thread-safe beyond it."""

    def __init__(self, files: _Files, clock: Clock, threads: ThreadPoolExecutor) -> None:
        """Use `open`."""
        self._files = files
        self._clock = clock
        self._threads = threads
        self._changed = asyncio.Event()
        self._revision = files.revision
        self._closed = False
        self._deadlines: dict[int, float] = {}  # the writer thread's; monotonic, of leases that are in the table
        self._tasks = Tasks(_report)
        self._writer = Writer(files.writing, files.inline.lock, self._committed)
        now = clock.monotonic()
        for lease, ttl_s in files.leases:
            self._deadlines[lease] = now + ttl_s
            self._tasks.start(f"lease {lease}", self._expire(lease))

    @classmethod
    async def open(cls, path: Path | str, clock: Clock, *, quota_bytes: int | None = None) -> SqliteStore:
        """Open or create the database at `path` (MEMORY: one that ends with the store).

        Only one process may have it open: a second gets StoreInUse. `quota_bytes` bounds the file: past it writes
        raise NoSpace. Raises StoreUnavailable when the place cannot be used, Damaged when it is no store of ours.
        """
        threads = ThreadPoolExecutor(1, thread_name_prefix="msm-store-read")
        loop = asyncio.get_running_loop()
        database = None if str(path) == MEMORY else Path(path)
        try:
            files = await loop.run_in_executor(threads, _open_files, database, quota_bytes)
        except BaseException:
            threads.shutdown()
            raise
        return cls(files, clock, threads)

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        await self._tasks.close()
        self._writer.stop()
        self._wake()
        await asyncio.get_running_loop().run_in_executor(self._threads, self._writer.join)
        self._threads.shutdown()
        self._files.close()

    async def get(self, key: bytes) -> Reading:
        return (await self.get_many((key,)))[0]

    async def get_many(self, keys: Sequence[bytes]) -> tuple[Reading, ...]:
        for key in keys:
            check_key(key)
        return await self._read(lambda db: rows.read_keys(db, keys), short=len(keys) <= INLINE_KEYS)

    async def list(
        self, prefix: bytes, *, revision: int | None = None, limit: int | None = None, after: bytes | None = None
    ) -> Listing:
        short = limit is not None and limit <= INLINE_KEYS and revision is None
        return await self._read(lambda db: rows.read_list(db, prefix, revision, limit, after), short=short)

    async def txn(self, txn: Txn) -> TxnResult:
        check_txn(txn)
        return await self._write(txn)

    async def apply_all(self, txn: Txn) -> TxnResult:
        """One database transaction and one revision, whatever its size."""
        check_apply(txn)
        return await self._write(txn)

    async def watch(self, prefix: bytes, from_revision: int) -> AsyncIterator[tuple[Change, ...]]:
        start = from_revision
        behind = self._revision - start >= INLINE_KEYS
        while True:
            changed = self._changed  # taken before reading, so that no commit in between is missed
            most = BACKLOG_CHANGES if behind else INLINE_KEYS
            read = partial(rows.read_changes, prefix=prefix, start=start, limit=most, oversize=behind)
            batch, start, behind = await self._read(read, short=not behind)
            if batch:
                yield batch
            elif not behind:
                await changed.wait()
                behind = self._revision - start >= INLINE_KEYS

    async def grant(self, ttl_s: float, *, lease: int | None = None) -> int:
        if not 0 < ttl_s < float("inf"):
            raise InvalidTxn(f"a lease lives for more than 0 seconds, not {ttl_s}")
        id_ = lease or secrets.randbits(62) + 1

        def work(db: apsw.Connection, revision: int) -> tuple[int, int]:
            if not rows.lease_exists(db, id_):
                rows.add_lease(db, id_, ttl_s)
                self._deadlines[id_] = self._clock.monotonic() + ttl_s
            return id_, revision

        granted = self._submit(work)
        # Started before the answer, so that a cancelled caller leaves no lease without an end; its jobs come after.
        self._tasks.start(f"lease {id_}", self._expire(id_))
        return await granted

    async def keepalive(self, lease: int) -> float:
        def work(db: apsw.Connection, revision: int) -> tuple[float, int]:
            ttl_s = rows.lease_ttl(db, lease)
            self._deadlines[lease] = self._clock.monotonic() + ttl_s
            return ttl_s, revision

        return await self._submit(work)

    async def revoke(self, lease: int) -> None:
        await self._submit(lambda db, revision: (None, self._end(db, lease, revision)))

    async def compact(self, revision: int) -> None:
        def begin(db: apsw.Connection, current: int) -> tuple[None, int]:
            rows.begin_compact(db, revision, current)
            return None, current

        await self._submit(begin)
        start: int | None = 0
        while start is not None:
            start = await self._forget(revision, start)

    async def integrity_check(self) -> tuple[str, ...]:
        """What SQLite finds wrong with the database; empty when it is sound. Reads the whole file."""
        return await self._read(integrity_problems, short=False)

    async def _read(self, work: Callable[[apsw.Connection], T], *, short: bool) -> T:
        if self._closed:
            raise StoreUnavailable("the store is closed")
        if short:
            return self._files.inline.read(work)
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._files.long.read, work)

    def _submit(self, work: Work[T]) -> asyncio.Future[T]:
        if self._closed:
            raise StoreUnavailable("the store is closed")
        return self._writer.submit(work)

    async def _write(self, txn: Txn) -> TxnResult:
        def work(db: apsw.Connection, revision: int) -> tuple[TxnResult, int]:
            result = rows.write(db, txn, revision)
            return result, result.revision

        return await self._submit(work)

    def _forget(self, revision: int, start: int) -> asyncio.Future[int | None]:
        return self._submit(lambda db, current: (rows.forget(db, revision, FORGET_ROWS, start), current))

    def _committed(self, revision: int) -> None:
        self._revision = revision
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _end(self, db: apsw.Connection, lease: int, revision: int) -> int:
        self._deadlines.pop(lease, None)
        return rows.end_lease(db, lease, revision)

    async def _expire(self, lease: int) -> None:
        """Sleep until the lease's deadline, again after each renewal, and end it then."""

        def work(db: apsw.Connection, revision: int) -> tuple[float | None, int]:
            deadline = self._deadlines.get(lease)
            if deadline is not None and self._clock.monotonic() < deadline:
                return deadline, revision
            return None, self._end(db, lease, revision)

        while True:
            try:
                deadline = await self._submit(work)
            except LeaseGone:
                return  # revoked meanwhile
            except StoreError:
                deadline = self._clock.monotonic() + RETRY_S  # no space for the deletes: due until they succeed
            if deadline is None:
                return
            if (left_s := deadline - self._clock.monotonic()) > 0:
                await self._clock.sleep(left_s)


def _open_files(database: Path | None, quota_bytes: int | None) -> _Files:
    owner = None if database is None else Ownership(database)
    try:
        writing = open_writer(database, quota_bytes)
        with mapped_errors():
            leases, revision = rows.all_leases(writing), rows.revision_of(writing)
        if database is None:
            shared = _Source(writing, threading.Lock())
            return _Files(None, writing, shared, shared, leases, revision)
        inline = _Source(open_reader(database), threading.Lock())
        long = _Source(open_reader(database), threading.Lock())
        return _Files(owner, writing, inline, long, leases, revision)
    except BaseException:
        if owner is not None:
            owner.release()
        raise


def _report(name: str, failure: BaseException) -> None:
    get_logger("store").error("store_task_failed", task=name, error=repr(failure))
