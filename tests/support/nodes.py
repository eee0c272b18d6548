"""A real agent with real workers, a real store and catalog; only the proxy is replaced by one that takes notes."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from msm.control.view import CatalogView
from msm.kit.clock import SystemClock
from msm.kit.tasks import Tasks
from msm.node.agent import Activated, Agent
from msm.node.config import NodeSettings
from msm.node.worker_client import WorkerClient
from msm.observe.events import Event
from msm.planning.routing import Endpoint
from msm.resources.meta import Meta, ObjectKey
from msm.resources.serving import Model, ModelSpec, Scaling, VersionKey, VersionSpec
from msm.store import MEMORY, Catalog, SqliteStore
from tests.support.eventually import eventually

MIB = 1 << 20
VERSION_FIELDS = ("format", "trusted", "parameters", "digest", "accelerate", "runtime", "memory")


@dataclass(frozen=True)
class Request:
    """What the gateway asks for when it holds a request."""

    service: str
    version: str | None = None
    grpc: bool = False
    deadline_s: float = 20.0


class Routes:
    """Takes the place of the proxy: remembers what the agent published last."""

    def __init__(self) -> None:
        self.agent: Agent | None = None
        self.published: dict[ObjectKey, Mapping[VersionKey, tuple[Endpoint, ...]]] = {}
        self.history: list[ObjectKey] = []
        self.worker_changes = 0

    async def changed(self, key: ObjectKey) -> None:
        assert self.agent is not None
        self.history.append(key)
        self.published[key] = self.agent.copies_of(key)

    async def workers_changed(self) -> None:
        self.worker_changes += 1


class Node:
    """One node on a folder; agents come and go, store and folder stay."""

    def __init__(self, folder: Path, store: SqliteStore, **settings: Any) -> None:
        self.clock = SystemClock()
        self.catalog = Catalog(store, self.clock)
        self.store = store
        self.folder = folder
        values: dict[str, Any] = {"workers": 2, "capacity_bytes": 2048 * MIB, **settings}
        self.settings = NodeSettings(data_dir=folder / "data", run_dir=folder / "run", **values)
        self.events: list[Event] = []
        self.routes = Routes()
        self.failures: list[str] = []
        self._pids: set[int] = set()

    async def start(self) -> Agent:
        """A new agent on this node, as after a start of the node process."""
        self.view = CatalogView(self.catalog, self.clock)
        await self.view.sync()
        self._tasks = Tasks(lambda name, failure: self.failures.append(f"{name}: {failure!r}"))
        self._tasks.start("view", self.view.run())
        self.routes = Routes()
        self.agent = Agent(self.settings, self.view, self.catalog, self.routes, self._take, self.clock)
        self.routes.agent = self.agent
        await self.agent.start()
        return self.agent

    async def stop(self, *, stop_workers: bool = True) -> None:
        """End the agent; without `stop_workers` as if the node process had been killed."""
        self._pids |= {status.pid for status in self.agent.snapshot().workers if status.pid}
        await self.agent.close(stop_workers=stop_workers)
        await self._tasks.close()

    async def close(self) -> None:
        await self.stop()
        await self.store.close()
        assert self.failures == []
        await eventually(lambda: not any(psutil.pid_exists(pid) for pid in self._pids))

    def _take(self, event: Event) -> None:
        self.events.append(event)
        if event.reason == "TaskFailed":
            self.failures.append(event.message)

    # ---- what a person does

    async def declare(self, name: str, uri: str, **spec: Any) -> ObjectKey:
        """Deploy a model with one version v1 and the given fields of spec and version."""
        version = {field: spec.pop(field) for field in VERSION_FIELDS if field in spec}
        scaling = Scaling(**spec.pop("scaling", {}))
        versions = (VersionSpec(name="v1", uri=uri, **version),)
        model = Model(metadata=Meta(name=name), spec=ModelSpec(versions=versions, scaling=scaling, **spec))
        await self.catalog.apply([model], who="test")
        await eventually(lambda: self.view.model(model.key) is not None)
        return model.key

    async def settled(self, name: str, *, within_s: float = 40.0) -> str:
        """Wait until version v1 is Valid or Failed; returns the phase."""

        def phase() -> str | None:
            model = self.view.by_service(name)
            status = model.status.versions.get("v1") if model and model.status else None
            return status.phase if status and status.phase in ("Valid", "Failed") else None

        return await eventually(phase, within_s=within_s) or ""

    async def activate(self, name: str, version: str | None = None, deadline_s: float = 20.0) -> Activated:
        return await self.agent.activate(Request(name, version, deadline_s=deadline_s))

    # ---- what can be seen

    def copies(self, name: str) -> list[tuple[str, str]]:
        """Worker and state of each copy of a model."""
        copies = self.agent.snapshot().copies
        return [(copy.worker, copy.state) for copy in copies if copy.version.split("/")[1] == name]

    def routed(self, name: str) -> tuple[str, ...]:
        """Workers that the proxy knows for a model."""
        published = self.routes.published.get(ObjectKey("Model", "default", name), {})
        return tuple(sorted(endpoint.worker for found in published.values() for endpoint in found))

    def told(self, reason: str, subject: str = "") -> list[Event]:
        return [event for event in self.events if event.reason == reason and subject in event.subject]

    def pid(self, worker: str) -> int:
        pid = next(status.pid for status in self.agent.snapshot().workers if status.id == worker)
        assert pid is not None
        return pid

    def worker(self, worker: str) -> WorkerClient:
        """A way to a worker behind the agent's back; close it after use."""
        return WorkerClient(worker, str(self.settings.run_dir / f"{worker}.ctl.sock"))

    async def all_ready(self) -> None:
        await eventually(lambda: all(w.state == "Ready" for w in self.agent.snapshot().workers), within_s=30.0)


async def infer(
    activated: Activated, rows: list[list[float]], *, tensor: str = "x", timeout_s: float = 10.0
) -> httpx.Response:
    """A request as Envoy sends it on to a worker."""
    body = {"inputs": [{"name": tensor, "shape": [len(rows), len(rows[0])], "datatype": "FP32", "data": rows}]}
    _, model, _ = activated.target.split("/")
    transport = httpx.AsyncHTTPTransport(uds=activated.socket)
    async with httpx.AsyncClient(transport=transport, base_url="http://worker", timeout=timeout_s) as client:
        path = f"/v2/models/{model}/infer"
        return await client.post(path, json=body, headers={"x-msm-target": activated.target, "x-msm-service": model})


class Folder:
    """A short temporary folder: a socket's path has little room."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="msm-"))

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


async def open_node(folder: Path, **settings: Any) -> Node:
    """A node on an empty store; not started."""
    return Node(folder, await SqliteStore.open(MEMORY, SystemClock()), **settings)


async def gather_all(*work: Any) -> list[Any]:
    """Results and errors of all."""
    return await asyncio.gather(*work, return_exceptions=True)
