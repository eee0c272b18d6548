"""The protocol's operations as SQL on one connection. No threads, no clock; the caller owns the transaction.

Functions that write take the store's current revision and return what they made of it: they may raise anything,
the caller rolls back.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import apsw

from msm.store.errors import Compacted, LeaseGone, StoreConflict, TooLarge
from msm.store.rules import check_revision
from msm.store.values import (
    MAX_CHANGES,
    Change,
    Compare,
    Delete,
    KeyValue,
    Listing,
    Put,
    Reading,
    Txn,
    TxnResult,
    prefix_end,
)

SHIFT = 20  # a log id is revision << SHIFT | number within the revision
COLUMNS = {"create": "create_rev", "mod": "mod_rev", "version": "version", "value": "value", "lease": "lease"}
OPPOSITE = {"=": "<>", "!=": "=", "<": ">=", ">": "<="}

KV = "SELECT key, value, create_rev, mod_rev, version, lease FROM kv "
GET = KV + "WHERE key = ?"
LIST = KV + "WHERE key >= ? AND key < ? ORDER BY key LIMIT ?"
LIST_AT = f"""
SELECT key, value, create_rev, id >> {SHIFT}, version, lease FROM log AS this
WHERE key >= ?1 AND key < ?2 AND value IS NOT NULL
  AND id = (SELECT max(id) FROM log WHERE key = this.key AND id < ?3)
ORDER BY key LIMIT ?4"""  # noqa: S608 - SHIFT is a number of ours
# `+key` keeps the planner on the id range: changes are wanted in the order of their ids
CHANGES = """
SELECT id, key, value, create_rev, version, lease FROM log
WHERE id >= ? AND id < ? AND +key >= ? AND +key < ? ORDER BY id LIMIT ?"""
PUT = """
INSERT INTO kv VALUES (?1, ?2, ?3, ?3, 1, ?4)
ON CONFLICT (key) DO UPDATE SET value = ?2, mod_rev = ?3, version = version + 1, lease = ?4
RETURNING create_rev, version"""
LOG = "INSERT INTO log VALUES (?, ?, ?, ?, ?, ?)"
DELETE_KEY = "DELETE FROM kv WHERE key = ? RETURNING key"
DELETE_RANGE = "DELETE FROM kv WHERE key >= ? AND key < ? RETURNING key"
DELETE_LEASE = "DELETE FROM kv WHERE lease = ? RETURNING key"
# Ascending, so that a key's older rows are never left behind without the tombstone that hides them.
FORGET = f"""
DELETE FROM log WHERE id IN (
  SELECT id FROM log AS this WHERE id >= ?3 AND id < ?1 AND (value IS NULL OR EXISTS (
    SELECT 1 FROM log WHERE key = this.key AND id > this.id AND id < ?1 + (1 << {SHIFT})))
  ORDER BY id LIMIT ?2)
RETURNING id"""  # noqa: S608 - SHIFT is a number of ours
NO_LIMIT = -1


def revision_of(db: apsw.Connection) -> int:
    """The store's revision in the snapshot that the connection sees."""
    return int(db.execute("SELECT value FROM meta WHERE name = 'revision'").get)


def compacted_of(db: apsw.Connection) -> int:
    """The oldest revision of which the history is kept."""
    return int(db.execute("SELECT value FROM meta WHERE name = 'compacted'").get)


def set_revision(db: apsw.Connection, revision: int) -> None:
    db.execute("UPDATE meta SET value = ? WHERE name = 'revision'", (revision,))


def find(db: apsw.Connection, key: bytes) -> KeyValue | None:
    row = db.execute(GET, (key,)).fetchone()
    return None if row is None else KeyValue(*row)


def read_keys(db: apsw.Connection, keys: Sequence[bytes]) -> tuple[Reading, ...]:
    revision = revision_of(db)
    return tuple(Reading(revision, find(db, key)) for key in keys)


