"""Contract: a watch tells every change once, in order, by whole revisions."""

from __future__ import annotations

import asyncio
import threading

import pytest

from msm.store.base import Store
from msm.store.errors import Compacted, StoreUnavailable
from msm.store.values import Change, Delete, DeletePrefix, Put, Txn

DEADLINE_S = 10.0


async def do(store: Store, *ops) -> int:
    return (await store.txn(Txn(ops=ops))).revision


async def take(watch, count: int) -> list[tuple[Change, ...]]:
    """Batches until they hold `count` changes."""
    batches: list[tuple[Change, ...]] = []
    async with asyncio.timeout(DEADLINE_S):
        while sum(len(batch) for batch in batches) < count:
            batches.append(await anext(watch))
    assert sum(len(batch) for batch in batches) == count
    return batches


def flat(batches) -> list[tuple[int, bytes, bytes | None]]:
    return [(c.revision, c.key, c.item and c.item.value) for batch in batches for c in batch]


async def test_changes_from_a_revision_on_come_in_order(store):
    await do(store, Put(b"p/a", b"0"))
    r1 = await do(store, Put(b"p/a", b"1"))
    r2 = await do(store, Put(b"other", b""))
    r3 = await do(store, Put(b"p/b", b"2"))
    r4 = await do(store, Delete(b"p/a"))
    found = flat(await take(store.watch(b"p/", r1), 3))
    assert found == [(r1, b"p/a", b"1"), (r3, b"p/b", b"2"), (r4, b"p/a", None)]
    assert r2 not in {revision for revision, _, _ in found}
    assert flat(await take(store.watch(b"", r2), 3))[0] == (r2, b"other", b"")


async def test_a_change_carries_the_key_as_it_became(store):
    first = await do(store, Put(b"k", b"1"))
    await do(store, Put(b"k", b"2"))
    changes = [change for batch in await take(store.watch(b"k", first), 2) for change in batch]
    assert [change.item.version for change in changes] == [1, 2]
    assert changes[1].item == (await store.get(b"k")).item


async def test_a_waiting_watch_is_woken_by_a_commit(store):
    start = (await store.get(b"k")).revision + 1
    watch = store.watch(b"k", start)
    waiting = asyncio.create_task(take(watch, 1))
    await asyncio.sleep(0)
    revision = await do(store, Put(b"k", b"1"))
    assert flat(await waiting) == [(revision, b"k", b"1")]


async def test_all_changes_of_a_revision_come_together(store):
    r1 = await do(store, *(Put(b"p/%03d" % n, b"") for n in range(100)))
    await do(store, DeletePrefix(b"p/"))
    big = await store.apply_all(Txn(ops=tuple(Put(b"p/%05d" % n, b"") for n in range(7000))))
    batches = await take(store.watch(b"p/", r1), 7200)
    owners: dict[int, int] = {}
    for index, batch in enumerate(batches):
        for change in batch:
            assert owners.setdefault(change.revision, index) == index
    assert max(owners) == big.revision


async def test_thousands_of_revisions_are_caught_up_after_a_break_in_the_middle(store):
    start = (await store.get(b"k")).revision + 1
    for first in range(0, 2500, 100):
        await asyncio.gather(*(do(store, Put(b"k/%d" % (n % 7), b"%d" % n)) for n in range(first, first + 100)))
    seen: list[Change] = []
    async with asyncio.timeout(DEADLINE_S):
        while len(seen) < 2500:  # each turn is a new watch, as after a lost connection
            watch = store.watch(b"k/", seen[-1].revision + 1 if seen else start)
            seen += await anext(watch)
            await watch.aclose()
    assert [change.revision for change in seen] == list(range(start, start + 2500))


async def test_a_watch_from_compacted_history_says_so(store):
    first = await do(store, Put(b"k", b"1"))
    await do(store, Put(b"k", b"2"))
    last = await do(store, Put(b"k", b"3"))
    await store.compact(last)
    with pytest.raises(Compacted):
        await take(store.watch(b"k", first), 1)
    assert flat(await take(store.watch(b"k", last), 1)) == [(last, b"k", b"3")]


async def test_a_deletion_at_the_compacted_revision_is_still_told(store):
    await do(store, Put(b"k", b"1"))
    gone = await do(store, Delete(b"k"))
    await store.compact(gone)
    assert flat(await take(store.watch(b"k", gone), 1)) == [(gone, b"k", None)]


async def test_a_watch_overtaken_by_compaction_raises_and_one_that_kept_up_goes_on(store):
    start = await do(store, Put(b"k", b"0"))
    slow, fast = store.watch(b"k", start), store.watch(b"k", start)
    await take(slow, 1)
    await take(fast, 1)
    for number in range(20):
        last = await do(store, Put(b"k", b"%d" % number))
    await take(fast, 20)
    await store.compact(last)
    with pytest.raises(Compacted):
        await take(slow, 1)
    after = await do(store, Put(b"k", b"after"))
    assert flat(await take(fast, 1)) == [(after, b"k", b"after")]


async def test_a_slow_watch_loses_nothing_and_gets_bounded_batches(store):
    start = (await store.get(b"k")).revision + 1
    slow, fast = store.watch(b"k/", start), store.watch(b"k/", start)
    told: list[Change] = []
    for number in range(300):
        await do(store, *(Put(b"k/%d/%d" % (number, part), b"") for part in range(40)))
        told += (await take(fast, 40))[0]
    batches = await take(slow, 300 * 40)
    assert [change for batch in batches for change in batch] == told
    assert max(len(batch) for batch in batches) < 300 * 40


async def test_a_watch_of_the_future_waits_for_it(store):
    now = await do(store, Put(b"k", b"0"))
    watch = store.watch(b"k", now + 3)
    waiting = asyncio.create_task(take(watch, 1))
    for number in (1, 2, 3):
        last = await do(store, Put(b"k", b"%d" % number))
    assert flat(await waiting) == [(last, b"k", b"3")]


async def test_closing_the_store_ends_watches_and_leaves_no_task_or_thread(backend):
    tasks, threads = asyncio.all_tasks(), set(threading.enumerate())
    store = await backend.open()
    await store.grant(60.0)
    start = await do(store, Put(b"k", b"0"))

    async def follow() -> None:
        async for _ in store.watch(b"k", start):
            pass

    follower = asyncio.create_task(follow())
    await store.list(b"")
    await store.close()
    with pytest.raises(StoreUnavailable):
        async with asyncio.timeout(DEADLINE_S):
            await follower
    assert asyncio.all_tasks() == tasks
    assert set(threading.enumerate()) == threads
