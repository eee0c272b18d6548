"""Contract: what transactions do, and what a refused one leaves."""

from __future__ import annotations

import asyncio

import pytest

from msm.kit import errors as kit
from msm.store.base import Store, compare_and_set, put_if_absent
from msm.store.errors import InvalidTxn, StoreConflict, TooLarge
from msm.store.values import (
    MAX_TXN_BYTES,
    Compare,
    Delete,
    DeletePrefix,
    Put,
    Txn,
    absent,
    prefix_unchanged,
    present,
    unchanged,
)


async def do(store: Store, *ops, compares=()) -> int:
    return (await store.txn(Txn(tuple(compares), ops))).revision


async def numbers(store: Store, key: bytes):
    item = (await store.get(key)).item
    return None if item is None else (item.create_revision, item.mod_revision, item.version)


async def test_numbers_follow_puts_deletes_and_recreation(store):
    r1 = await do(store, Put(b"k", b"1"))
    assert await numbers(store, b"k") == (r1, r1, 1)
    r2 = await do(store, Put(b"k", b"2"))
    assert await numbers(store, b"k") == (r1, r2, 2)
    r3 = await do(store, Delete(b"k"))
    assert await numbers(store, b"k") is None
    r4 = await do(store, Put(b"k", b"3"))
    assert await numbers(store, b"k") == (r4, r4, 1)
    assert [r2, r3, r4] == [r1 + 1, r1 + 2, r1 + 3]


async def test_one_transaction_is_one_revision_and_a_refused_one_is_none(store):
    r1 = await do(store, Put(b"a", b""), Put(b"b", b""), Put(b"c", b""))
    assert (await numbers(store, b"a"))[1] == (await numbers(store, b"c"))[1] == r1
    with pytest.raises(StoreConflict):
        await do(store, Put(b"d", b""), compares=(absent(b"a"),))
    assert await do(store, compares=(present(b"a"),)) == r1
    assert await do(store, Put(b"d", b"")) == r1 + 1


async def test_fifty_creators_of_one_key_make_it_once(store):
    made = await asyncio.gather(*(put_if_absent(store, b"k", b"%d" % n) for n in range(50)))
    winners = [n for n, revision in enumerate(made) if revision is not None]
    assert len(winners) == 1
    assert (await store.get(b"k")).item.value == b"%d" % winners[0]


async def test_fifty_compare_and_set_let_one_through_per_round(store):
    revision = await put_if_absent(store, b"k", b"")
    for _ in range(5):
        tries = (compare_and_set(store, b"k", b"%d" % n, seen=revision) for n in range(50))
        won = [made for made in await asyncio.gather(*tries) if made is not None]
        assert len(won) == 1
        revision = won[0]
    assert (await store.get(b"k")).item.version == 6


@pytest.mark.parametrize(
    ("field", "relation", "offset", "holds"),
    [
        (field, relation, offset, {"=": offset == 0, "!=": offset != 0, "<": offset > 0, ">": offset < 0}[relation])
        for field in ("create", "mod", "version", "lease")
        for relation in ("=", "!=", "<", ">")
        for offset in (-1, 0, 1)
    ],
)
async def test_numbers_are_compared(store, field, relation, offset, holds):
    lease = await store.grant(60.0, lease=77)
    await do(store, Put(b"k", b"", lease))
    await do(store, Put(b"k", b"", lease))
    item = (await store.get(b"k")).item
    actual = {
        "create": item.create_revision,
        "mod": item.mod_revision,
        "version": item.version,
        "lease": item.lease,
    }[field]
    txn = Txn((Compare(b"k", field, relation, actual + offset),), (Put(b"out", b""),))
    if holds:
        await store.txn(txn)
    else:
        with pytest.raises(StoreConflict):
            await store.txn(txn)
    assert ((await store.get(b"out")).item is not None) == holds


@pytest.mark.parametrize(
    ("relation", "wanted", "holds"),
    [
        ("=", b"m", True), ("=", b"n", False), ("!=", b"m", False), ("!=", b"n", True),
        ("<", b"n", True), ("<", b"m", False), (">", b"a", True), (">", b"m", False), (">", b"m\x00", False),
    ],
)  # fmt: skip
async def test_values_are_compared_bytewise(store, relation, wanted, holds):
    await do(store, Put(b"k", b"m"))
    txn = Txn((Compare(b"k", "value", relation, wanted),), (Put(b"out", b""),))
    if holds:
        await store.txn(txn)
    else:
        with pytest.raises(StoreConflict):
            await store.txn(txn)


