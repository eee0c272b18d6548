"""The SQLite file: its schema and settings, who owns it, and what its errors mean.

`kv` is what is true now, `log` what happened: one row per changed key, appended in the order of its id (revision,
then number within the revision) so that history, watches and old revisions come from one b-tree. Neither table is
WITHOUT ROWID: beyond about 1 KB such a table gives each value an overflow page of its own.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import apsw

from msm.store.errors import Ambiguous, Damaged, NoSpace, StoreError, StoreInUse, StoreUnavailable

SCHEMA_VERSION = 1
SCHEMA = """
CREATE TABLE IF NOT EXISTS kv (
    key BLOB PRIMARY KEY, value BLOB NOT NULL, create_rev INTEGER NOT NULL, mod_rev INTEGER NOT NULL,
    version INTEGER NOT NULL, lease INTEGER NOT NULL) STRICT;
CREATE INDEX IF NOT EXISTS kv_lease ON kv (lease) WHERE lease <> 0;
CREATE TABLE IF NOT EXISTS log (
    id INTEGER PRIMARY KEY, key BLOB NOT NULL, value BLOB, create_rev INTEGER NOT NULL,
    version INTEGER NOT NULL, lease INTEGER NOT NULL) STRICT;
CREATE INDEX IF NOT EXISTS log_key ON log (key);
CREATE TABLE IF NOT EXISTS lease (id INTEGER PRIMARY KEY, ttl REAL NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;
INSERT OR IGNORE INTO meta VALUES ('revision', 1), ('compacted', 0), ('schema', 1);
"""
BUSY_MS = 5_000
PAGE_BYTES = 4_096
SETTINGS = (
    "foreign_keys=ON",
    "trusted_schema=OFF",
    "temp_store=MEMORY",
    "cache_size=-32000",
    "wal_autocheckpoint=2000",
    "journal_size_limit=67108864",  # else the WAL file keeps the greatest length it ever had
)
READER_CACHE = "cache_size=-8000"


class Ownership:
    """The right to the database of a data directory, held by one process at a time through a lock on a side file.

    The lock ends with the process, however it ends. The file is left in place: removing it would let two processes
    lock two different files of the same name.
    """

    def __init__(self, database: Path) -> None:
        """Take the lock; raises StoreInUse naming the directory and the owner, or StoreUnavailable."""
        path = database.with_name(database.name + ".lock")
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as failure:
            raise StoreUnavailable(
                f"the data directory '{database.parent}' cannot be used: {failure.strerror}"
            ) from failure
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as failure:
            owner = os.pread(self._fd, 32, 0).decode("ascii", "replace").strip()
            os.close(self._fd)
            raise StoreInUse(database.parent, int(owner) if owner.isdigit() else None) from failure
        with suppress(OSError):  # a full disk; the number only serves the message, the lock is what counts
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        os.close(self._fd)


def open_writer(database: Path | None, quota_bytes: int | None) -> apsw.Connection:
    """The one writing connection, with the schema in place; None is a database in memory.

    Raises Damaged when the file is no database of ours or was written by a newer version.
    """
    with mapped_errors():
        if database is None:
            connection = apsw.Connection(":memory:")
        else:
            os.close(os.open(database, os.O_RDWR | os.O_CREAT, 0o600))  # the WAL takes over these permissions
            connection = apsw.Connection(str(database))
        try:
            connection.set_busy_timeout(BUSY_MS)
            if database is not None:
                connection.execute("PRAGMA journal_mode=WAL")
                connection.execute("PRAGMA synchronous=FULL")
            for setting in SETTINGS:
                connection.execute(f"PRAGMA {setting}")
            connection.execute(f"BEGIN IMMEDIATE; {SCHEMA} COMMIT")
            _check_schema(connection)
            if quota_bytes is not None:
                connection.execute(f"PRAGMA max_page_count={max(1, quota_bytes // PAGE_BYTES)}")
        except BaseException:
            connection.close()
            raise
        return connection


def open_reader(database: Path) -> apsw.Connection:
    """A connection that cannot write; in WAL mode it never waits for the writer, nor the writer for it."""
    with mapped_errors():
        connection = apsw.Connection(str(database))
        connection.set_busy_timeout(BUSY_MS)
        connection.execute(f"PRAGMA query_only=ON; PRAGMA trusted_schema=OFF; PRAGMA {READER_CACHE}")
        return connection


def _check_schema(connection: apsw.Connection) -> None:
    found = connection.execute("SELECT value FROM meta WHERE name = 'schema'").get
    if found > SCHEMA_VERSION:
        raise Damaged(f"the store has schema {found}, this version reads up to {SCHEMA_VERSION}")


def integrity_problems(connection: apsw.Connection) -> tuple[str, ...]:
    """What SQLite's own check finds wrong with the file; empty when it is sound."""
    try:
        found = tuple(str(row[0]) for row in connection.execute("PRAGMA integrity_check"))
    except apsw.CorruptError as failure:
        return (str(failure),)
    return () if found == ("ok",) else found


@contextmanager
def mapped_errors() -> Iterator[None]:
    """Raise SQLite's errors and the file system's as the store's."""
    try:
        yield
    except (apsw.Error, OSError) as failure:
        raise translated(failure) from failure


def translated(failure: Exception, *, committing: bool = False) -> StoreError:
    """The store's error for one of SQLite's.

    While committing, an I/O error leaves the outcome open: the frames may be complete in the WAL although their sync
    failed, and would then count after a crash. A full disk does not: the frame that commits is the last written.
    """
    if isinstance(failure, apsw.FullError):
        return NoSpace("the store cannot write: its disk or quota is full")
    if isinstance(failure, apsw.CorruptError | apsw.NotADBError):
        return Damaged("the store's database file is damaged or is no database")
    if committing and isinstance(failure, apsw.IOError):
        return Ambiguous("the store's disk failed while a write was made durable: it may have been done or not")
    if isinstance(failure, apsw.IOError | OSError):
        return StoreUnavailable("the store's disk failed: nothing was written")
    if isinstance(failure, apsw.BusyError | apsw.LockedError):
        return StoreUnavailable("the store's database is locked by another program: nothing was written")
    return StoreUnavailable("the store's database refused the call: nothing was written")
