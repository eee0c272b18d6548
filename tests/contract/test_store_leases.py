"""Contract: a lease ends its keys, by its own clock."""

from __future__ import annotations

import asyncio

import pytest

from msm.kit import errors as kit
from msm.store.base import Store
from msm.store.errors import InvalidTxn, LeaseGone
from msm.store.values import Put, Txn, absent
from tests.support.eventually import eventually

TTL_S = 10.0


async def do(store: Store, *ops) -> int:
    return (await store.txn(Txn(ops=ops))).revision


async def gone(store: Store, key: bytes) -> None:
    async def check() -> bool:
        return (await store.get(key)).item is None

    await eventually(check)


async def test_expiry_deletes_all_keys_of_the_lease_in_one_revision_and_a_watch_sees_it(backend, store):
    lease = await store.grant(TTL_S)
    start = await do(store, Put(b"a", b"", lease), Put(b"b", b"", lease), Put(b"free", b""))
    watch = store.watch(b"", start + 1)
    await backend.pass_time(TTL_S + 1)
    async with asyncio.timeout(10.0):
        (batch,) = [await anext(watch)]
    assert [(change.revision, change.key, change.item) for change in batch] == [
        (start + 1, b"a", None),
        (start + 1, b"b", None),
    ]
    assert [item.key for item in (await store.list(b"")).items] == [b"free"]


async def test_a_renewed_lease_lives_on_and_an_expired_one_is_gone(backend, store):
    lease = await store.grant(TTL_S)
    await do(store, Put(b"a", b"", lease))
    for _ in range(5):
        await backend.pass_time(TTL_S * 0.6)
        assert await store.keepalive(lease) == TTL_S
    before = (await store.get(b"a")).revision
    assert (await store.get(b"a")).item is not None
    await backend.pass_time(TTL_S + 1)
    await gone(store, b"a")
    assert (await store.get(b"a")).revision == before + 1
    with pytest.raises(LeaseGone) as caught:
        await store.keepalive(lease)
    assert isinstance(caught.value, kit.NotFound)


async def test_renewing_makes_no_revision(store):
    before = await do(store, Put(b"a", b""))
    lease = await store.grant(TTL_S)
    await store.keepalive(lease)
    assert (await store.get(b"a")).revision == before


async def test_a_put_with_a_dead_lease_writes_nothing(store):
    lease = await store.grant(TTL_S)
    await store.revoke(lease)
    before = (await store.get(b"a")).revision
    for dead in (lease, 4242):
        with pytest.raises(LeaseGone):
            await do(store, Put(b"a", b""), Put(b"b", b"", dead))
    assert (await store.list(b"")).items == ()
    assert (await store.get(b"a")).revision == before


async def test_revoking_deletes_the_keys_at_once(store):
    lease = await store.grant(TTL_S)
    revision = await do(store, Put(b"a", b"", lease), Put(b"b", b"", lease))
    await store.revoke(lease)
    listing = await store.list(b"")
    assert (listing.items, listing.revision) == ((), revision + 1)
    with pytest.raises(LeaseGone):
        await store.revoke(lease)


async def test_a_lease_without_keys_ends_without_a_revision(backend, store):
    before = (await store.get(b"a")).revision
    lease = await store.grant(TTL_S)
    await store.revoke(lease)
    assert (await store.get(b"a")).revision == before


async def test_a_key_written_anew_without_the_lease_survives_it(store):
    lease = await store.grant(TTL_S)
    await do(store, Put(b"a", b"1", lease))
    await do(store, Put(b"a", b"2"))
    await store.revoke(lease)
    assert (await store.get(b"a")).item.value == b"2"


async def test_a_lease_of_ones_own_choice_may_be_granted_twice(backend, store):
    assert await store.grant(TTL_S, lease=7) == 7
    await do(store, Put(b"a", b"", 7))
    await backend.pass_time(TTL_S * 0.6)
    assert await store.grant(TTL_S, lease=7) == 7
    assert (await store.get(b"a")).item.lease == 7
    await backend.pass_time(TTL_S * 0.6)  # the second grant did not renew
    await gone(store, b"a")


async def test_leases_end_in_the_order_of_their_deadlines(backend, store):
    for lease, ttl_s in ((1, 30.0), (2, 10.0), (3, 20.0)):
        await store.grant(ttl_s, lease=lease)
        await do(store, Put(b"k/%d" % lease, b"", lease))
    for wait_s, key in ((11.0, b"k/2"), (10.0, b"k/3"), (10.0, b"k/1")):
        await backend.pass_time(wait_s)
        await gone(store, key)
    assert (await store.list(b"k/")).items == ()


async def test_a_lease_must_have_a_time_to_live(store):
    for ttl_s in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(InvalidTxn):
            await store.grant(ttl_s)


async def test_jumps_of_the_wall_clock_change_nothing(backend, store):
    lease = await store.grant(TTL_S)
    await do(store, Put(b"a", b"", lease))
    for shift_s in (3600.0, -7200.0):
        await backend.shift_wall_clock(shift_s)
        await backend.pass_time(0.1)
        assert await store.keepalive(lease) == TTL_S
    assert (await store.get(b"a")).item is not None
    await backend.pass_time(TTL_S + 1)
    await gone(store, b"a")


async def test_a_restart_gives_every_lease_its_full_time(durable_backend):
    store = await durable_backend.open()
    lease = await store.grant(TTL_S)
    await do(store, Put(b"a", b"", lease))
    await durable_backend.pass_time(TTL_S * 0.8)
    await store.close()
    store = await durable_backend.open()
    await durable_backend.pass_time(TTL_S * 0.8)
    assert await store.keepalive(lease) == TTL_S
    assert (await store.get(b"a")).item.lease == lease
    await durable_backend.pass_time(TTL_S + 1)
    await gone(store, b"a")
    await store.close()


async def test_a_key_freed_by_its_lease_can_be_taken_by_another(backend, store):
    first, second = await store.grant(TTL_S), await store.grant(TTL_S * 10)
    await store.txn(Txn((absent(b"owner"),), (Put(b"owner", b"1", first),)))
    await backend.pass_time(TTL_S + 1)
    await gone(store, b"owner")
    await store.txn(Txn((absent(b"owner"),), (Put(b"owner", b"2", second),)))
    assert (await store.get(b"owner")).item.value == b"2"
