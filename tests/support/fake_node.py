"""A node without processes: what the API and the command line need of one, kept in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from msm.kit.errors import LoadFailed, NotFound
from msm.resources.meta import ObjectKey
from msm.resources.observed import CopyStatus, Explanation, GatewayStatus, NodeStatus, Reason, WorkerStatus
from msm.resources.serving import Model, VersionKey

GIB = 1 << 30


@dataclass
class FakeNode:
    """Implements `msm.api.NodeView`. Activating a service adds a ready copy; services in `broken` fail to load."""

    logs: Path
    gateway: str = "http://127.0.0.1:1"
    broken: dict[str, str] = field(default_factory=dict)
    copies: dict[str, CopyStatus] = field(default_factory=dict)
    fetching: dict[VersionKey, int] = field(default_factory=dict)
    workers: tuple[WorkerStatus, ...] = (
        WorkerStatus(id="w0", state="Ready", pid=101, rss_bytes=200 << 20, copies=1),
        WorkerStatus(id="w1", state="Backoff", restarts=3, message="it ended by signal 11"),
    )

    def snapshot(self) -> NodeStatus:
        return NodeStatus(
            name="fake",
            version="0.0.0",
            started_at=1_000.0,
            gateway=GatewayStatus(pid=100, address=self.gateway, version="1.40", connected=True),
            capacity_bytes=4 * GIB,
            used_bytes=GIB,
            workers=self.workers,
            copies=tuple(self.copies.values()),
        )

    def explain(self, key: ObjectKey) -> Explanation:
        rejected = Reason(about="w1", message="it is not ready", data={"state": "Backoff"})
        return Explanation(
            subject=str(key),
            state="Its version v1 has no copy.",
            reasons=(Reason(about="v1", message="Nobody asked for it."),),
            rejected=(rejected,),
        )

    def preview(self, models: Sequence[Model]) -> tuple[Reason, ...]:
        return tuple(Reason(about=str(model.key), message="It would be fetched and measured.") for model in models)

    async def activate(self, service: str, version: str | None) -> None:
        if service in self.broken:
            raise LoadFailed(self.broken[service])
        namespace, _, name = service.rpartition("/")
        key = VersionKey(namespace or "default", name, version or "v1")
        self.copies[str(key)] = CopyStatus(version=str(key), worker="w0", state="Ready", requests=3)

    async def deactivate(self, service: str, version: str | None) -> None:
        namespace, _, name = service.rpartition("/")
        prefix = f"{namespace or 'default'}/{name}/{version or ''}"
        for key in [key for key in self.copies if key.startswith(prefix)]:
            del self.copies[key]

    def fetched_bytes(self, key: VersionKey) -> int | None:
        return self.fetching.get(key)

    def log_path(self, worker_id: str) -> Path:
        if worker_id not in {worker.id for worker in self.workers}:
            raise NotFound(f"there is no worker {worker_id}")
        return self.logs / f"{worker_id}.log"

    def draining(self, version: str) -> None:
        """Let the copy of a version be on its way out."""
        copy = self.copies[version]
        self.copies[version] = CopyStatus(version=copy.version, worker=copy.worker, state="Draining")
