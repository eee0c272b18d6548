"""The store protocol: the only way to durable state. Everything above it is written against this and nothing else.

A back end keeps keys with revisions, decides transactions, and tells changes. It knows no resource, and holds no
policy: who may write what, and when, is decided by the callers (`catalog`, `events`, later the controllers). The
contract suite (tests/contract) is the executable form of this page and runs against every back end.

There is no bare put: a write without a compare cannot be repeated safely after a lost answer.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from msm.store.errors import StoreConflict
from msm.store.values import Change, Listing, Put, Reading, Txn, TxnResult, absent, unchanged


class Store(Protocol):
    """Revisioned keys with transactions, watches and leases.

    Every call may raise StoreUnavailable (nothing happened) and, after `close`, always does. Reads are
    linearizable: they see every write that was acknowledged before they were called. Calls may be cancelled: a
    cancelled read leaves nothing, a cancelled write was done wholly or not at all, and which is not known.
    """

    async def get(self, key: bytes) -> Reading:
        """Read one key and the store's revision at the same moment."""
        ...

    async def get_many(self, keys: Sequence[bytes]) -> tuple[Reading, ...]:
        """Read many keys, in the order asked for, all at one revision. Atomic."""
        ...

    async def list(
        self,
        prefix: bytes,
        *,
        revision: int | None = None,
        limit: int | None = None,
        after: bytes | None = None,
    ) -> Listing:
        """Keys that begin with `prefix` (empty: all), in bytewise order, all at one revision. Atomic.

        `revision` asks for the past; pages are made with `limit`, then `after` = the last key seen and `revision` =
        the first page's, and together equal one list. Raises Compacted below the kept history and FutureRevision
        beyond the present.
        """
        ...

    async def txn(self, txn: Txn) -> TxnResult:
        """Do all of it in one new revision or none of it. Serialisable with all other writes.

        A lost race raises StoreConflict with the first compare that failed and the wanted reads. Raises InvalidTxn
        (a key twice, a put under a deleted prefix, an empty key), TooLarge (more than MAX_OPS operations or compares,
        or MAX_TXN_BYTES), LeaseGone (a put names a lease that is no more), NoSpace, Ambiguous. Except for Ambiguous
        nothing was written when it raises. A transaction that changes nothing makes no revision.
        """
        ...

    async def apply_all(self, txn: Txn) -> TxnResult:
        """Like `txn`, without the limits on operations, compares and total bytes (MAX_CHANGES operations).

        All or nothing, also over a crash, and no read through this protocol sees a part of it. A back end whose
        transactions are limited stages the operations first, makes them count with one guarded record, and then
        spreads them: so unlike with `txn` the changes may take several revisions, and a watch may tell them in
        several batches; `revision` is that of the last. Meant for what people apply, not for the hot path.
        """
        ...

    def watch(self, prefix: bytes, from_revision: int) -> AsyncIterator[tuple[Change, ...]]:
        """Every change of keys under `prefix` (empty: all) with a revision ≥ `from_revision`, in order, for ever.

        A batch holds whole revisions: all changes of a revision arrive together, each at most once, none left
        out. The iterator holds no resources while it is not awaited and reads the kept history at its own pace, so a
        slow reader costs no memory; when compaction overtakes it, it raises Compacted and the reader lists anew.
        Raises StoreUnavailable when the store is closed. `from_revision` may lie in the future.
        """
        ...

    async def grant(self, ttl_s: float, *, lease: int | None = None) -> int:
        """Make a lease that ends `ttl_s` seconds after its last renewal; returns its id.

        With an id of the caller's choice (> 0) the call may be repeated: a lease of that id that is alive is
        returned as it is, not renewed. Every key put with the lease is deleted with it. After a restart of the
        store every lease has its full time again.
        """
        ...

    async def keepalive(self, lease: int) -> float:
        """Renew a lease; returns its time to live in seconds. Raises LeaseGone. Makes no revision."""
        ...

    async def revoke(self, lease: int) -> None:
        """End a lease now and delete all its keys in one revision. Raises LeaseGone."""
        ...

    async def compact(self, revision: int) -> None:
        """Forget history before `revision`: reads and watches below it raise Compacted, at it they work.

        Idempotent; raises FutureRevision beyond the present. Current keys are never touched.
        """
        ...

    async def close(self) -> None:
        """End watches, finish writes that were called before, give back threads and files. May be called twice."""
        ...


async def put_if_absent(store: Store, key: bytes, value: bytes, *, lease: int = 0) -> int | None:
    """Create a key; returns its revision, or None when it exists already. Raises what `Store.txn` raises."""
    try:
        return (await store.txn(Txn((absent(key),), (Put(key, value, lease),)))).revision
    except StoreConflict:
        return None


async def compare_and_set(store: Store, key: bytes, value: bytes, *, seen: int, lease: int = 0) -> int | None:
    """Write a key last written by revision `seen` (0: missing); returns the new revision, or None when the race is
    lost. Raises what `Store.txn` raises."""
    try:
        return (await store.txn(Txn((unchanged(key, seen),), (Put(key, value, lease),)))).revision
    except StoreConflict:
        return None
