"""Keeps the proxy's tables equal to what is declared and what is ready, one service at a time.

Level-triggered: a change only names a service; what is published is computed from the whole present picture of that
service. Publishing twice is publishing once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from msm.kit.tasks import Tasks
from msm.planning.routing import Endpoint, ServicePlan, effective_split, plan_service
from msm.resources.meta import ObjectKey
from msm.resources.serving import Model, ModelStatus, SplitEntry, VersionKey, service_name

CopiesOf = Callable[[ObjectKey], Mapping[VersionKey, tuple[Endpoint, ...]]]
Report = Callable[[str, str, str], None]  # subject, reason, message of an event


class Publishes(Protocol):
    """What brings a plan into the proxy (`msm.control.publisher.Publisher`)."""

    async def publish(self, plan: ServicePlan) -> None: ...
    async def publish_many(self, plans: Iterable[ServicePlan]) -> None: ...
    async def remove(self, service: str) -> None: ...


class Reads(Protocol):
    """The declared models (`msm.control.view.CatalogView`)."""

    def model(self, key: ObjectKey) -> Model | None: ...
    def models(self) -> Iterable[Model]: ...


class WritesStatus(Protocol):
    """The part of the catalog that records what was found (`msm.store.Catalog`)."""

    async def update_status(self, key: ObjectKey, change: Callable[[ModelStatus], ModelStatus]) -> bool: ...


class TrafficController:
    """Publishes the plan of a service whenever its declaration or its copies change."""

    def __init__(
        self,
        view: Reads,
        publisher: Publishes,
        catalog: WritesStatus,
        *,
        copies_of: CopiesOf,
        tasks: Tasks,
        report: Report,
    ) -> None:
        self._view = view
        self._publisher = publisher
        self._catalog = catalog
        self._copies_of = copies_of
        self._tasks = tasks
        self._report = report
        self._dirty: set[ObjectKey] = set()

    async def changed(self, key: ObjectKey) -> None:
        """Publish the present state of one service; returns when the proxy has it (or is away)."""
        model = self._view.model(key)
        if model is None:
            await self._publisher.remove(service_name(key))
            return
        await self._publisher.publish(plan_service(model, self._copies_of(key)))

    async def publish_all(self) -> None:
        """Publish every declared service at once: the start of a node."""
        await self._publisher.publish_many(
            plan_service(model, self._copies_of(model.key)) for model in self._view.models()
        )

    def mark(self, key: ObjectKey) -> None:
        """Note that a declaration or status changed; it is published soon, changes that pile up are joined."""
        if key in self._dirty:
            return
        self._dirty.add(key)
        self._tasks.start(f"publish {key}", self._settle(key))

    async def _settle(self, key: ObjectKey) -> None:
        await asyncio.sleep(0)  # let the changes of one batch arrive together
        self._dirty.discard(key)
        await self.changed(key)
        await self._record_split(key)

    async def _record_split(self, key: ObjectKey) -> None:
        """Keep `status.traffic` equal to the split in force, so that it survives a version that never gets ready."""
        model = self._view.model(key)
        if model is None:
            return
        decision = effective_split(model)
        generation = model.metadata.generation or 0
        status = model.status
        if status and status.traffic == decision.split and status.observed_generation == generation:
            return

        def record(status: ModelStatus) -> ModelStatus:
            return ModelStatus(
                observed_generation=generation,
                versions=status.versions,
                traffic=decision.split,
                message=None if decision.reason == "as declared" else decision.reason,
            )

        await self._catalog.update_status(key, record)
        if status is None or status.traffic != decision.split:
            self._report(str(key), "TrafficSwitched", f"{_as_text(decision.split)} ({decision.reason})")


def _as_text(split: Iterable[SplitEntry]) -> str:
    return ", ".join(f"{entry.version} {entry.weight} %" for entry in split)
