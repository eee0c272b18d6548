"""The catalog: declared models with their numbered history, their status, and measured costs, on top of any store.

Everything that reaches the mesh from people passes through `apply`, `delete` and `rollback`; controllers add what
they found with `put_status` and `put_cost`, and read with `list` and `watch`. The catalog decides nothing about where
models run. Writes are planned by `catalog_plan` from what was read and guarded by it; after a lost race they are read
and planned again.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Literal, TypeVar, overload

import msgspec

from msm.kit.clock import Clock
from msm.kit.errors import Conflict, NotFound
from msm.kit.nearest import hint, nearest
from msm.resources.meta import ObjectKey
from msm.resources.runtimes import ServingRuntime
from msm.resources.serving import Model, ModelStatus, Resource
from msm.store import keys, records
from msm.store.base import Store
from msm.store.catalog_plan import (
    Author,
    Plan,
    Seen,
    check_resources,
    check_runtimes,
    check_seen,
    find_generation,
    needed_runtimes,
    plan_apply,
    plan_delete,
    plan_rollback,
    txn_of,
    users_of,
)
from msm.store.errors import Compacted, StoreConflict
from msm.store.records import CatalogChange, Change, Cost, RevisionEntry, stored_resource
from msm.store.values import Compare, KeyValue, Put, Txn, present, unchanged

T = TypeVar("T")

Changes = list[Change]  # inside the class `list` is the method
Resources = list[Resource]

ATTEMPTS = 8  # at one write, each lost to another writer
PAGE = 500  # records decoded at a time: about 5 ms of event loop
IN_THREAD = 50  # documents from which on checking and encoding an apply leaves the event loop
SHOWN_USERS = 5  # of a runtime, in the refusal to delete it
NEAREST_AMONG = 1000  # names looked at for the hint in a NotFound


class Catalog:
    """Typed records over a `Store`. Holds no state: any number may work on one store."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def apply(self, resources: Sequence[Resource], *, who: str, dry_run: bool = False) -> Changes:
        """Make all objects what the documents declare, in one transaction; changes are in their order.

        A document equal to what is there is "unchanged" and writes nothing. The status in a document is ignored.
        With `dry_run` nothing is written and the changes tell what would be. Raises InvalidInput with all problems;
        Conflict when a given resource version is stale, or with reason "version_immutable" when a version that
        keeps its name would change.
        """
        await _offloaded(len(resources), lambda: check_resources(resources))
        wanted = [resource.key for resource in resources]
        author = self._author(who)

        async def attempt() -> Changes:
            seen = await self._seen(wanted)
            plans = await _offloaded(len(resources), lambda: plan_apply(resources, seen, author))
            guards = await self._runtimes_of(plans)
            return [plan.change for plan in plans] if dry_run else await self._commit(plans, guards)

        return await _retried(attempt)

    async def delete(self, key: ObjectKey, *, who: str, resource_version: int | None = None) -> Change:
        """Remove an object; its history stays. Raises NotFound, and Conflict for a stale resource version or for a
        runtime that a model still names."""
        author = self._author(who)

        async def attempt() -> Changes:
            seen = (await self._seen((key,)))[key]
            if seen.resource is None:
                raise await self._not_found(key)
            check_seen(key, resource_version, seen)
            if key.kind == ServingRuntime.kind:
                await self._check_unused(key)
            return await self._commit([plan_delete(key, seen, author)])

        return (await _retried(attempt))[0]

    async def rollback(self, key: ObjectKey, *, to: int | None, who: str) -> Change:
        """A new generation with the content of generation `to`; None: the newest earlier one that differs.

        A deleted object comes back. Raises NotFound for an unknown object or generation; Conflict with reason
        "nothing_to_roll_back" when no earlier one differs, "version_immutable" when a version would change.
        """
        author = self._author(who)

        async def attempt() -> Changes:
            entries = await self.history(key)
            seen = (await self._seen((key,)))[key]
            plans = [plan_rollback(key, to, entries, seen, author)]
            return await self._commit(plans, await self._runtimes_of(plans))

        return (await _retried(attempt))[0]

    async def get(self, key: ObjectKey) -> Resource:
        """The object with its status; raises NotFound with the nearest names."""
        res, status = await self._store.get_many((keys.res_key(key), keys.status_key(key)))
        if res.item is None:
            raise await self._not_found(key)
        return _merged(res.item, status.item)

    async def model(self, key: ObjectKey) -> Model:
        """The model with its status; raises NotFound with the nearest names."""
        found = await self.get(key)
        if not isinstance(found, Model):
            raise NotFound(f"{key} is not a model")
        return found

    @overload
    async def list(self, kind: Literal["Model"], namespace: str | None = None) -> tuple[int, tuple[Model, ...]]: ...
    @overload
    async def list(
        self, kind: Literal["ServingRuntime"], namespace: str | None = None
    ) -> tuple[int, tuple[ServingRuntime, ...]]: ...
    async def list(self, kind: str, namespace: str | None = None) -> tuple[int, tuple[Any, ...]]:
        """All objects of a kind by namespace and name, with their status, and the revision they stood at.

        One snapshot, read and decoded in pages so that a hundred thousand objects do not stop the event loop.
        """
        res, status = keys.scope(keys.RES, kind, namespace), keys.scope(keys.STATUS, kind, namespace)

        async def attempt() -> tuple[int, tuple[Any, ...]]:
            first = await self._store.list(status, limit=1)
            statuses: dict[bytes, KeyValue] = {}
            async for page in self._pages(status, first.revision):
                statuses.update((item.key[len(status) :], item) for item in page)
            found: Resources = []
            async for page in self._pages(res, first.revision):
                found += [_merged(item, statuses.pop(item.key[len(res) :], None)) for item in page]
            return first.revision, tuple(found)

        return await _retried(attempt)

    async def history(self, key: ObjectKey) -> tuple[RevisionEntry, ...]:
        """Every accepted change, oldest first, also of a deleted object; raises NotFound when there never was one."""
        listing = await self._store.list(keys.rev_prefix(key))
        if not listing.items:
            raise await self._not_found(key)
        return tuple(_entry(item) for item in listing.items)

    async def at_generation(self, key: ObjectKey, generation: int) -> Resource:
        """The object as that generation declared it; raises NotFound for an unknown one and for a deletion."""
        found = find_generation(key, generation, await self.history(key)).resource
        assert found is not None, "find_generation refuses deletions"
        return found

    async def put_status(self, key: ObjectKey, status: ModelStatus) -> bool:
        """Record what was found out; False when it is recorded already. Raises NotFound for an unknown object.

        The last writer wins: one controller at a time owns the status of an object.
        """

        async def attempt() -> bool:
            res, old = await self._store.get_many((keys.res_key(key), keys.status_key(key)))
            if res.item is None:
                raise await self._not_found(key)
            guard = present(keys.res_key(key))
            return await self._put(old.item, keys.status_key(key), records.STATUS.encode(status), guard)

        return await _retried(attempt)

    async def update_status(self, key: ObjectKey, change: Callable[[ModelStatus], ModelStatus]) -> bool:
        """Record `change(status)`; False when that is the status already, or when the object is gone.

        For controllers that own different parts of a status: a race between them is read and changed again, so
        `change` may be called several times and must have no effects.
        """

        async def attempt() -> bool:
            res, old = await self._store.get_many((keys.res_key(key), keys.status_key(key)))
            if res.item is None:
                return False
            known = ModelStatus() if old.item is None else records.STATUS.decode(old.item.value)
            guard = present(keys.res_key(key))
            return await self._put(old.item, keys.status_key(key), records.STATUS.encode(change(known)), guard)

        return await _retried(attempt)

    async def put_cost(self, digest: str, cost: Cost) -> bool:
        """Record a measurement of an artifact in `cost.format`; False when it is recorded already."""
        key = keys.COST + keys.cost_key(digest, cost.format).encode()

        async def attempt() -> bool:
            return await self._put((await self._store.get(key)).item, key, records.COST.encode(cost))

        return await _retried(attempt)

    async def costs(self) -> dict[str, Cost]:
        """All measurements by `msm.store.keys.cost_key`."""
        listing = await self._store.list(keys.COST)
        return {item.key[len(keys.COST) :].decode(): records.COST.decode(item.value) for item in listing.items}

    async def watch(self, from_revision: int) -> AsyncIterator[tuple[CatalogChange, ...]]:
        """Objects whose declaration or status changed at or after a revision, each as it stands when told.

        An object may be told again although nothing about it is new, and states that were soon overwritten may be
        left out; it never goes back in time. Watch on from the last revision + 1. Raises Compacted: then list anew.
        """
        async for batch in self._store.watch(keys.ROOT, from_revision):
            changed = {key: c.revision for c in batch if (key := keys.object_of(c.key)) is not None}
            if changed:
                yield await self._current(changed)

    async def _current(self, changed: dict[ObjectKey, int]) -> tuple[CatalogChange, ...]:
        wanted = [store_key(key) for key in changed for store_key in (keys.res_key, keys.status_key)]
        readings = await self._store.get_many(wanted)
        told = []
        for index, (key, revision) in enumerate(changed.items()):
            res, status = readings[2 * index].item, readings[2 * index + 1].item
            told.append(CatalogChange(key, None if res is None else _merged(res, status), revision))
        return tuple(told)

    async def _seen(self, wanted: Sequence[ObjectKey]) -> dict[ObjectKey, Seen]:
        parts = (keys.res_key, keys.status_key, keys.gone_key)
        readings = await self._store.get_many([part(key) for key in wanted for part in parts])
        items = [reading.item for reading in readings]

        def decoded() -> dict[ObjectKey, Seen]:
            return {key: _seen(*items[3 * index : 3 * index + 3]) for index, key in enumerate(wanted)}

        return await _offloaded(len(wanted), decoded)

    async def _runtimes_of(self, plans: Sequence[Plan]) -> tuple[Compare, ...]:
        """Conditions on the runtimes that the models of `plans` name. Raises InvalidInput for one that is not there."""
        needed = needed_runtimes(plans)
        if not needed:
            return ()
        places = [place for each in needed.values() for place in each]
        readings = await self._store.get_many([keys.res_key(place) for place in places])
        stored = {p: r.item.mod_revision for p, r in zip(places, readings, strict=True) if r.item is not None}
        return check_runtimes(plans, needed, stored)

    async def _check_unused(self, key: ObjectKey) -> None:
        _, models = await self.list("Model")
        users = users_of(key, models)
        if users:
            more = f" and {len(users) - SHOWN_USERS} more" if len(users) > SHOWN_USERS else ""
            told = ", ".join(users[:SHOWN_USERS])
            raise Conflict(f"{key} runs {told}{more}; delete these first", reason="in_use")

    async def _commit(self, plans: Sequence[Plan], guards: Sequence[Compare] = ()) -> Changes:
        txn = txn_of(plans, guards)
        if not txn.ops:
            return [plan.change for plan in plans]
        revision = (await self._store.apply_all(txn)).revision
        return [_with_revision(plan.change, revision) for plan in plans]

    async def _put(self, old: KeyValue | None, key: bytes, value: bytes, *guards: Compare) -> bool:
        if old is not None and old.value == value:
            return False
        seen = unchanged(key, 0 if old is None else old.mod_revision)
        await self._store.txn(Txn((*guards, seen), (Put(key, value),)))
        return True

    async def _pages(self, prefix: bytes, revision: int) -> AsyncIterator[tuple[KeyValue, ...]]:
        after: bytes | None = None
        while True:
            page = await self._store.list(prefix, revision=revision, limit=PAGE, after=after)
            yield page.items
            if not page.more:
                return
            after = page.items[-1].key

    async def _not_found(self, key: ObjectKey) -> NotFound:
        """The error, with near names from among those that begin alike, else from the first of the namespace."""
        space = keys.scope(keys.RES, key.kind, key.namespace)
        alike = await self._store.list(space + key.name[:1].encode(), limit=NEAREST_AMONG)
        first = await self._store.list(space, limit=NEAREST_AMONG)
        names = {item.key[len(space) :].decode() for item in (*alike.items, *first.items)}
        found = nearest(key.name, sorted(names))
        return NotFound(f"{key} does not exist{hint(found)}", nearest=found)

    def _author(self, who: str) -> Author:
        at = self._clock.wall()
        text = datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return Author(who, at, text, uuid.uuid4().hex)


