"""Contract: what reads see."""

from __future__ import annotations

import asyncio

import pytest

from msm.store.base import Store, put_if_absent
from msm.store.errors import Compacted, FutureRevision, InvalidTxn, StoreUnavailable
from msm.store.values import Delete, Put, Txn, unchanged


async def put(store: Store, key: bytes, value: bytes = b"x") -> int:
    """Write whatever is there; returns the revision."""
    seen = await store.get(key)
    mod = seen.item.mod_revision if seen.item else 0
    return (await store.txn(Txn((unchanged(key, mod),), (Put(key, value),)))).revision


async def keys(store: Store, prefix: bytes, **options) -> list[bytes]:
    return [item.key for item in (await store.list(prefix, **options)).items]


async def test_a_missing_key_is_none_with_the_revision_of_the_store(store):
    revision = await put(store, b"other")
    reading = await store.get(b"missing")
    assert reading.item is None
    assert reading.revision == revision


async def test_an_empty_value_is_not_a_missing_key(store):
    await put(store, b"key", b"")
    assert (await store.get(b"key")).item.value == b""


@pytest.mark.parametrize("key", [b"\x00", b"\x00\xff", b"\xff", b"\xff\xff\xff", b"a/\x00/b", bytes(range(256))])
async def test_keys_and_values_may_hold_any_bytes(store, key):
    await put(store, key, key)
    assert (await store.get(key)).item.value == key
    assert await keys(store, b"") == [key]
    assert await keys(store, key) == [key]


@pytest.mark.parametrize("key", [b"", b"k" * 1025])
async def test_an_empty_or_overlong_key_is_refused(store, key):
    with pytest.raises(InvalidTxn):
        await store.get(key)
    with pytest.raises(InvalidTxn):
        await store.txn(Txn(ops=(Put(key, b"x"),)))


async def test_a_prefix_ends_where_the_next_key_begins(store):
    for key in (b"a", b"a\xff\xff", b"a/1", b"b", b"\xff", b"\xff\xff/x"):
        await put(store, key)
    assert await keys(store, b"a") == [b"a", b"a/1", b"a\xff\xff"]
    assert await keys(store, b"a\xff") == [b"a\xff\xff"]
    assert await keys(store, b"\xff") == [b"\xff", b"\xff\xff/x"]
    assert len(await keys(store, b"")) == 6


async def test_a_list_is_in_bytewise_order_with_its_revision(store):
    for key in (b"z", b"a", b"B", b"\x01"):
        revision = await put(store, key)
    listing = await store.list(b"")
    assert [item.key for item in listing.items] == [b"\x01", b"B", b"a", b"z"]
    assert listing.revision == revision
    assert not listing.more


async def test_pages_at_the_first_revision_equal_one_list_while_others_write(store):
    for number in range(50):
        await put(store, b"p/%02d" % number)
    whole = await store.list(b"p/")
    page = await store.list(b"p/", limit=7)
    found = list(page.items)
    step = 0
    while page.more:
        await put(store, b"p/%02d" % step, b"changed")
        await store.txn(Txn(ops=(Delete(b"p/%02d" % (49 - step)),)))
        step += 1
        page = await store.list(b"p/", limit=7, after=found[-1].key, revision=whole.revision)
        found += page.items
    assert tuple(found) == whole.items


async def test_many_keys_are_read_in_order_at_one_revision(store):
    await put(store, b"a", b"1")
    revision = await put(store, b"b", b"2")
    readings = await store.get_many((b"b", b"missing", b"a"))
    assert [reading.item and reading.item.value for reading in readings] == [b"2", None, b"1"]
    assert {reading.revision for reading in readings} == {revision}


async def test_more_keys_than_are_read_at_once_come_back_complete(store):
    wanted = [b"m/%04d" % number for number in range(1000)]
    await store.apply_all(Txn(ops=tuple(Put(key, key) for key in wanted)))
    assert [reading.item.value for reading in await store.get_many(wanted)] == wanted


async def test_the_past_can_be_listed_with_keys_deleted_since(store):
    await put(store, b"a", b"1")
    then = await put(store, b"b", b"1")
    await put(store, b"a", b"2")
    await store.txn(Txn(ops=(Delete(b"b"),)))
    listing = await store.list(b"", revision=then)
    assert [(item.key, item.value, item.version) for item in listing.items] == [(b"a", b"1", 1), (b"b", b"1", 1)]
    assert listing.revision == then


async def test_the_future_cannot_be_listed(store):
    revision = await put(store, b"a")
    with pytest.raises(FutureRevision):
        await store.list(b"", revision=revision + 1)


async def test_below_compaction_history_is_gone_and_at_it_there(store):
    await put(store, b"a", b"1")
    await put(store, b"gone")
    await store.txn(Txn(ops=(Delete(b"gone"),)))
    middle = await put(store, b"a", b"2")
    await put(store, b"a", b"3")
    await store.compact(middle)
    with pytest.raises(Compacted) as caught:
        await store.list(b"", revision=middle - 1)
    assert caught.value.compacted == middle
    assert [item.value for item in (await store.list(b"", revision=middle)).items] == [b"2"]
    assert (await store.get(b"a")).item.value == b"3"


async def test_compaction_may_be_repeated_and_never_goes_back(store):
    first = await put(store, b"a", b"1")
    second = await put(store, b"a", b"2")
    await store.compact(second)
    await store.compact(second)
    await store.compact(first)
    with pytest.raises(Compacted):
        await store.list(b"", revision=first)
    with pytest.raises(FutureRevision):
        await store.compact(second + 1)


async def test_ten_megabytes_are_listed_without_stopping_the_event_loop(store):
    value = b"v" * 1024
    ops = tuple(Put(b"big/%05d" % number, value) for number in range(10_000))
    await store.apply_all(Txn(ops=ops))
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)

    ticking = asyncio.create_task(tick())
    listing = await store.list(b"big/")
    ticking.cancel()
    assert len(listing.items) == 10_000
    assert sum(len(item.value) for item in listing.items) == 10_240_000
    assert ticks > 1


async def test_a_write_is_seen_by_every_read_after_its_acknowledgement(store):
    for number in range(100):
        revision = await put_if_absent(store, b"n/%d" % number, b"x")
        assert (await store.get(b"n/%d" % number)).item.create_revision == revision
        assert (await store.list(b"n/")).revision >= revision


async def test_a_closed_store_refuses_reads_and_writes(backend):
    store = await backend.open()
    await store.close()
    await store.close()
    for call in (store.get(b"a"), store.list(b""), store.txn(Txn(ops=(Put(b"a", b""),))), store.grant(1.0)):
        with pytest.raises(StoreUnavailable):
            await call
