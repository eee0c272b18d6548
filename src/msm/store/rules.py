"""What every back end refuses before it tries: pure checks of transactions and reads, the same for all."""

from __future__ import annotations

from msm.store.errors import FutureRevision, InvalidTxn, TooLarge
from msm.store.values import (
    MAX_CHANGES,
    MAX_KEY_BYTES,
    MAX_OPS,
    MAX_TXN_BYTES,
    OVERHEAD_BYTES,
    DeletePrefix,
    Put,
    Txn,
    show,
    target,
    weight,
)


def check_txn(txn: Txn) -> None:
    """Raise TooLarge or InvalidTxn when no back end may take `txn` as one transaction."""
    if len(txn.ops) > MAX_OPS:
        raise TooLarge(f"a transaction has at most {MAX_OPS} operations, this one has {len(txn.ops)}")
    if len(txn.compares) > MAX_OPS:
        raise TooLarge(f"a transaction has at most {MAX_OPS} compares, this one has {len(txn.compares)}")
    if len(txn.reads) > MAX_OPS:
        raise TooLarge(f"a transaction has at most {MAX_OPS} reads, this one has {len(txn.reads)}")
    if (size := weight(txn)) > MAX_TXN_BYTES:
        raise TooLarge(f"a transaction has at most {MAX_TXN_BYTES} bytes, this one has {size}")
    _check_keys(txn)


def check_apply(txn: Txn) -> None:
    """Raise TooLarge or InvalidTxn when no back end may take `txn` in `apply_all`."""
    if len(txn.ops) > MAX_CHANGES:
        raise TooLarge(f"one apply has at most {MAX_CHANGES} operations, this one has {len(txn.ops)}")
    for op in txn.ops:
        if isinstance(op, Put) and len(op.key) + len(op.value) + OVERHEAD_BYTES > MAX_TXN_BYTES:
            raise TooLarge(f"the value of {show(op.key)} has {len(op.value)} bytes, over {MAX_TXN_BYTES}")
    _check_keys(txn)


def _check_keys(txn: Txn) -> None:
    written: set[bytes] = set()
    for op in txn.ops:
        key = target(op)
        check_key(key)
        if key in written:
            raise InvalidTxn(f"a transaction may touch key {show(key)} only once")
        written.add(key)
    for op in txn.ops:
        if isinstance(op, DeletePrefix):
            for key in written:
                if key != op.prefix and key.startswith(op.prefix):
                    raise InvalidTxn(
                        f"a transaction may not delete prefix {show(op.prefix)} and touch {show(key)} under it"
                    )
    for compare in txn.compares:
        if compare.key or not compare.prefix:
            check_key(compare.key)
        if isinstance(compare.wanted, bytes) != (compare.field == "value"):
            raise InvalidTxn(f"the {compare.field} of {show(compare.key)} cannot be compared with {compare.wanted!r}")
    for key in txn.reads:
        check_key(key)


def check_key(key: bytes) -> None:
    """Raise InvalidTxn for an empty key or one that is too long."""
    if not key:
        raise InvalidTxn("a key may not be empty")
    if len(key) > MAX_KEY_BYTES:
        raise InvalidTxn(f"a key has at most {MAX_KEY_BYTES} bytes, {show(key[:32])}… has {len(key)}")


def check_revision(wanted: int, current: int) -> None:
    """Raise FutureRevision when the store has not got there."""
    if wanted > current:
        raise FutureRevision(wanted, current)