def read_list(
    db: apsw.Connection, prefix: bytes, revision: int | None, limit: int | None, after: bytes | None
) -> Listing:
    """One page; raises Compacted and FutureRevision."""
    current = revision_of(db)
    wanted = current if revision is None else revision
    check_revision(wanted, current)
    if wanted < (compacted := compacted_of(db)):
        raise Compacted(wanted, compacted)
    most = NO_LIMIT if limit is None else limit + 1
    first = prefix if after is None else max(prefix, after + b"\0")
    bounds = (first, prefix_end(prefix))
    if wanted == current:
        rows = db.execute(LIST, (*bounds, most))
    else:
        rows = db.execute(LIST_AT, (*bounds, (wanted + 1) << SHIFT, most))
    items = tuple(KeyValue(*row) for row in rows)
    if limit is not None and len(items) > limit:
        return Listing(wanted, items[:limit], more=True)
    return Listing(wanted, items)


def read_changes(
    db: apsw.Connection, prefix: bytes, start: int, limit: int, *, oversize: bool
) -> tuple[tuple[Change, ...], int, bool]:
    """Whole revisions from `start` on: up to `limit` changes, the next start, and whether the limit cut.

    A single revision is never split. One that is larger than the limit comes whole with `oversize`; without it
    nothing comes, and the start stays. Raises Compacted.
    """
    if start < (compacted := compacted_of(db)):
        raise Compacted(start, compacted)
    top = revision_of(db)
    if start > top:
        return (), start, False
    end = prefix_end(prefix)
    found = _changes(db.execute(CHANGES, (start << SHIFT, (top + 1) << SHIFT, prefix, end, limit + 1)))
    if len(found) <= limit:
        return tuple(found), top + 1, False
    cut = found[-1].revision
    whole = [change for change in found if change.revision < cut]
    if whole or not oversize:
        return tuple(whole), cut if whole else start, True
    whole = _changes(db.execute(CHANGES, (cut << SHIFT, (cut + 1) << SHIFT, prefix, end, NO_LIMIT)))
    return tuple(whole), cut + 1, True


def _changes(rows: Iterable[tuple[int, bytes, bytes | None, int, int, int]]) -> list[Change]:
    changes = []
    for id_, key, value, create, version, lease in rows:
        revision = id_ >> SHIFT
        item = None if value is None else KeyValue(key, value, create, revision, version, lease)
        changes.append(Change(revision, key, item))
    return changes


def write(db: apsw.Connection, txn: Txn, revision: int) -> TxnResult:
    """Decide and do one transaction; raises StoreConflict, LeaseGone, TooLarge."""
    for compare in txn.compares:
        _check_compare(db, compare, txn, revision)
    new = revision + 1
    changed = 0
    for op in txn.ops:
        if isinstance(op, Put):
            _put(db, op, new, changed)
            changed += 1
        elif isinstance(op, Delete):
            changed = _log_deleted(db, db.execute(DELETE_KEY, (op.key,)), new, changed)
        else:
            gone = db.execute(DELETE_RANGE, (op.prefix, prefix_end(op.prefix)))
            changed = _log_deleted(db, gone, new, changed)
    return TxnResult(new if changed else revision, changed)


def _check_compare(db: apsw.Connection, compare: Compare, txn: Txn, revision: int) -> None:
    if compare.prefix:
        found = _first_against(db, compare)
        if found is None:
            return
    else:
        found = find(db, compare.key)
        if _holds(compare, found):
            return
    raise StoreConflict(compare, found, revision, tuple(find(db, key) for key in txn.reads))


def _first_against(db: apsw.Connection, compare: Compare) -> KeyValue | None:
    sql = f"{KV} WHERE key >= ? AND key < ? AND {COLUMNS[compare.field]} {OPPOSITE[compare.relation]} ? LIMIT 1"
    row = db.execute(sql, (compare.key, prefix_end(compare.key), compare.wanted)).fetchone()
    return None if row is None else KeyValue(*row)


