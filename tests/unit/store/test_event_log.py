"""The event log keeps what it can, tells what it could not, and never stands in the way."""

from __future__ import annotations

import asyncio

import pytest

from msm.observe.events import Event
from msm.store import NoSpace
from msm.store import events as event_module
from msm.store.events import EventLog
from msm.store.keys import EVENT
from msm.store.values import Put, Txn
from tests.support.eventually import eventually

HOUR_S = 3600.0


def an_event(clock, number: int = 0, subject: str = "model/iris", **data) -> Event:
    return Event(at=clock.wall(), subject=subject, reason="Seen", message=f"event {number}", source="test", data=data)


def messages(events) -> list[str]:
    return [event.message for event in events]


async def take(follower, count: int) -> list[Event]:
    async with asyncio.timeout(10.0):
        return [await anext(follower) for _ in range(count)]


class FullStore:
    """A store whose disk is full while `full` is set."""

    def __init__(self, store) -> None:
        self._store = store
        self.full = True
        self.refused = 0

    def __getattr__(self, name):
        return getattr(self._store, name)

    async def apply_all(self, txn):
        if self.full:
            self.refused += 1
            raise NoSpace("the disk is full")
        return await self._store.apply_all(txn)


@pytest.fixture
def log(store, clock) -> EventLog:
    return EventLog(store, clock)


async def test_an_event_is_listed_at_once_and_again_after_a_restart(log, store, clock):
    for number in range(3):
        log.emit(an_event(clock, number, count=number))
    listed = await log.list()
    assert messages(listed) == ["event 0", "event 1", "event 2"]
    await log.flush()
    restarted = EventLog(store, clock)
    assert await restarted.list() == ()
    await restarted.load()
    assert await restarted.list() == listed


async def test_a_list_ends_with_the_newest_and_obeys_its_limits(log, clock):
    for number in range(10):
        log.emit(an_event(clock, number))
        await clock.advance(1.0)
    assert messages(await log.list(limit=2)) == ["event 8", "event 9"]
    assert messages(await log.list(since=clock.wall() - 3.0)) == ["event 7", "event 8", "event 9"]


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [
        ("model/iris", ["model/iris", "model/iris/v1"]),
        ("model/iris/", ["model/iris", "model/iris/v1"]),
        ("model", ["model/iris", "model/iris2", "model/iris/v1"]),
        ("worker", ["worker/w0"]),
        ("mod", []),
        (None, ["model/iris", "model/iris2", "model/iris/v1", "worker/w0"]),
    ],
)
async def test_a_subject_prefix_means_an_object_and_what_belongs_to_it(log, clock, prefix, expected):
    for subject in ("model/iris", "model/iris2", "model/iris/v1", "worker/w0"):
        log.emit(an_event(clock, subject=subject))
    assert [event.subject for event in await log.list(prefix)] == expected


async def test_what_has_left_memory_is_read_from_the_store(log, store, clock, monkeypatch):
    monkeypatch.setattr(event_module, "IN_MEMORY", 5)
    small = EventLog(store, clock)
    start = clock.wall()
    for number in range(20):
        small.emit(an_event(clock, number))
        await small.flush()
        await clock.advance(HOUR_S / 5)
    assert messages(await small.list()) == [f"event {n}" for n in range(15, 20)]
    assert messages(await small.list(since=start)) == [f"event {n}" for n in range(20)]
    assert messages(await small.list(since=start + HOUR_S, limit=7)) == [f"event {n}" for n in range(13, 20)]


async def test_run_stores_what_gathers_in_few_records(log, store, clock):
    running = asyncio.create_task(log.run())
    for number in range(120):
        log.emit(an_event(clock, number))

    async def records():
        return (await store.list(EVENT)).items

    await eventually(records)
    assert len(await records()) == 3
    log.emit(an_event(clock, 120))
    await clock.advance(1.0)
    await eventually(lambda: _is(records, 4))
    running.cancel()
    await asyncio.wait([running])


async def _is(records, count: int) -> bool:
    return len(await records()) == count


async def test_ending_run_stores_what_still_waits(log, store, clock):
    running = asyncio.create_task(log.run())
    await asyncio.sleep(0)
    log.emit(an_event(clock, 1))
    running.cancel()
    await asyncio.wait([running])
    restarted = EventLog(store, clock)
    await restarted.load()
    assert messages(await restarted.list()) == ["event 1"]


