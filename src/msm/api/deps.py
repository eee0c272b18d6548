"""What the API needs of the node it belongs to. Wiring makes it; handlers take it from the application's state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from starlette.requests import Request

from msm.api.auth import TokenFile
from msm.api.streams import Streams
from msm.kit.clock import Clock, SystemClock
from msm.resources.meta import ObjectKey
from msm.resources.observed import Explanation, NodeStatus, Reason
from msm.resources.serving import Model, VersionKey
from msm.store import Catalog
from msm.store.events import EventLog

ADMIN = "admin"  # whom a change is recorded for: the holder of the node's token


class NodeView(Protocol):
    """The node as the API sees it. Names of services are those of requests: "iris", "team/iris"."""

    def snapshot(self) -> NodeStatus:
        """The node's state now."""
        ...

    def explain(self, key: ObjectKey) -> Explanation:
        """Why the object is as it is. Raises NotFound."""
        ...

    def preview(self, models: Sequence[Model]) -> tuple[Reason, ...]:
        """What the scheduler would do if these models were declared: loads, evictions, peak memory."""
        ...

    async def activate(self, service: str, version: str | None) -> None:
        """Return when a copy is ready (`version` None: of every version in the split). Raises NotFound, LoadFailed,
        Overloaded, DeadlineExceeded."""
        ...

    async def deactivate(self, service: str, version: str | None) -> None:
        """Unload the copies (`version` None: of all versions), after the requests in flight. Raises NotFound, and
        Conflict when `scaling.min` keeps them."""
        ...

    def fetched_bytes(self, key: VersionKey) -> int | None:
        """Bytes that a running fetch of this version has brought so far; None when none runs."""
        ...

    def log_path(self, worker_id: str) -> Path:
        """The file that holds a worker's output. Raises NotFound."""
        ...


@dataclass(frozen=True)
class ApiDeps:
    """Everything the API talks to. `hosts` are names besides the loopback's by which clients may call the API."""

    catalog: Catalog
    events: EventLog
    node: NodeView
    tokens: TokenFile
    clock: Clock = field(default_factory=SystemClock)
    hosts: frozenset[str] = frozenset()
    streams: Streams = field(default_factory=Streams)


def deps_of(request: Request) -> ApiDeps:
    """The application's dependencies."""
    deps: ApiDeps = request.app.state.deps
    return deps
