"""The values of the store protocol: what is read, what is written, and under which condition.

They are plain data and know no back end. Keys and values are bytes; keys are ordered bytewise. Revisions count the
writing transactions of the whole store and only rise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import msgspec

MAX_OPS = 128  # operations, and also compares, in one `txn`: etcd's default
MAX_TXN_BYTES = 1_536 * 1024  # of one `txn`, counted by `weight`: etcd's default request size
MAX_KEY_BYTES = 1024
MAX_CHANGES = 1 << 20  # changed keys in one revision, also of `apply_all`

OVERHEAD_BYTES = 64  # an upper bound for the framing of one operation on the wire


class KeyValue(msgspec.Struct, frozen=True, gc=False):
    """A key as it stands (a struct, not a dataclass: a list makes a hundred thousand of them).

    `create_revision` is the revision that created the key, `mod_revision` the last that wrote it, `version` counts
    writes since creation from 1, `lease` is the id of the lease that the key ends with, or 0.
    """

    key: bytes
    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    lease: int = 0


class Change(msgspec.Struct, frozen=True, gc=False):
    """What a revision did to one key: `item` is the key after it, None when it was deleted."""

    revision: int
    key: bytes
    item: KeyValue | None


@dataclass(frozen=True, slots=True)
class Reading:
    """The answer to one read: the key (None: missing) and the store's revision at that moment."""

    revision: int
    item: KeyValue | None


@dataclass(frozen=True, slots=True)
class Listing:
    """Keys in order, as they stood at `revision`. `more` tells that the limit cut the list."""

    revision: int
    items: tuple[KeyValue, ...]
    more: bool = False


Field = Literal["create", "mod", "version", "value", "lease"]
Relation = Literal["=", "!=", "<", ">"]


@dataclass(frozen=True, slots=True)
class Compare:
    """A condition of a transaction: `field` of `key` stands in `relation` to `wanted`.

    A missing key has 0 in every number and no value, so that a compare of its value never holds. With `prefix` the
    condition must hold for every key that begins with `key`; deleted keys are not seen by it.
    """

    key: bytes
    field: Field
    relation: Relation
    wanted: int | bytes
    prefix: bool = False


@dataclass(frozen=True, slots=True)
class Put:
    """Write a key; with `lease` it ends with that lease, and any lease it had before no longer counts."""

    key: bytes
    value: bytes
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Delete:
    """Remove a key; a missing one is no error and no change."""

    key: bytes


@dataclass(frozen=True, slots=True)
class DeletePrefix:
    """Remove every key that begins with `prefix` (not empty)."""

    prefix: bytes


Op = Put | Delete | DeletePrefix


@dataclass(frozen=True, slots=True)
class Txn:
    """If all `compares` hold, do all `ops`, in one revision; otherwise do nothing and read `reads`."""

    compares: tuple[Compare, ...] = ()
    ops: tuple[Op, ...] = ()
    reads: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class TxnResult:
    """A transaction was done. `revision` is its own, or the store's current one when it changed nothing."""

    revision: int
    changed: int


def absent(key: bytes) -> Compare:
    """Holds while the key does not exist."""
    return Compare(key, "create", "=", 0)


def present(key: bytes) -> Compare:
    """Holds while the key exists."""
    return Compare(key, "create", ">", 0)


def unchanged(key: bytes, mod_revision: int) -> Compare:
    """Holds while the key was last written by that revision; 0 means it does not exist."""
    return Compare(key, "mod", "=", mod_revision)


def prefix_unchanged(prefix: bytes, since: int) -> Compare:
    """Holds while no key under the prefix was written after revision `since`. Deletes are not seen."""
    return Compare(prefix, "mod", "<", since + 1, prefix=True)


def prefix_end(prefix: bytes) -> bytes:
    """The least key that is greater than all keys (of legal length) that begin with `prefix`."""
    kept = prefix.rstrip(b"\xff")
    if not kept:
        return b"\xff" * (MAX_KEY_BYTES + 1)
    return kept[:-1] + bytes((kept[-1] + 1,))


def weight(txn: Txn) -> int:
    """Bytes a transaction counts for against MAX_TXN_BYTES: keys, values and an allowance for framing."""
    total = 0
    for compare in txn.compares:
        total += len(compare.key) + OVERHEAD_BYTES
        if isinstance(compare.wanted, bytes):
            total += len(compare.wanted)
    for op in txn.ops:
        total += OVERHEAD_BYTES
        total += len(op.key) + len(op.value) if isinstance(op, Put) else len(target(op))
    return total + sum(len(key) + OVERHEAD_BYTES for key in txn.reads)


def target(op: Op) -> bytes:
    """The key or prefix that an operation is about."""
    return op.prefix if isinstance(op, DeletePrefix) else op.key


def show(key: bytes) -> str:
    """A key for messages."""
    return f"'{key.decode('utf-8', 'backslashreplace')}'"
