"""The node's Envoy without models: its real control server and publisher before an upstream that answers at once."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from bench._processor import on_cores
from msm.control.publisher import Publisher
from msm.gateway.activation import ActivationServer
from msm.gateway.bootstrap import GatewayConfig, typed
from msm.gateway.control_server import ControlServer
from msm.gateway.envoy import EnvoyProcess, find_binary
from msm.kit.clock import SystemClock
from msm.kit.errors import Unavailable
from msm.planning.activation import Activated, ActivationRequest
from msm.planning.routing import Endpoint, ServicePlan, VersionRoute
from msm.resources.meta import ObjectKey
from msm.resources.serving import SplitEntry, VersionKey
from msm.xds.server import AdsServer
from msm.xds.snapshot import World
from msm.xds.translate import Shared, Translator


def free_port() -> int:
    """A port that nobody has right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def simple_envoy(address: dict[str, Any], route: dict[str, Any], clusters: list[dict[str, Any]]) -> dict[str, Any]:
    """The least an Envoy needs: one listener, one route, the router; with the gateway's lean options."""
    table = {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, **route}]}]}
    router = typed("extensions.filters.http.router.v3.Router", suppress_envoy_headers=True)
    manager = typed(
        "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="bare",
        route_config=table,
        http_filters=[{"name": "router", "typed_config": router}],
        generate_request_id=False,
        server_header_transformation="PASS_THROUGH",
        skip_xff_append=True,
    )
    chain = {"filters": [{"name": "http", "typed_config": manager}]}
    listener = {"name": "bare", "address": address, "filter_chains": [chain]}
    return {"static_resources": {"listeners": [listener], "clusters": clusters}}


@contextlib.contextmanager
def envoy_of(document: dict[str, Any], name: str, folder: Path) -> Iterator[int]:
    """An Envoy with this bootstrap; gives its process number."""
    path = folder / f"{name}.json"
    path.write_text(json.dumps(document))
    command = [str(find_binary()), "-c", str(path), "--concurrency", "1", "--disable-hot-restart", "-l", "error"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        yield process.pid
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def upstream(folder: Path) -> Iterator[tuple[str, int]]:
    """A worker that answers everything at once; gives its socket and process number."""
    path = str(folder / "upstream.sock")
    command = [sys.executable, "-m", "bench._upstream", path]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        if process.stdout.readline() != "ready\n":
            raise RuntimeError("the upstream did not start")
        yield path, process.pid
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def wait_for(condition: Any, within_s: float = 20.0) -> None:
    """Return when `condition` is true; asked every 10 ms."""
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not true within {within_s} s")
        time.sleep(0.01)


def accepts(port: int) -> bool:
    """Whether somebody listens there."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class NothingCold:
    """An activator for benchmarks in which nothing may be cold."""

    async def activate(self, request: ActivationRequest) -> Activated:
        raise Unavailable(f"{request.service} is cold")

    async def rescue(self, target: str) -> str:
        raise Unavailable(f"{target} is lost")


class Gateway:
    """Envoy with the full configuration, and what it asks."""

    def __init__(self, folder: Path) -> None:
        self.config = GatewayConfig(run_dir=folder, node_id="bench", port=free_port())
        self.ads = AdsServer(World())
        self.events: list[tuple[str, str, str]] = []
        self.translator = Translator(Shared(str(self.config.rescue_socket)))
        clock = SystemClock()
        self.publisher = Publisher(
            self.ads,
            self.translator,
            lambda *event: self.events.append(event),
            clock,
            deadline_s=60,
            linger_s=0,
        )
        self.activation = ActivationServer(self.config.activation_socket, NothingCold(), hold_s=self.config.hold_s)
        self.control = ControlServer(self.config.xds_socket, self.ads)
        self.envoy = EnvoyProcess(self.config, clock, lambda *event: self.events.append(event))


@contextlib.asynccontextmanager
async def gateway(folder: Path, cores: set[int]) -> AsyncIterator[Gateway]:
    """A gateway whose Envoy runs on `cores`."""
    made = Gateway(folder)
    await made.activation.start()
    await made.control.start()
    try:
        with on_cores(cores):
            await made.envoy.start()
        await made.envoy.wait_ready()
        yield made
    finally:
        await made.envoy.stop(drain_s=0)
        await made.control.stop()
        await made.activation.stop()


def plan(service: str, socket_path: str | None, *, revision: int = 1, weights: tuple[int, ...] = (100,)) -> ServicePlan:
    """A service with a version for each weight, all of them at `socket_path`, or cold without one."""
    copies = (Endpoint("w0", socket_path),) if socket_path else ()
    versions = [f"v{number}" for number in range(1, len(weights) + 1)]
    return ServicePlan(
        service=service,
        key=ObjectKey("Model", "default", service),
        revision=revision,
        versions=tuple(VersionRoute(VersionKey("default", service, version), copies) for version in versions),
        split=tuple(SplitEntry(version=v, weight=w) for v, w in zip(versions, weights, strict=True)),
        aliases=(("stable", "v1"),),
        sticky_header="x-user" if len(weights) > 1 else None,
    )


@contextlib.contextmanager
def run_folder() -> Iterator[Path]:
    """A folder with a path short enough for unix sockets, removed afterwards."""
    path = Path(tempfile.mkdtemp(prefix="msm-bench-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


async def run_command(*command: str) -> str:
    """Standard output of a command; raises when it fails."""
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"{command[0]} ended with {process.returncode}")
    return output.decode()
