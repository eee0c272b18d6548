"""One node, put together: store, catalog view, publisher, agent, gateway, API.

The order of `start` is the order of trust: what the store declares, what already runs, what Envoy is told, who may
ask. Nothing is published before the adopted workers are known, so that a restart never shows Envoy a smaller world.
"""

from __future__ import annotations

import gc
import os
import socket
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec

from msm.api import ApiDeps, HttpServer, TokenFile, bind_tcp, bind_unix, create_app, create_gateway_app
from msm.control.publisher import Publisher
from msm.control.traffic import TrafficController
from msm.control.view import CatalogView
from msm.gateway.activation import ActivationServer
from msm.gateway.bootstrap import GatewayConfig
from msm.gateway.control_server import ControlServer
from msm.gateway.envoy import EnvoyProcess, recorded
from msm.gateway.rescue import RescueProxy
from msm.kit.clock import Clock, SystemClock
from msm.kit.tasks import Tasks
from msm.node.agent import Agent
from msm.node.config import FetchSettings, NodeSettings, S3Settings
from msm.observe.events import Event
from msm.observe.logs import get_logger
from msm.resources.meta import ObjectKey
from msm.resources.wire import NODE_FILE, NodeFile
from msm.settings import Settings
from msm.store import Catalog, EventLog, SqliteStore
from msm.store.upkeep import keep_compact
from msm.wiring.places import STORE_FILE, prepare
from msm.wiring.view import RunningNode
from msm.xds.clusters import Shared
from msm.xds.server import AdsServer
from msm.xds.snapshot import World
from msm.xds.translate import Translator

EVENTS_KEPT_S = 7 * 24 * 3600.0
EXPIRE_EVERY_S = 3600.0
log = get_logger("node")


