"""A node's gateway put together from the real parts: Envoy, the control server, the rescue proxy, worker processes.

Only the activator is the test's own: it "loads" by telling a worker process to hold a target.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from msm.control.publisher import Publisher
from msm.gateway.activation import Activated, ActivationRequest, ActivationServer
from msm.gateway.bootstrap import GatewayConfig
from msm.gateway.control_server import ControlServer
from msm.gateway.envoy import EnvoyProcess
from msm.gateway.rescue import RescueProxy
from msm.kit.clock import SystemClock
from msm.kit.errors import LoadFailed, MsmError, NotFound, Unavailable
from msm.planning.routing import Endpoint, MirrorPlan, ServicePlan, VersionRoute
from msm.resources.meta import ObjectKey
from msm.resources.serving import SplitEntry, VersionKey
from msm.xds.server import AdsServer
from msm.xds.snapshot import World
from msm.xds.translate import Shared, Translator

HERE = Path(__file__).parent


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def target(service: str, version: str = "v1") -> str:
    return f"default/{service}/{version}" if "/" not in service else f"{service}/{version}"


def plan(
    service: str,
    copies: dict[str, list[str]],
    split: dict[str, int] | None = None,
    *,
    revision: int = 1,
    aliases: dict[str, str] | None = None,
    sticky: str | None = None,
    mirror: tuple[str, int] | None = None,
    idempotent: bool = True,
    timeout_s: float = 30.0,
) -> ServicePlan:
    """A plan by hand: `copies` maps each version to the sockets of its ready copies."""
    namespace, _, name = service.rpartition("/")
    namespace = namespace or "default"
    split = split or {next(iter(copies)): 100}
    return ServicePlan(
        service=service,
        key=ObjectKey("Model", namespace, name),
        revision=revision,
        versions=tuple(
            VersionRoute(VersionKey(namespace, name, version), tuple(Endpoint(s, s) for s in sockets))
            for version, sockets in copies.items()
        ),
        split=tuple(SplitEntry(version=version, weight=weight) for version, weight in split.items()),
        aliases=tuple((aliases or {}).items()),
        sticky_header=sticky,
        mirror=MirrorPlan(*mirror) if mirror else None,
        idempotent=idempotent,
        timeout_s=timeout_s,
    )


class Worker:
    """One worker process."""

    def __init__(self, run_dir: Path, name: str) -> None:
        self.name = name
        self.socket = str(run_dir / f"{name}.sock")
        self.process: subprocess.Popen[str] | None = None
        self.foreign = False  # started by another process

    def start(self, *held: str) -> None:
        Path(self.socket).unlink(missing_ok=True)
        command = [sys.executable, str(HERE / "worker_process.py"), self.socket, self.name, *held]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    @property
    def alive(self) -> bool:
        return self.foreign or (self.process is not None and self.process.poll() is None)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process.stdout.close()
            self.process = None

    async def post(self, path: str) -> list[str]:
        async with httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=self.socket)) as client:
            return (await client.post(f"http://w{path}")).json()


@dataclass
class Recipe:
    """How the test's activator treats one service."""

    versions: tuple[str, ...] = ("v1",)
    split: dict[str, int] | None = None
    load_s: float = 0.0
    failure: MsmError | None = None
    publish: bool = True


@dataclass
class TestActivator:
    """Loads onto the first living worker, one load per service at a time."""

    __test__ = False
    mesh: Mesh
    recipes: dict[str, Recipe] = field(default_factory=dict)
    requests: list[ActivationRequest] = field(default_factory=list)
    loads: list[str] = field(default_factory=list)
    cancelled: int = 0
    rescues: list[str] = field(default_factory=list)
    rescue_load_s: float = 0.05
    rescue_failure: MsmError | None = None
    running: dict[str, asyncio.Task[Worker]] = field(default_factory=dict)

    async def activate(self, request: ActivationRequest) -> Activated:
        self.requests.append(request)
        if request.service not in self.mesh.publisher.services():
            raise NotFound(f"there is no model '{request.service}'; did you mean 'iris'?")
        recipe = self.recipes.get(request.service, Recipe())
        try:
            worker = await self.load(request.service, recipe)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        version = request.version or next(iter(recipe.split or recipe.versions))
        return Activated(worker.socket, target(request.service, version), revision=7)

    async def rescue(self, wanted: str, deaths: int) -> str:
        self.rescues.append(wanted)
        if deaths:
            raise Unavailable(f"a worker of {wanted} died over this request again; it is not sent a third time")
        if self.rescue_failure is not None:
            raise self.rescue_failure
        worker = await self._once(wanted, self._hold(wanted, self.rescue_load_s))
        return worker.socket

    async def load(self, service: str, recipe: Recipe) -> Worker:
        return await self._once(service, self._load(service, recipe))

    async def _once(self, key: str, work) -> Worker:
        task = self.running.get(key)
        if task is None or (task.done() and (task.cancelled() or task.exception() or not task.result().alive)):
            task = self.running[key] = asyncio.ensure_future(work)
        else:
            work.close()
        return await asyncio.shield(task)

    async def _load(self, service: str, recipe: Recipe) -> Worker:
        self.loads.append(service)
        await asyncio.sleep(recipe.load_s)
        if recipe.failure is not None:
            raise recipe.failure
        worker = await self._worker()
        for version in recipe.versions:
            await worker.post(f"/hold/{target(service, version)}")
        if recipe.publish:
            copies = {version: [worker.socket] for version in recipe.versions}
            await self.mesh.publisher.publish(plan(service, copies, recipe.split))
        return worker

    async def _hold(self, wanted: str, load_s: float) -> Worker:
        await asyncio.sleep(load_s)
        worker = await self._worker()
        await worker.post(f"/hold/{wanted}")
        return worker

    async def _worker(self) -> Worker:
        for _ in range(500):
            for worker in self.mesh.workers.values():
                if worker.alive:
                    return worker
            await asyncio.sleep(0.01)
        raise Unavailable("no worker")


