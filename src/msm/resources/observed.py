"""What a node tells about itself: workers, copies, the load queue, and why it decided as it did."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from msm.resources.meta import Base

CopyState = Literal["Queued", "Loading", "Ready", "Draining", "Unloading"]
WorkerState = Literal["Starting", "Ready", "Backoff", "Stopping"]


class CopyStatus(Base, frozen=True):
    """One version in one worker. `execution` says how the worker runs it, found out by measuring, and why."""

    version: str
    worker: str
    state: CopyState
    memory_bytes: int = 0
    in_flight: int = 0
    requests: int = 0
    failures: int = 0
    idle_seconds: float | None = None
    load_seconds: float | None = None
    execution: str | None = None
    reason: str | None = None


class WorkerStatus(Base, frozen=True):
    """One model process. `runtime` names the ServingRuntime ("namespace/name") whose server it drives, if any."""

    id: str
    state: WorkerState
    pid: int | None = None
    rss_bytes: int = 0
    copies: int = 0
    restarts: int = 0
    message: str | None = None
    runtime: str | None = None


class GatewayStatus(Base, frozen=True):
    """The node's Envoy."""

    pid: int | None
    address: str
    version: str | None = None
    connected: bool = False
    adopted: bool = False


class NodeStatus(Base, frozen=True):
    """A node as it sees itself. `used_bytes` counts what is ready, loading and not yet given back."""

    name: str
    version: str
    started_at: float
    gateway: GatewayStatus
    capacity_bytes: int
    used_bytes: int
    workers: tuple[WorkerStatus, ...] = ()
    copies: tuple[CopyStatus, ...] = ()
    queued: int = 0
    adopted_workers: int = 0


class Reason(Base, frozen=True):
    """One sentence of an explanation, with the numbers behind it."""

    about: str
    message: str
    data: dict[str, Any] = msgspec.field(default_factory=dict)


class Explanation(Base, frozen=True):
    """Why an object is as it is: the state in a sentence, then what was decided and what was rejected."""

    subject: str
    state: str
    reasons: tuple[Reason, ...] = ()
    rejected: tuple[Reason, ...] = ()
