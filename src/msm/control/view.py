"""The catalog as this process knows it: every model and runtime in memory, kept current by list and watch.

Readers (agent, traffic, API) ask the view, never the store, so that a request costs no store read. A watch is a hint
and a list is the truth: whenever the watch breaks, the view lists again and tells its listeners of every difference.
The view never becomes smaller because of a failed read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from msm.kit.clock import Clock
from msm.kit.nearest import nearest
from msm.kit.tasks import backoff_s
from msm.observe.logs import get_logger
from msm.resources.meta import ObjectKey
from msm.resources.runtimes import ServingRuntime, runtime_keys
from msm.resources.serving import Model, Resource, service_name
from msm.store import Catalog, StoreError

Listener = Callable[[ObjectKey], None]
log = get_logger("view")


class Desired(Protocol):
    """What is declared, as seen from this process."""

    def model(self, key: ObjectKey) -> Model | None: ...
    def by_service(self, service: str) -> Model | None: ...
    def models(self) -> Iterable[Model]: ...


class CatalogView:
    """All models by key and by service name."""

    def __init__(self, catalog: Catalog, clock: Clock) -> None:
        self._catalog = catalog
        self._clock = clock
        self._models: dict[ObjectKey, Model] = {}
        self._runtimes: dict[ObjectKey, ServingRuntime] = {}
        self._services: dict[str, ObjectKey] = {}
        self._listeners: list[Listener] = []
        self._runtime_listeners: list[Listener] = []
        self._revision = 0

    def model(self, key: ObjectKey) -> Model | None:
        return self._models.get(key)

    def by_service(self, service: str) -> Model | None:
        key = self._services.get(service)
        return self._models[key] if key is not None else None

    def models(self) -> Iterable[Model]:
        return self._models.values()

    def runtime(self, namespace: str, name: str) -> ServingRuntime | None:
        """The runtime that models of `namespace` name by `name`."""
        found = (self._runtimes.get(key) for key in runtime_keys(namespace, name))
        return next((runtime for runtime in found if runtime is not None), None)

    def nearest(self, service: str) -> tuple[str, ...]:
        """Names of services most like `service`, best first."""
        return nearest(service, self._services)

    @property
    def revision(self) -> int:
        """The store revision up to which this view is complete."""
        return self._revision

    def on_change(self, listener: Listener) -> None:
        """`listener(key)` is called after each change of that model, in order; it must not block."""
        self._listeners.append(listener)

    def on_runtime_change(self, listener: Listener) -> None:
        """The same for changes of runtimes."""
        self._runtime_listeners.append(listener)

    async def sync(self) -> None:
        """Read the whole catalog; listeners hear of every object that differs from what was known."""
        # A change between the two readings is told by the watch, which begins after the earlier one.
        revision, runtimes = await self._catalog.list("ServingRuntime")
        _, models = await self._catalog.list("Model")
        known: dict[ObjectKey, Resource] = {**self._runtimes, **self._models}
        listed: dict[ObjectKey, Resource] = {runtime.key: runtime for runtime in runtimes}
        listed |= {model.key: model for model in models}
        for key in [key for key in known if key not in listed]:
            self._set(key, None)
        for key, found in listed.items():
            if known.get(key) != found:
                self._set(key, found)
        self._revision = revision

    async def run(self) -> None:
        """Follow the catalog for ever; call `sync` once before."""
        failures = 0
        while True:
            try:
                async for batch in self._catalog.watch(self._revision + 1):
                    failures = 0
                    for change in batch:
                        self._set(change.key, change.resource)
                        self._revision = max(self._revision, change.revision)
            except StoreError as error:
                log.warning("the watch of the catalog broke; listing again", error=error.message)
            await self._clock.sleep(backoff_s(failures))
            failures += 1
            await self._resync()

    async def _resync(self) -> None:
        try:
            await self.sync()
        except StoreError as error:
            log.warning("the catalog cannot be listed; serving what is known", error=error.message)

    def _set(self, key: ObjectKey, found: Resource | None) -> None:
        if isinstance(found, ServingRuntime):
            self._runtimes[key] = found
        elif isinstance(found, Model):
            self._models[key] = found
            self._services[service_name(key)] = key
        elif key.kind == ServingRuntime.kind:
            self._runtimes.pop(key, None)
        else:
            self._models.pop(key, None)
            self._services.pop(service_name(key), None)
        listeners = self._runtime_listeners if key.kind == ServingRuntime.kind else self._listeners
        for listener in listeners:
            listener(key)