def _holds(compare: Compare, found: KeyValue | None) -> bool:
    if compare.field == "value":
        return found is not None and _related(found.value, compare.relation, compare.wanted)
    if found is None:
        return _related(0, compare.relation, compare.wanted)
    numbers = {
        "create": found.create_revision,
        "mod": found.mod_revision,
        "version": found.version,
        "lease": found.lease,
    }
    return _related(numbers[compare.field], compare.relation, compare.wanted)


def _related(left: int | bytes, relation: str, right: int | bytes) -> bool:
    if relation == "=":
        return left == right
    if relation == "!=":
        return left != right
    if isinstance(left, bytes) and isinstance(right, bytes):
        return left < right if relation == "<" else left > right
    if isinstance(left, int) and isinstance(right, int):
        return left < right if relation == "<" else left > right
    raise AssertionError("rules.check_txn lets no compare of bytes with a number pass")


def _put(db: apsw.Connection, op: Put, revision: int, number: int) -> None:
    if op.lease and not lease_exists(db, op.lease):
        raise LeaseGone(op.lease)
    numbers: list[Any] = db.execute(PUT, (op.key, op.value, revision, op.lease)).fetchall()
    create, version = numbers[0]
    _log(db, revision, number, (op.key, op.value, create, version, op.lease))


def _log_deleted(db: apsw.Connection, gone: Iterable[tuple[bytes]], revision: int, number: int) -> int:
    for (key,) in tuple(gone):
        _log(db, revision, number, (key, None, 0, 0, 0))
        number += 1
    return number


def _log(db: apsw.Connection, revision: int, number: int, row: tuple[bytes, bytes | None, int, int, int]) -> None:
    if number >= MAX_CHANGES:
        raise TooLarge(f"one revision may change at most {MAX_CHANGES} keys")
    db.execute(LOG, (revision << SHIFT | number, *row))


def lease_exists(db: apsw.Connection, lease: int) -> bool:
    return db.execute("SELECT 1 FROM lease WHERE id = ?", (lease,)).fetchone() is not None


def lease_ttl(db: apsw.Connection, lease: int) -> float:
    """Its time to live in seconds; raises LeaseGone."""
    row = db.execute("SELECT ttl FROM lease WHERE id = ?", (lease,)).fetchone()
    if row is None:
        raise LeaseGone(lease)
    return float(row[0])


def all_leases(db: apsw.Connection) -> tuple[tuple[int, float], ...]:
    return tuple((int(id_), float(ttl)) for id_, ttl in db.execute("SELECT id, ttl FROM lease"))


def add_lease(db: apsw.Connection, lease: int, ttl_s: float) -> None:
    """Nothing happens when it exists."""
    db.execute("INSERT OR IGNORE INTO lease VALUES (?, ?)", (lease, ttl_s))


def end_lease(db: apsw.Connection, lease: int, revision: int) -> int:
    """Delete the lease and all its keys; returns the store's revision after it. Raises LeaseGone."""
    lease_ttl(db, lease)
    db.execute("DELETE FROM lease WHERE id = ?", (lease,))
    changed = _log_deleted(db, db.execute(DELETE_LEASE, (lease,)), revision + 1, 0)
    return revision + 1 if changed else revision


def begin_compact(db: apsw.Connection, wanted: int, revision: int) -> None:
    """From now on history before `wanted` is refused; `forget` then frees it. Raises FutureRevision."""
    check_revision(wanted, revision)
    db.execute("UPDATE meta SET value = max(value, ?) WHERE name = 'compacted'", (wanted,))


def forget(db: apsw.Connection, wanted: int, most: int, start: int) -> int | None:
    """Free up to `most` rows of history before `wanted`; returns where to go on, None when all is done."""
    gone = [row[0] for row in db.execute(FORGET, (wanted << SHIFT, most, start))]
    return max(gone) + 1 if len(gone) == most else None