class Node:
    """Everything one node runs. `start`, then `stop`; `addresses` are valid in between."""

    def __init__(self, settings: Settings, clock: Clock | None = None) -> None:
        self._settings = settings
        self._clock = clock or SystemClock()
        self._ends = AsyncExitStack()
        self._tasks = Tasks(self._task_failed)
        self._emit: Callable[[Event], None] = lambda event: None
        self.addresses: NodeFile | None = None
        self.adopted_workers = 0
        self.adopted_gateway = False

    async def start(self) -> NodeFile:
        """Bring the node up; returns how to reach it. Raises MsmError when something is in the way, and leaves
        nothing behind then."""
        try:
            return await self._start()
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """End everything in order: the door first, then what works, then what remembers. May be called twice."""
        await self._ends.aclose()

    async def _start(self) -> NodeFile:
        settings = self._settings
        run_dir = prepare(settings.data_dir)
        store = await SqliteStore.open(settings.data_dir / STORE_FILE, self._clock)
        self._ends.push_async_callback(store.close)
        tokens = TokenFile.open(settings.data_dir)
        api_socket = bind_tcp(settings.host, settings.api_port)
        self._ends.callback(api_socket.close)
        config = gateway_config(settings, run_dir)

        catalog, events = Catalog(store, self._clock), EventLog(store, self._clock)
        await events.load()
        self._emit = events.emit
        self._ends.push_async_callback(self._tasks.close)
        self._tasks.start("write events", events.run())
        self._tasks.start("expire events", self._expire(events))
        self._tasks.start("compact the store", keep_compact(store, self._clock))
        view = CatalogView(catalog, self._clock)
        await view.sync()
        gc.freeze()  # what was just read lives long: full collections must not walk it on the event loop

        ads = AdsServer(World())
        publisher = Publisher(
            ads, Translator(Shared(rescue_socket=str(config.rescue_socket))), self._report, self._clock
        )
        self._tasks.start("remove clusters", publisher.run())
        traffic = TrafficController(
            view, publisher, catalog, copies_of=lambda key: agent.copies_of(key), tasks=self._tasks, report=self._report
        )
        routes = Routes(traffic, publisher, lambda: agent)
        agent = Agent(node_settings(settings, run_dir), view, catalog, routes, events.emit, self._clock)
        envoy = EnvoyProcess(config, self._clock, self._report)
        await self._serve(agent, view, traffic, (ads, envoy, config))

        gateway = f"http://{_shown(config.address)}:{config.port}"
        node = RunningNode(agent, envoy, ads, gateway, self.adopted_gateway)
        deps = ApiDeps(catalog, events, node, tokens, self._clock, settings.hosts)
        server = HttpServer(create_app(deps), api_socket)
        self._tasks.start("api", server.run())
        self._tasks.start(
            "api behind the gateway", HttpServer(create_gateway_app(deps), bind_unix(config.api_socket)).run()
        )
        self.adopted_workers = agent.snapshot().adopted_workers
        return self._announce(NodeFile(api=server.address, gateway=gateway, pid=os.getpid()))

    async def _serve(
        self,
        agent: Agent,
        view: CatalogView,
        traffic: TrafficController,
        gateway: tuple[AdsServer, EnvoyProcess, GatewayConfig],
    ) -> None:
        """Workers, then the world, then Envoy."""
        ads, envoy, config = gateway
        self._ends.push_async_callback(agent.close)
        await agent.start()
        view.on_change(traffic.mark)
        self._tasks.start("follow the catalog", view.run())
        await traffic.publish_all()
        rescue = RescueProxy(config.rescue_socket, agent, limit_bytes=config.body_limit_bytes, hold_s=config.hold_s)
        await rescue.start()
        self._ends.push_async_callback(rescue.stop)
        activation = ActivationServer(
            config.activation_socket, agent, hold_s=config.hold_s, rescue_socket=str(config.rescue_socket)
        )
        await activation.start()
        self._ends.push_async_callback(activation.stop)
        control = ControlServer(config.xds_socket, ads)
        await control.start()
        self._ends.push_async_callback(control.stop)
        started = await envoy.start()
        if started.changed:
            await envoy.stop()
            started = await envoy.start()
        self._ends.push_async_callback(envoy.stop)
        self.adopted_gateway = started.adopted
        self._tasks.start("watch Envoy", envoy.supervise())
        await envoy.wait_ready()

    async def _expire(self, events: EventLog) -> None:
        while True:
            await events.expire(EVENTS_KEPT_S)
            await self._clock.sleep(EXPIRE_EVERY_S)

    def _announce(self, addresses: NodeFile) -> NodeFile:
        """Write how to reach this node, whole or not at all."""
        place = self._settings.data_dir / NODE_FILE
        fresh = place.with_suffix(".new")
        fresh.write_bytes(msgspec.json.encode(addresses))
        fresh.replace(place)
        self._ends.callback(place.unlink, missing_ok=True)
        self.addresses = addresses
        return addresses

    def _report(self, subject: str, reason: str, message: str) -> None:
        self._emit(Event(at=self._clock.wall(), subject=subject, reason=reason, message=message, source="node"))

    def _task_failed(self, task: str, failure: BaseException) -> None:
        log.error("a task failed", task=task, exc_info=failure)
        self._report("node", "TaskFailed", f"a task of the node failed: {task}")


class Routes:
    """What the agent asks of the proxy (`msm.node.ports.Traffic`)."""

    def __init__(self, traffic: TrafficController, publisher: Publisher, agent: Callable[[], Agent]) -> None:
        self._traffic = traffic
        self._publisher = publisher
        self._agent = agent

    async def changed(self, key: ObjectKey) -> None:
        await self._traffic.changed(key)

    async def workers_changed(self) -> None:
        await self._publisher.set_workers(self._agent().worker_endpoints())


def gateway_config(settings: Settings, run_dir: Path) -> GatewayConfig:
    """Envoy's settings. Port 0 means the port of the Envoy that still runs here, else any free one."""
    port = settings.gateway_port
    if port == 0:
        living = recorded(run_dir)
        port = living.port if living is not None else _free_port(settings.host)
    return GatewayConfig(run_dir=run_dir, node_id=settings.node_name or "node", address=settings.host, port=port)


def node_settings(settings: Settings, run_dir: Path) -> NodeSettings:
    """The agent's settings; what is not set keeps the agent's own default."""
    fetch = FetchSettings(
        file_roots=settings.file_roots,
        private_hosts=settings.private_hosts,
        s3=S3Settings(endpoint_url=settings.s3_endpoint, region=settings.s3_region),
    )
    chosen = {"workers": settings.workers, "capacity_bytes": settings.capacity_bytes, "name": settings.node_name}
    given = {name: value for name, value in chosen.items() if value is not None}
    return NodeSettings(data_dir=settings.data_dir, run_dir=run_dir, fetch=fetch, **given)  # type: ignore[arg-type]


def _free_port(host: str) -> int:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host