async def _offloaded(documents: int, work: Callable[[], T]) -> T:
    return await asyncio.to_thread(work) if documents >= IN_THREAD else work()


async def _retried(attempt: Callable[[], Awaitable[T]]) -> T:
    """Run `attempt` until it does not lose to another writer (or, a long read, to compaction)."""
    for _ in range(ATTEMPTS - 1):
        try:
            return await attempt()
        except (StoreConflict, Compacted):
            continue
    try:
        return await attempt()
    except StoreConflict as conflict:
        key = keys.object_of(conflict.compare.key)
        raise Conflict(f"{key or 'the record'} is being changed by others at the same time; try again") from conflict


def _seen(res: KeyValue | None, status: KeyValue | None, gone: KeyValue | None) -> Seen:
    if res is None:
        return Seen(0, None, 0 if gone is None else records.GONE.decode(gone.value).generation)
    found = _merged(res, status)
    return Seen(res.mod_revision, found, found.metadata.generation or 0)


def _merged(res: KeyValue, status: KeyValue | None) -> Resource:
    return stored_resource(res.value, res.mod_revision, None if status is None else status.value)


def _entry(item: KeyValue) -> RevisionEntry:
    record = records.REVISION.decode(item.value)
    return RevisionEntry(record.generation, record.at, record.who, record.action, record.resource, record.restored)


def _with_revision(change: Change, revision: int) -> Change:
    """The change with the revision that made it in the object's metadata."""
    if change.after is None or change.action == "unchanged":
        return change
    metadata = msgspec.structs.replace(change.after.metadata, resource_version=revision)
    after = msgspec.structs.replace(change.after, metadata=metadata)
    return Change(change.key, change.action, change.generation, change.before, after)