class Mesh:
    """The gateway of one node."""

    def __init__(self, run_dir: Path, *, hold_s: float = 15.0, **config: Any) -> None:
        self.run_dir = run_dir
        config.setdefault("port", free_port())
        self.config = GatewayConfig(run_dir=run_dir, node_id="test", hold_s=hold_s, **config)
        self.workers: dict[str, Worker] = {}
        self.activator = TestActivator(self)
        self.events: list[tuple[str, str, str]] = []
        self.refusals: list[tuple[object, str]] = []
        self.envoy = EnvoyProcess(self.config, SystemClock(), lambda *event: self.events.append(event))
        self.shared = Shared(str(self.config.rescue_socket))
        self.control: ControlServer | None = None
        self.new_control()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.config.port}"

    def new_control(self) -> None:
        """A node process's part, empty as after a start."""
        self.ads = AdsServer(World(), on_refusal=lambda *refusal: self.refusals.append(refusal))
        self.publisher = Publisher(
            self.ads, Translator(self.shared), lambda *event: self.events.append(event), SystemClock()
        )
        self.activation = ActivationServer(
            self.config.activation_socket,
            self.activator,
            hold_s=self.config.hold_s,
            rescue_socket=str(self.config.rescue_socket),
        )
        self.control = ControlServer(self.config.xds_socket, self.ads)
        self.rescue = RescueProxy(
            self.config.rescue_socket, self.activator, limit_bytes=64 * 2**20, hold_s=self.config.hold_s
        )

    async def start_control(self) -> None:
        await self.activation.start()
        await self.control.start()
        await self.rescue.start()

    async def stop_control(self) -> None:
        await self.control.stop()
        await self.activation.stop()
        await self.rescue.stop()
        for task in self.activator.running.values():
            task.cancel()
        await asyncio.gather(*self.activator.running.values(), return_exceptions=True)
        self.activator.running.clear()

    def worker(self, name: str, *held: str) -> Worker:
        worker = self.workers.setdefault(name, Worker(self.run_dir, name))
        worker.start(*held)
        return worker

    async def workers_changed(self) -> None:
        await self.publisher.set_workers([Endpoint(w.name, w.socket) for w in self.workers.values() if w.alive])

    async def warm(self, service: str, *versions: str, on: list[str] | None = None, **plan_options) -> ServicePlan:
        """Every named worker holds every version, and the routes say so."""
        workers = [self.workers[name] for name in on or self.workers]
        for worker in workers:
            for version in versions:
                await worker.post(f"/hold/{target(service, version)}")
        made = plan(service, {version: [w.socket for w in workers] for version in versions}, **plan_options)
        await self.publisher.publish(made)
        return made

    async def cold(self, *services: str, recipe: Recipe | None = None, versions: tuple[str, ...] = ("v1",)) -> None:
        for service in services:
            self.activator.recipes[service] = recipe or Recipe(versions=versions)
        await self.publisher.publish_many([plan(s, {v: [] for v in versions}) for s in services])

    async def close(self) -> None:
        await self.envoy.stop(drain_s=0)
        await self.stop_control()
        for worker in self.workers.values():
            worker.kill()


@contextlib.asynccontextmanager
async def running_mesh(workers: int = 2, **config: Any) -> AsyncIterator[Mesh]:
    run_dir = Path(tempfile.mkdtemp(prefix="msm-gw-"))
    mesh = Mesh(run_dir, **config)
    try:
        for number in range(workers):
            mesh.worker(f"w{number}")
        await mesh.workers_changed()
        await mesh.start_control()
        await mesh.envoy.start()
        await mesh.envoy.wait_ready()
        yield mesh
    finally:
        await mesh.close()
        shutil.rmtree(run_dir, ignore_errors=True)


def failing(message: str) -> Recipe:
    return Recipe(failure=LoadFailed(message))


def now() -> float:
    return time.monotonic()
