"""Envoy as a process: found, started, adopted, restarted, drained; never another's process touched."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace

import psutil
import pytest

from msm.gateway.envoy import EnvoyProcess, binary_version, check_port, find_binary
from msm.kit.clock import SystemClock
from msm.kit.errors import Conflict
from tests.component.gateway.clients import Load, infer, rest
from tests.component.gateway.harness import free_port
from tests.support.eventually import eventually

pytestmark = pytest.mark.envoy


def again(mesh, **changes) -> EnvoyProcess:
    """What a new node process makes of the same run directory."""
    return EnvoyProcess(replace(mesh.config, **changes), SystemClock(), lambda *event: mesh.events.append(event))


def test_the_binary_is_found_without_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "envoy", None)  # importing it fails now
    path = find_binary()
    version = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout
    assert binary_version() in version


def test_the_protocol_types_import_beside_the_binary():
    """Two distributions own the package `envoy`; whichever was installed last must not hide the other."""
    code = "import envoy.config.route.v3.route_pb2; from msm.gateway.envoy import find_binary; print(find_binary())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout


async def test_a_new_node_process_adopts_the_living_envoy(mesh):
    await mesh.warm("iris", "v1")
    second = again(mesh)
    async with Load(mesh, "iris", callers=2) as load:
        started = await second.start()
        await eventually(lambda: load.total > 20)
    assert (started.pid, started.adopted, started.changed) == (mesh.envoy.pid, True, False)
    assert load.bad == []
    assert (await second.server_info())["state"] == "LIVE"


async def test_an_adopted_envoy_with_another_configuration_is_reported(mesh):
    started = await again(mesh, hold_s=99.0).start()
    assert (started.adopted, started.changed) == (True, True)


async def test_a_reused_process_number_is_not_adopted(mesh):
    path = mesh.run_dir / "envoy.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "pid": os.getpid()}))
    second = again(mesh, port=free_port(), run_dir=mesh.run_dir)
    # The first one still owns the admin socket of this directory; the second takes the name over and runs beside it.
    started = await second.start()
    try:
        assert not started.adopted
        assert started.pid not in (os.getpid(), mesh.envoy.pid)
    finally:
        await second.stop(drain_s=0)
    assert psutil.pid_exists(mesh.envoy.pid)


async def test_a_killed_envoy_is_started_again_and_serves(mesh):
    await mesh.warm("iris", "v1")
    supervision = asyncio.create_task(mesh.envoy.supervise())
    try:
        for _ in range(2):
            victim = mesh.envoy.pid
            os.kill(victim, signal.SIGKILL)
            await eventually(lambda victim=victim: mesh.envoy.pid != victim)

            await mesh.envoy.wait_ready()
            async with rest(mesh) as client:
                assert (await infer(client, "iris")).status_code == 200
        assert [reason for _, reason, _ in mesh.events].count("EnvoyRestarted") == 2
    finally:
        await mesh.envoy.stop(drain_s=0)
        await supervision


async def test_the_death_of_an_adopted_envoy_is_noticed(mesh):
    second = again(mesh)
    await second.start()
    supervision = asyncio.create_task(second.supervise())
    first = mesh.envoy.pid
    try:
        os.kill(first, signal.SIGKILL)
        mesh.envoy._child.wait()
        await eventually(lambda: second.pid != first)
        await second.wait_ready()
    finally:
        await second.stop(drain_s=0)
        await supervision


async def test_a_taken_port_is_told_with_its_owner():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(Conflict) as conflict:
            check_port("127.0.0.1", port)
    name = psutil.Process().name()
    assert conflict.value.message == f"port {port} is taken by {name} (pid {os.getpid()})"


async def test_a_taken_port_is_refused_before_anything_starts(mesh, tmp_path):
    other = again(mesh, run_dir=tmp_path)
    with pytest.raises(Conflict, match=rf"port {mesh.config.port} is taken by envoy \(pid {mesh.envoy.pid}\)"):
        await other.start()
    assert other.pid is None


async def test_draining_loses_nothing_and_stop_ends_the_process(mesh):
    await mesh.warm("iris", "v1")
    pid = mesh.envoy.pid
    async with Load(mesh, "iris", callers=4) as load:
        await eventually(lambda: load.total > 20)
        await mesh.envoy.drain()
        before = load.total
        await eventually(lambda: load.total > before + 50)
    assert load.bad == []
    await mesh.envoy.stop(drain_s=0.1)
    assert not psutil.pid_exists(pid)
    assert not (mesh.run_dir / "envoy.json").exists()


async def test_few_statistics_are_kept_per_cluster(mesh):
    await mesh.warm("iris", "v1")
    async with rest(mesh) as client:
        await infer(client, "iris")
    stats = await mesh.envoy.stats("default/iris")
    assert stats == {"cluster.default/iris/v1.upstream_rq_total": 1}
