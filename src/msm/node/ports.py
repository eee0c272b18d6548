"""What the node needs from its surroundings, as protocols; the composition root supplies the real parts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from msm.resources.meta import ObjectKey
from msm.resources.runtimes import ServingRuntime
from msm.resources.serving import Model, ModelStatus
from msm.store.records import Cost


class Desired(Protocol):
    """What is declared, as this process knows it. Every call answers from memory."""

    def model(self, key: ObjectKey) -> Model | None: ...
    def by_service(self, service: str) -> Model | None: ...
    def models(self) -> Iterable[Model]: ...
    def nearest(self, service: str) -> tuple[str, ...]: ...
    def runtime(self, namespace: str, name: str) -> ServingRuntime | None: ...
    def on_change(self, listener: Callable[[ObjectKey], None]) -> None: ...
    def on_runtime_change(self, listener: Callable[[ObjectKey], None]) -> None: ...


class Traffic(Protocol):
    """Brings the node's ready copies into the proxy."""

    async def changed(self, key: ObjectKey) -> None:
        """Recompile the service's routes from `Agent.copies_of`; returns when the proxy has them."""
        ...

    async def workers_changed(self) -> None:
        """The set of living workers changed; returns when the proxy has it."""
        ...


class Records(Protocol):
    """The durable part: what the node found out about versions."""

    async def update_status(self, key: ObjectKey, change: Callable[[ModelStatus], ModelStatus]) -> bool:
        """Replace the status of a model by `change` of it; False when nothing changed or the model is gone."""
        ...

    async def costs(self) -> dict[str, Cost]:
        """All measurements by `msm.store.keys.cost_key`."""
        ...

    async def put_cost(self, digest: str, cost: Cost) -> bool: ...