@pytest.mark.parametrize("relation", ["=", "!=", "<", ">"])
async def test_a_missing_key_has_no_value_to_compare(store, relation):
    with pytest.raises(StoreConflict) as caught:
        await store.txn(Txn((Compare(b"missing", "value", relation, b"x"),), (Put(b"out", b""),)))
    assert caught.value.found is None


async def test_absent_and_present_and_unchanged(store):
    await do(store, Put(b"a", b""), compares=(absent(b"a"), unchanged(b"a", 0)))
    mod = await do(store, Put(b"a", b""), compares=(present(b"a"),))
    await do(store, Put(b"b", b""), compares=(unchanged(b"a", mod),))
    for compare in (absent(b"a"), unchanged(b"a", mod - 1), unchanged(b"a", 0), present(b"c")):
        with pytest.raises(StoreConflict):
            await do(store, Put(b"out", b""), compares=(compare,))


async def test_a_whole_prefix_is_compared_at_once(store):
    r1 = await do(store, Put(b"p/1", b""), Put(b"p/2", b""), Put(b"q", b""))
    await do(store, Put(b"out", b"1"), compares=(prefix_unchanged(b"p/", r1), prefix_unchanged(b"none/", 0)))
    await do(store, Put(b"q", b"changed"))
    await do(store, Put(b"out", b"2"), compares=(prefix_unchanged(b"p/", r1),))
    await do(store, Put(b"p/2", b"changed"))
    with pytest.raises(StoreConflict) as caught:
        await do(store, Put(b"out", b"3"), compares=(prefix_unchanged(b"p/", r1),))
    assert caught.value.found.key == b"p/2"
    assert (await store.get(b"out")).item.value == b"2"


async def test_a_deletion_escapes_a_compare_of_the_prefix(store):
    r1 = await do(store, Put(b"p/1", b""), Put(b"p/2", b""))
    await do(store, Delete(b"p/1"))
    await do(store, Put(b"out", b""), compares=(prefix_unchanged(b"p/", r1),))


async def test_a_hundred_operations_are_done_together_or_not_at_all(store):
    ops = tuple(Put(b"k/%03d" % n, b"") for n in range(100))
    with pytest.raises(StoreConflict):
        await do(store, *ops, compares=(present(b"missing"),))
    assert (await store.list(b"k/")).items == ()
    revision = await do(store, *ops, compares=(absent(b"missing"),))
    assert {item.mod_revision for item in (await store.list(b"k/")).items} == {revision}


async def test_operations_delete_what_earlier_transactions_wrote(store):
    await do(store, Put(b"p/1", b""), Put(b"p/2", b""), Put(b"q", b""))
    result = await store.txn(Txn(ops=(DeletePrefix(b"p/"), Put(b"r", b""), Delete(b"q"))))
    assert result.changed == 4
    assert [item.key for item in (await store.list(b"")).items] == [b"r"]


@pytest.mark.parametrize(
    "ops",
    [
        (Put(b"a", b"1"), Put(b"a", b"2")),
        (Put(b"a", b"1"), Delete(b"a")),
        (Delete(b"a"), Put(b"a", b"1")),
        (DeletePrefix(b"a"), Put(b"a/1", b"")),
        (Put(b"a/1", b""), DeletePrefix(b"a")),
        (DeletePrefix(b"a"), DeletePrefix(b"a/")),
        (DeletePrefix(b""),),
    ],
    ids=repr,
)
@pytest.mark.parametrize("how", ["txn", "apply_all"])
async def test_a_transaction_that_touches_a_key_twice_is_refused(store, ops, how):
    before = await do(store, Put(b"a/old", b""))
    with pytest.raises(InvalidTxn) as caught:
        await getattr(store, how)(Txn(ops=ops))
    assert isinstance(caught.value, kit.InvalidInput)
    assert [item.key for item in (await store.list(b"")).items] == [b"a/old"]
    assert (await store.get(b"a")).revision == before


@pytest.mark.parametrize("compare", [Compare(b"a", "mod", "=", b"1"), Compare(b"a", "value", "=", 1)])
async def test_a_compare_with_the_wrong_type_is_refused(store, compare):
    with pytest.raises(InvalidTxn):
        await do(store, Put(b"b", b""), compares=(compare,))


async def test_deleting_nothing_makes_no_revision(store):
    before = await do(store, Put(b"a", b""))
    result = await store.txn(Txn(ops=(Delete(b"missing"), DeletePrefix(b"none/"))))
    assert (result.revision, result.changed) == (before, 0)
    assert (await store.get(b"a")).revision == before


