"""Contract: any sequence of writes leaves what a plain dictionary says, now, in the past and in every watch."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from msm.store.base import Store
from msm.store.errors import Compacted, StoreConflict
from msm.store.values import (
    Change,
    Delete,
    DeletePrefix,
    KeyValue,
    Op,
    Put,
    Txn,
    absent,
    prefix_unchanged,
    present,
)

KEYS = st.sampled_from([b"a", b"a/1", b"a/2", b"a\xff", b"b", b"b/\x00", b"\xff"])
VALUES = st.binary(max_size=3)
OPS = st.one_of(
    st.builds(Put, KEYS, VALUES),
    st.builds(Put, KEYS, VALUES),
    st.builds(Delete, KEYS),
    st.builds(DeletePrefix, st.sampled_from([b"a/", b"b", b"\xff"])),
)
COMPARES = st.one_of(
    st.builds(absent, KEYS),
    st.builds(present, KEYS),
    st.builds(prefix_unchanged, st.sampled_from([b"a", b"b"]), st.integers(1, 6)),
)


def legal(ops: list[Op]) -> bool:
    """Whether no key is touched twice (the model need not know that rule)."""
    names = [op.prefix if isinstance(op, DeletePrefix) else op.key for op in ops]
    prefixes = [op.prefix for op in ops if isinstance(op, DeletePrefix)]
    twice = len(set(names)) < len(names)
    return not twice and not any(n != p and n.startswith(p) for p in prefixes for n in names)


TXNS = st.builds(
    lambda compares, ops: Txn(tuple(compares), tuple(ops)),
    st.lists(COMPARES, max_size=2),
    st.lists(OPS, max_size=4).filter(legal),
)


@dataclass
class Model:
    """What the protocol promises, with a dictionary for a disk."""

    revision: int
    items: dict[bytes, KeyValue] = field(default_factory=dict)
    past: dict[int, tuple[KeyValue, ...]] = field(default_factory=dict)
    changes: list[Change] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.past[self.revision] = ()

    def holds(self, txn: Txn) -> bool:
        for compare in txn.compares:
            keys = [k for k in self.items if k.startswith(compare.key)] if compare.prefix else [compare.key]
            for key in keys:
                item = self.items.get(key)
                created, mod = (item.create_revision, item.mod_revision) if item else (0, 0)
                if compare.prefix and mod >= compare.wanted:
                    return False
                if not compare.prefix and (created > 0) != (compare.relation == ">"):
                    return False
        return True

    def write(self, txn: Txn) -> None:
        new = self.revision + 1
        told: list[Change] = []
        for op in txn.ops:
            if isinstance(op, Put):
                old = self.items.get(op.key)
                item = KeyValue(
                    op.key, op.value, old.create_revision if old else new, new, old.version + 1 if old else 1
                )
                self.items[op.key] = item
                told.append(Change(new, op.key, item))
                continue
            doomed = [op.key] if isinstance(op, Delete) else [k for k in self.items if k.startswith(op.prefix)]
            told += [Change(new, key, None) for key in sorted(doomed) if self.items.pop(key, None)]
        if told:
            self.revision = new
            self.changes += told
        self.past[self.revision] = tuple(self.items[key] for key in sorted(self.items))


async def replay(store: Store, txns: list[Txn]) -> Model:
    model = Model((await store.get(b"a")).revision)
    for txn in txns:
        holds = model.holds(txn)
        try:
            result = await store.txn(txn)
        except StoreConflict:
            assert not holds
            continue
        assert holds
        model.write(txn)
        assert result.revision == model.revision
    return model


async def check_watch(store: Store, start: int, expected: list[Change]) -> None:
    seen: list[Change] = []
    watch = store.watch(b"", start)
    while len(seen) < len(expected):
        async with asyncio.timeout(10.0):
            seen += await anext(watch)
    assert in_order(seen) == in_order(expected)


def in_order(changes: list[Change]) -> list[tuple[int, bytes, KeyValue | None]]:
    """Within one revision the order of keys is not promised."""
    return sorted(((c.revision, c.key, c.item) for c in changes), key=lambda c: c[:2])


async def check_pages(store: Store, revision: int, size: int, expected: tuple[KeyValue, ...]) -> None:
    found: list[KeyValue] = []
    after = None
    while True:
        page = await store.list(b"", revision=revision, limit=size, after=after)
        found += page.items
        if not page.more:
            break
        after = page.items[-1].key
    assert tuple(found) == expected


# Few and small examples: each is a store of its own, on disk for some back ends.
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(txns=st.lists(TXNS, max_size=12), start=st.integers(0, 12), cut=st.integers(0, 12), size=st.integers(1, 4))
def test_a_store_equals_its_model(backend, txns, start, cut, size):
    async def scenario() -> None:
        store = await backend.another().open()
        try:
            model = await replay(store, txns)
            first = model.revision - len(model.past) + 1
            for revision, expected in model.past.items():
                assert (await store.list(b"", revision=revision)).items == expected
            await check_pages(store, model.revision, size, model.past[model.revision])
            middle = min(model.revision, first + start)
            await check_pages(store, middle, size, model.past[middle])
            await check_watch(store, middle, [c for c in model.changes if c.revision >= middle])
            await check_compaction(store, model, min(model.revision, first + cut))
        finally:
            await store.close()

    asyncio.run(scenario())


async def check_compaction(store: Store, model: Model, cut: int) -> None:
    await store.compact(cut)
    for revision, expected in model.past.items():
        if revision >= cut:
            assert (await store.list(b"", revision=revision)).items == expected
        else:
            with pytest.raises(Compacted):
                await store.list(b"", revision=revision)
    await check_watch(store, cut, [c for c in model.changes if c.revision >= cut])