async def test_followers_get_every_event_after_their_call(log, clock):
    log.emit(an_event(clock, 0))
    everything, iris = log.follow(), log.follow("model/iris")
    log.emit(an_event(clock, 1, subject="worker/w0"))
    log.emit(an_event(clock, 2))
    assert messages(await take(everything, 2)) == ["event 1", "event 2"]
    waiting = asyncio.create_task(take(iris, 2))
    await asyncio.sleep(0)
    log.emit(an_event(clock, 3, subject="worker/w0"))
    log.emit(an_event(clock, 4))
    assert messages(await waiting) == ["event 2", "event 4"]


async def test_a_slow_follower_costs_no_memory_and_goes_on_with_what_is_left(store, clock, monkeypatch):
    monkeypatch.setattr(event_module, "IN_MEMORY", 5)
    log = EventLog(store, clock)
    follower = log.follow()
    for number in range(12):
        log.emit(an_event(clock, number))
    assert messages(await take(follower, 5)) == [f"event {n}" for n in range(7, 12)]


async def test_more_than_may_wait_is_dropped_counted_and_told(store, clock, monkeypatch):
    monkeypatch.setattr(event_module, "WAITING", 10)
    log = EventLog(store, clock)
    for number in range(15):
        log.emit(an_event(clock, number))
    assert log.dropped == 5
    assert len(await log.list()) == 15
    await log.flush()
    await log.flush()
    restarted = EventLog(store, clock)
    await restarted.load()
    stored = await restarted.list()
    assert messages(stored)[:10] == [f"event {n}" for n in range(10)]
    assert [(event.reason, event.data) for event in stored[10:]] == [("EventsDropped", {"count": 5})]


async def test_an_hour_takes_so_many_events_and_the_next_one_tells_of_the_rest(store, clock, monkeypatch):
    monkeypatch.setattr(event_module, "PER_HOUR", 10)
    log = EventLog(store, clock)
    for number in range(25):
        log.emit(an_event(clock, number))
        await log.flush()
    assert log.dropped == 15
    await clock.advance(HOUR_S)
    await log.flush()
    told = [event for event in await log.list() if event.reason == "EventsDropped"]
    assert [event.data for event in told] == [{"count": 15}]
    restarted = EventLog(store, clock)
    await restarted.load()
    assert len(await restarted.list()) == 11


async def test_a_store_that_refuses_does_not_stop_the_log(store, clock):
    broken = FullStore(store)
    log = EventLog(broken, clock)
    running = asyncio.create_task(log.run())
    log.emit(an_event(clock, 1))
    await eventually(lambda: broken.refused)
    log.emit(an_event(clock, 2))
    broken.full = False

    async def stored():
        await clock.advance(1.0)
        return (await store.list(EVENT)).items

    await eventually(stored)
    assert not running.done()
    running.cancel()
    await asyncio.wait([running])
    restarted = EventLog(store, clock)
    await restarted.load()
    assert messages(await restarted.list()) == ["event 1", "event 2"]


async def test_an_event_that_cannot_be_stored_as_it_is_is_stored_without_its_data(log, store, clock):
    log.emit(an_event(clock, 1, strange=object()))
    log.emit(an_event(clock, 2, large="x" * 100_000))
    log.emit(Event(at=float("nan"), subject="model/\ud800", reason="Odd", message="odd", source="test"))
    log.emit(an_event(clock, 3, fine=1))
    await log.flush()
    restarted = EventLog(store, clock)
    await restarted.load()
    stored = await restarted.list()
    assert messages(stored) == ["event 1", "event 2", "odd", "event 3"]
    assert [set(event.data) for event in stored] == [{"omitted"}, {"omitted"}, {"omitted"}, {"fine"}]
    assert stored[2].at == clock.wall()


async def test_expiry_removes_whole_hours_and_nothing_younger(log, store, clock):
    for number in range(6):
        log.emit(an_event(clock, number))
        await log.flush()
        await clock.advance(HOUR_S)
    await store.txn(Txn(ops=(Put(b"/msm/eventual", b"not an event"),)))
    assert await log.expire(3 * HOUR_S) == 3
    assert messages(await log.list()) == ["event 3", "event 4", "event 5"]
    restarted = EventLog(store, clock)
    await restarted.load()
    assert messages(await restarted.list()) == ["event 3", "event 4", "event 5"]
    assert await log.expire(3 * HOUR_S) == 0
    assert (await store.get(b"/msm/eventual")).item is not None
