"""Contract: crashes, full quotas, restarts."""

from __future__ import annotations

import asyncio

import pytest

from msm.kit import errors as kit
from msm.store.base import Store, put_if_absent
from msm.store.errors import Compacted, NoSpace
from msm.store.values import Delete, Put, Txn

QUOTA_BYTES = 256 * 1024


async def do(store: Store, *ops) -> int:
    return (await store.txn(Txn(ops=ops))).revision


async def fill(store: Store) -> tuple[int, NoSpace]:
    """Write pairs until the store is full; returns how many were acknowledged."""
    for number in range(1000):
        try:
            await do(store, Put(b"k/%04d" % number, b"v" * 4096), Put(b"l/%04d" % number, b""))
        except NoSpace as failure:
            return number, failure
    raise AssertionError("the quota was never reached")


async def test_everything_is_there_after_a_restart(durable_backend):
    store = await durable_backend.open()
    r1 = await do(store, Put(b"a", b"1"), Put(b"b", b"1"))
    r2 = await do(store, Put(b"a", b"2"))
    r3 = await do(store, Delete(b"b"))
    await store.compact(r2)
    whole = await store.list(b"")
    await store.close()
    store = await durable_backend.open()
    assert await store.list(b"") == whole
    assert [item.key for item in (await store.list(b"", revision=r2)).items] == [b"a", b"b"]
    with pytest.raises(Compacted):
        await store.list(b"", revision=r1)
    batch = await anext(store.watch(b"", r3))
    assert [(change.key, change.item) for change in batch] == [(b"b", None)]
    assert await do(store, Put(b"c", b"")) == r3 + 1
    await store.close()


async def test_a_close_finishes_the_writes_that_were_called_before(durable_backend):
    store = await durable_backend.open()
    writes = [asyncio.create_task(put_if_absent(store, b"w/%d" % n, b"")) for n in range(50)]
    await asyncio.sleep(0)
    await store.close()
    made = await asyncio.gather(*writes)
    store = await durable_backend.open()
    assert {item.mod_revision for item in (await store.list(b"w/")).items} == set(made)
    await store.close()


async def test_a_full_quota_refuses_writes_and_reads_go_on(backend):
    store = await backend.open(quota_bytes=QUOTA_BYTES)
    written, failure = await fill(store)
    assert isinstance(failure, kit.Unavailable)
    listing = await store.list(b"k/")
    assert len(listing.items) == len((await store.list(b"l/")).items) == written > 0
    assert (await store.get(b"k/0000")).item.value == b"v" * 4096
    for number in range(written):
        await do(store, Delete(b"k/%04d" % number), Delete(b"l/%04d" % number))
        if number % 8 == 7:
            await store.compact((await store.get(b"k")).revision)
            break
    assert (await do(store, Put(b"again", b"v" * 1024))) > listing.revision
    await store.close()


async def test_a_transaction_too_big_for_the_quota_leaves_its_neighbours_alone(backend):
    store = await backend.open(quota_bytes=QUOTA_BYTES)
    big = Txn(ops=tuple(Put(b"big/%d" % n, b"v" * 16_384) for n in range(60)))

    async def small(number: int) -> int | None:
        return await put_if_absent(store, b"small/%d" % number, b"x")

    outcomes = await asyncio.gather(
        *(small(n) for n in range(5)),
        store.txn(big),
        *(small(n) for n in range(5, 10)),
        return_exceptions=True,
    )
    assert isinstance(outcomes[5], NoSpace)
    assert [item.key for item in (await store.list(b"")).items] == [b"small/%d" % n for n in range(10)]
    assert len({*outcomes[:5], *outcomes[6:]}) == 10
    await store.close()
