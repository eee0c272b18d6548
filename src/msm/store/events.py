"""The event log: what the mesh decided and saw, for people. Never in the way of what it reports about.

`emit` only puts the event into memory; one background coroutine writes what has gathered, several events a record, in
buckets by the hour so that retention is one deletion per hour. The newest events stay in memory, where `list` and
`follow` find them. Events are a courtesy, not the truth: when they come faster than they may be stored, or the store
refuses, they are dropped and counted, and an event says so.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import deque
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from itertools import count, islice

import msgspec

from msm.kit.clock import Clock
from msm.observe.events import Event
from msm.observe.logs import get_logger
from msm.store.base import Store
from msm.store.codec import Codec
from msm.store.errors import Ambiguous, StoreError
from msm.store.keys import EVENT
from msm.store.values import DeletePrefix, Put, Txn, absent

IN_MEMORY = 4096  # events that stay in memory
WAITING = 4096  # events that may wait to be written
PER_RECORD = 50
PER_HOUR = 20_000  # events stored in one hour
PAUSE_S = 0.2  # between writes: so many revisions a second at most
RETRY_S = 5.0
MOST_AT_ONCE = 1_000  # events in one transaction
MOST_BYTES = 16 * 1024  # of one event
MOST_TEXT = 2_000  # characters kept of each text of an event that is too large
HOUR_S = 3600.0
LATEST_AT = 32_503_680_000.0  # the year 3000
KEPT_HOURS = 7 * 24

Events = list[Event]  # inside the class `list` is the method

_codec: Codec[tuple[Event, ...]] = Codec(tuple[Event, ...])


class EventLog:
    """Belongs to one event loop. `run` must be running for events to be kept beyond memory."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._recent: deque[Event] = deque(maxlen=IN_MEMORY)
        self._count = 0  # events ever put into `_recent` by `emit`: the position of its right end
        self._waiting: deque[Event] = deque()
        self._emitted = asyncio.Event()
        self._dropped = 0
        self._unreported = 0
        self._flushing = asyncio.Lock()
        self._records = count()
        self._hour = ""
        self._stored_in_hour = 0

    @property
    def dropped(self) -> int:
        """How many events were not stored because they came too fast or the store refused."""
        return self._dropped

    def emit(self, event: Event) -> None:
        """Take one event. Never waits and never fails; what cannot be stored is still seen by `list` and `follow`."""
        self._recent.append(event)
        self._count += 1
        if len(self._waiting) < WAITING:
            self._waiting.append(event)
        else:
            self._drop(1)
        self._emitted.set()
        self._emitted = asyncio.Event()

    async def load(self) -> None:
        """Bring the newest stored events into memory; called once at start, before `list` is answered."""
        older: Events = []
        now = self._clock.wall()
        for back in range(KEPT_HOURS):
            if len(older) >= IN_MEMORY - len(self._recent):
                break
            older = [*await self._stored(bucket(now - back * HOUR_S)), *older]
        room = IN_MEMORY - len(self._recent)
        self._recent.extendleft(reversed(older[-room:] if room else []))

    async def run(self) -> None:
        """Write events until cancelled, then write what is left. Store errors are logged, never raised."""
        try:
            while True:
                emitted = self._emitted
                if not self._waiting:
                    await emitted.wait()
                await self._clock.sleep(PAUSE_S if await self._try_flush() else RETRY_S)
        finally:
            await self._try_flush()

    async def flush(self) -> None:
        """Store every event that waits. Raises what the store raises; then the events wait on."""
        async with self._flushing:
            while True:
                self._report_dropped()
                taken = list(islice(self._waiting, MOST_AT_ONCE))
                if not taken:
                    return
                stored = taken[: self._left_in_hour()]
                await self._write(stored)
                for _ in taken:
                    self._waiting.popleft()
                self._stored_in_hour += len(stored)
                self._drop(len(taken) - len(stored))

    async def list(
        self, subject_prefix: str | None = None, since: float | None = None, limit: int = 200
    ) -> tuple[Event, ...]:
        """The newest `limit` events, oldest first, at or after wall time `since`.

        `subject_prefix` "model/iris" means that object and what belongs to it ("model/iris/v1"), not "model/iris2".
        Answered from memory, unless `since` reaches further back than memory does.
        """
        found = [e for e in self._recent if _wanted(e, subject_prefix, since)]
        oldest = self._recent[0].at if self._recent else None
        if since is None or oldest is None or len(self._recent) < IN_MEMORY:  # memory holds all there is
            return tuple(found[-limit:])
        if oldest <= since or len(found) >= limit:
            return tuple(found[-limit:])
        return tuple([*await self._older(subject_prefix, since, oldest), *found][-limit:])

    def follow(self, subject_prefix: str | None = None) -> AsyncIterator[Event]:
        """Every event emitted after this call. A reader slower than memory is long misses what fell out of it."""
        return self._follow(subject_prefix, self._count)

    async def expire(self, older_than_s: float) -> int:
        """Delete the hours that ended more than `older_than_s` ago; returns how many there were."""
        first_kept = bucket(self._clock.wall() - older_than_s)
        removed = 0
        while True:
            oldest = (await self._store.list(EVENT, limit=1)).items
            if not oldest or (hour := _hour_of(oldest[0].key)) >= first_kept:
                break
            await self._store.txn(Txn(ops=(DeletePrefix(EVENT + hour.encode() + b"/"),)))
            removed += 1
        while self._recent and bucket(self._recent[0].at) < first_kept:
            self._recent.popleft()
        return removed

    async def _follow(self, subject_prefix: str | None, position: int) -> AsyncIterator[Event]:
        while True:
            emitted = self._emitted
            new = min(self._count - position, len(self._recent))
            position = self._count
            for event in list(islice(self._recent, len(self._recent) - new, None)):
                if _wanted(event, subject_prefix, None):
                    yield event
            if position == self._count:
                await emitted.wait()

    async def _try_flush(self) -> bool:
        try:
            await self.flush()
        except StoreError as failure:
            get_logger("events").warning("events_not_stored", waiting=len(self._waiting), error=failure.message)
            return False
        return True

    async def _write(self, events: Events) -> None:
        puts = tuple(
            Put(_record_key(hour, chunk[0].at, next(self._records)), _codec.encode(tuple(chunk)))
            for hour, chunk in _chunks([_storable(event, self._clock) for event in events])
        )
        if not puts:
            return
        try:
            await self._store.apply_all(Txn(tuple(absent(put.key) for put in puts), puts))
        except Ambiguous:  # to write them again might show them twice
            get_logger("events").warning("events_may_be_lost", count=len(events))

    def _left_in_hour(self) -> int:
        hour = bucket(self._clock.wall())
        if hour != self._hour:
            self._hour, self._stored_in_hour = hour, 0
        return max(0, PER_HOUR - self._stored_in_hour)

    def _drop(self, events: int) -> None:
        self._dropped += events
        self._unreported += events

    def _report_dropped(self) -> None:
        """Put the number of dropped events among those that are to be stored, once there is room for it."""
        dropped = self._unreported
        if not dropped or len(self._waiting) >= WAITING or not self._left_in_hour():
            return
        self._unreported = 0
        self.emit(
            Event(
                at=self._clock.wall(),
                subject="events",
                reason="EventsDropped",
                message=f"{dropped} events were not stored because they came too fast or the store refused them",
                source="events",
                severity="warning",
                data={"count": dropped},
            )
        )

    async def _older(self, subject_prefix: str | None, since: float, before: float) -> Events:
        """Stored events between the two times, oldest first."""
        found: Events = []
        at = max(since, before - KEPT_HOURS * HOUR_S)
        while bucket(at) <= bucket(before):
            events = await self._stored(bucket(at))
            found += [e for e in events if e.at < before and _wanted(e, subject_prefix, since)]
            at += HOUR_S
        return found

    async def _stored(self, hour: str) -> Events:
        listing = await self._store.list(EVENT + hour.encode() + b"/")
        return [event for item in listing.items for event in _codec.decode(item.value)]


