"""The errors of the store. Each is also one of `msm.kit.errors`, so that every caller knows how to answer it.

StoreError
 ├─ StoreUnavailable  nothing was written; try again                 (Unavailable)
 │   └─ NoSpace       disk or quota is full; reads go on
 ├─ NotLeader         the writer's epoch is over                     (Unavailable)
 ├─ Ambiguous         the write may or may not have been done        (Unavailable)
 ├─ StoreConflict     a compare did not hold; nothing was written    (Conflict)
 ├─ StoreInUse        another process owns the database              (Conflict)
 ├─ Compacted         that revision's history is gone: list anew     (Conflict)
 ├─ FutureRevision    that revision has not happened yet             (InvalidInput)
 ├─ InvalidTxn        the transaction contradicts itself             (InvalidInput)
 ├─ TooLarge          more than one transaction may hold             (InputTooLarge)
 ├─ LeaseGone         the lease has expired or never was             (NotFound)
 └─ Damaged           the stored data cannot be read                 (Internal)
"""

from __future__ import annotations

from pathlib import Path

from msm.kit import errors
from msm.store.values import Compare, KeyValue, show


class StoreError(errors.MsmError):
    """Root of the store's errors."""

    reason = "store_error"


class StoreUnavailable(StoreError, errors.Unavailable):
    """The store cannot do it now. Nothing was written."""

    reason = "store_unavailable"


class NoSpace(StoreUnavailable):
    """Disk or quota is full. Nothing was written; reads go on."""

    reason = "no_space"


class NotLeader(StoreError, errors.Unavailable):
    """The writer's leadership is over; nothing was written."""

    reason = "not_leader"


class Ambiguous(StoreError, errors.Unavailable):
    """The outcome of a write is not known: read before deciding what to do."""

    reason = "ambiguous"


class StoreConflict(StoreError, errors.Conflict):
    """A compare did not hold; nothing was written.

    `compare` is the first that failed, `found` the key it met (None: missing), `reads` what the transaction asked
    for in this case, in its order, `revision` the store's revision for all of them.
    """

    reason = "store_conflict"

    def __init__(
        self, compare: Compare, found: KeyValue | None, revision: int, reads: tuple[KeyValue | None, ...]
    ) -> None:
        scope = "every key under" if compare.prefix else "key"
        wanted = show(compare.wanted) if isinstance(compare.wanted, bytes) else compare.wanted
        super().__init__(
            f"the condition {compare.field} {compare.relation} {wanted} does not hold for {scope} "
            f"{show(compare.key)}: {_state(found)}"
        )
        self.compare = compare
        self.found = found
        self.revision = revision
        self.reads = reads


def _state(found: KeyValue | None) -> str:
    if found is None:
        return "it does not exist"
    return f"{show(found.key)} has create {found.create_revision}, mod {found.mod_revision}, version {found.version}"


class StoreInUse(StoreError, errors.Conflict):
    """Another process owns the data directory. The one message that may name a process."""

    reason = "store_in_use"

    def __init__(self, directory: Path, pid: int | None) -> None:
        owner = "another process" if pid is None else f"process {pid}"
        super().__init__(f"the data directory '{directory}' is in use by {owner}")
        self.directory = directory
        self.pid = pid


class Compacted(StoreError, errors.Conflict):
    """The history before `compacted` is gone; the caller lists anew."""

    reason = "compacted"

    def __init__(self, wanted: int, compacted: int) -> None:
        super().__init__(f"revision {wanted} is no longer kept: history begins at revision {compacted}")
        self.wanted = wanted
        self.compacted = compacted


class FutureRevision(StoreError, errors.InvalidInput):
    """The store has not reached that revision."""

    reason = "future_revision"

    def __init__(self, wanted: int, current: int) -> None:
        super().__init__(f"revision {wanted} has not happened yet: the store is at revision {current}")
        self.wanted = wanted
        self.current = current


class InvalidTxn(StoreError, errors.InvalidInput):
    """The transaction breaks a rule of the protocol, for instance by writing one key twice."""

    reason = "invalid_txn"


class TooLarge(StoreError, errors.InputTooLarge):
    """The transaction is over a limit; nothing was written."""

    reason = "too_large"


class LeaseGone(StoreError, errors.NotFound):
    """The lease has expired, was revoked, or never was; nothing was written."""

    reason = "lease_gone"

    def __init__(self, lease: int) -> None:
        super().__init__(f"lease {lease} does not exist or has expired")
        self.lease = lease


class Damaged(StoreError, errors.Internal):
    """What is stored cannot be read."""

    reason = "store_damaged"