async def test_the_limits_of_one_transaction(store):
    await do(store, *(Put(b"k/%03d" % n, b"") for n in range(128)))
    await do(store, Put(b"big", b"v" * (MAX_TXN_BYTES - 16 * 1024)))
    before = (await store.get(b"big")).revision
    too_large = [
        Txn(ops=tuple(Put(b"l/%03d" % n, b"") for n in range(129))),
        Txn(compares=tuple(absent(b"l/%03d" % n) for n in range(129)), ops=(Put(b"l", b""),)),
        Txn(ops=(Put(b"l/big", b"v" * (MAX_TXN_BYTES + 1)),)),
        Txn(ops=tuple(Put(b"l/%03d" % n, b"v" * 12_300) for n in range(128))),
    ]
    for txn in too_large:
        with pytest.raises(TooLarge):
            await store.txn(txn)
    assert (await store.list(b"l")).items == ()
    assert (await store.get(b"big")).revision == before


async def test_apply_all_is_atomic_beyond_the_limits(store):
    await do(store, Put(b"guard", b""))
    ops = tuple(Put(b"k/%05d" % n, b"v" * 700) for n in range(3000))
    with pytest.raises(StoreConflict):
        await store.apply_all(Txn((absent(b"guard"),), ops))
    assert (await store.list(b"k/")).items == ()
    compares = tuple(absent(op.key) for op in ops)
    result = await store.apply_all(Txn((*compares, present(b"guard")), ops))
    assert result.changed == 3000
    assert len((await store.list(b"k/", revision=result.revision)).items) == 3000
    with pytest.raises(StoreConflict):
        await store.apply_all(Txn(compares, tuple(Put(op.key, b"again") for op in ops)))
    assert {item.version for item in (await store.list(b"k/")).items} == {1}


async def test_one_value_is_limited_in_apply_all_too(store):
    with pytest.raises(TooLarge):
        await store.apply_all(Txn(ops=(Put(b"a", b""), Put(b"big", b"v" * (MAX_TXN_BYTES + 1)))))
    assert (await store.list(b"")).items == ()


async def test_a_conflict_names_the_compare_that_failed(store):
    mod = await do(store, Put(b"a", b""), Put(b"b", b""))
    failing = unchanged(b"b", mod + 5)
    with pytest.raises(StoreConflict) as caught:
        await do(store, Put(b"c", b""), compares=(unchanged(b"a", mod), failing, absent(b"a")))
    conflict = caught.value
    assert conflict.compare == failing
    assert conflict.found.mod_revision == mod
    assert conflict.revision == mod
    assert isinstance(conflict, kit.Conflict)
    assert "'b'" in conflict.message
    assert str(mod + 5) in conflict.message


async def test_a_failed_transaction_returns_the_reads_it_asked_for(store):
    await do(store, Put(b"a", b"1"), Put(b"b", b"2"))
    with pytest.raises(StoreConflict) as caught:
        await store.txn(Txn((absent(b"a"),), reads=(b"b", b"missing", b"a")))
    assert [item and item.value for item in caught.value.reads] == [b"2", None, b"1"]


async def test_conflicts_leave_their_neighbours_alone(store):
    await do(store, Put(b"taken", b""))

    async def one(number: int) -> bool:
        compares = (absent(b"taken"),) if number % 2 else ()
        try:
            await store.txn(Txn(compares, (Put(b"n/%03d" % number, b""),)))
        except StoreConflict:
            return False
        return True

    done = await asyncio.gather(*(one(number) for number in range(100)))
    assert done == [number % 2 == 0 for number in range(100)]
    items = (await store.list(b"n/")).items
    assert [item.key for item in items] == [b"n/%03d" % number for number in range(0, 100, 2)]
    assert len({item.mod_revision for item in items}) == 50


async def test_a_cancelled_write_is_whole_or_absent(store):
    async def write(number: int) -> None:
        await store.txn(Txn(ops=tuple(Put(b"c/%03d/%d" % (number, part), b"") for part in range(5))))

    for number in range(40):
        task = asyncio.create_task(write(number))
        for _ in range(number % 4):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
    await do(store, Put(b"after", b""))
    found: dict[bytes, int] = {}
    for item in (await store.list(b"c/")).items:
        group = item.key.rsplit(b"/", 1)[0]
        found[group] = found.get(group, 0) + 1
    assert set(found.values()) <= {5}