def bucket(at: float) -> str:
    """The hour of a wall time in UTC; later hours sort later."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y%m%d%H")


def _hour_of(key: bytes) -> str:
    return key[len(EVENT) :].split(b"/", 1)[0].decode()


def _record_key(hour: str, at: float, number: int) -> bytes:
    """Sorts by time, and within a millisecond in the order of writing."""
    return EVENT + f"{hour}/{at * 1000:015.0f}-{number:08d}-{uuid.uuid4().hex[:8]}".encode()


def _storable(event: Event, clock: Clock) -> Event:
    """The event, or what can be kept of one that is too large, not JSON, or out of time."""
    if not 0 <= event.at < LATEST_AT:
        event = msgspec.structs.replace(event, at=clock.wall())
    try:
        if len(msgspec.json.encode(event)) <= MOST_BYTES:
            return event
    except (TypeError, ValueError, OverflowError) as failure:
        get_logger("events").warning("event_not_storable", subject=repr(event.subject), error=str(failure))
    kept = {
        name: getattr(event, name)[:MOST_TEXT].encode("utf-8", "replace").decode()
        for name in ("subject", "reason", "message", "source")
    }
    return msgspec.structs.replace(event, **kept, data={"omitted": "the data was too large or not JSON"})


def _chunks(events: list[Event]) -> Iterator[tuple[str, list[Event]]]:
    """Runs of events of one hour, in order, of at most PER_RECORD."""
    chunk: list[Event] = []
    hour = ""
    for event in events:
        own = bucket(event.at)
        if chunk and (own != hour or len(chunk) == PER_RECORD):
            yield hour, chunk
            chunk = []
        hour = own
        chunk.append(event)
    if chunk:
        yield hour, chunk


def _wanted(event: Event, subject_prefix: str | None, since: float | None) -> bool:
    if since is not None and event.at < since:
        return False
    if subject_prefix is None:
        return True
    prefix = subject_prefix.rstrip("/")
    return event.subject == prefix or event.subject.startswith(prefix + "/")
