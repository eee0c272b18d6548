"""Processes are killed, models crash and hang; only what cannot be otherwise suffers."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import httpx
import psutil
import pytest

from bench import kill_node, kill_worker
from bench._load import closed_loop
from bench._mesh import Mesh
from bench._models import BODY, manifest
from tests.system.conftest import msm_command

T = TypeVar("T")
CRASHES = """
import os
class Model:
    signature = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}],
                 "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 4]}]}
    def predict(self, inputs):
        x = inputs["x"]
        if x[0, 0] == 666:
            os.abort()
        if x[0, 0] == 667:
            while True:
                pass
        if x[0, 0] == 668:
            raise ValueError("the third kind of evil")
        return {"y": x}
"""


def body(first: float) -> bytes:
    data = [first, 0.0, 0.0, 0.0]
    return f'{{"inputs": [{{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": {data}}}]}}'.encode()


def test_two_copies_lose_no_request_when_workers_are_killed():
    figures = {figure.name: figure for figure in kill_worker.run(quick=True)}
    assert figures["failed requests"].value == 0
    assert figures["requests"].value > 500


def test_a_killed_node_process_comes_back_without_a_lost_request_or_a_reload():
    figures = {figure.name: figure for figure in kill_node.run(quick=True)}
    assert figures["failed requests"].value == 0
    assert figures["copies loaded again"].value == 0
    assert figures["requests"].value > 500


def eventually(found: Callable[[], T | None], what: str, *, within_s: float = 30.0) -> T:
    """What `found` gives once it gives something."""
    deadline = time.monotonic() + within_s
    while (value := found()) is None:
        assert time.monotonic() < deadline, what
        time.sleep(0.02)
    return value


def busy_worker(running: Mesh, *, requests: int) -> str:
    """The worker of a ready copy, once that copy has answered so many requests."""

    def busy() -> str | None:
        copies = running.node()["copies"]
        return next((c["worker"] for c in copies if c["state"] == "Ready" and c.get("requests", 0) >= requests), None)

    return eventually(busy, f"no copy has answered {requests} requests")


def wait_for_another(running: Mesh, worker: str, pid: int) -> None:
    """Until `worker` is another process than `pid`."""
    eventually(lambda: running.worker_pids().get(worker, pid) != pid or None, f"{worker} is still process {pid}")


async def test_a_single_copy_loses_no_request_when_its_worker_is_killed(own_mesh: Mesh, network: Path):
    own_mesh.apply([manifest("only", network, minimum=1)])
    await asyncio.to_thread(own_mesh.wait_ready, 1, within_s=30)
    stop = asyncio.Event()
    load = asyncio.create_task(
        closed_loop(own_mesh.gateway, lambda: ("/v2/models/only/infer", BODY), callers=8, stop=stop)
    )
    for _ in range(3):
        holder = await asyncio.to_thread(busy_worker, own_mesh, requests=200)
        pid = own_mesh.worker_pids()[holder]
        os.kill(pid, signal.SIGKILL)
        await asyncio.to_thread(wait_for_another, own_mesh, holder, pid)
        await asyncio.to_thread(own_mesh.wait_ready, 1, within_s=30)
    stop.set()
    tally = await load
    assert tally.failed == 0, tally.reasons
    assert tally.answers > 500


@pytest.mark.parametrize(("trigger", "what"), [(666, "crash"), (667, "hang")])
async def test_a_model_that_crashes_or_hangs_hurts_only_its_own_requests(
    own_mesh: Mesh, network: Path, tmp_path: Path, trigger: float, what: str
):
    (tmp_path / "model.py").write_text(CRASHES)
    evil = manifest("evil", tmp_path, minimum=1)
    evil["spec"]["versions"][0] |= {"format": "python", "trusted": True}
    evil["spec"]["timeoutSeconds"] = 2
    own_mesh.apply([evil, *(manifest(f"good{i}", network, minimum=1) for i in range(2))])
    await asyncio.to_thread(own_mesh.wait_ready, 3, within_s=30)
    stop = asyncio.Event()
    turns = iter(range(10_000_000))
    load = asyncio.create_task(
        closed_loop(own_mesh.gateway, lambda: (f"/v2/models/good{next(turns) % 2}/infer", BODY), callers=4, stop=stop)
    )
    async with httpx.AsyncClient(base_url=own_mesh.gateway, timeout=60) as client:
        fine = await client.post("/v2/models/evil/infer", content=body(1))
        assert fine.json()["outputs"][0]["data"] == [1, 0, 0, 0]
        bad = await client.post("/v2/models/evil/infer", content=body(trigger))
        assert bad.status_code >= 500, what
        assert "error" in bad.json()
        assert "Traceback" not in bad.text
        again = await client.post("/v2/models/evil/infer", content=body(2))
        assert again.status_code == 200, again.text
        for turn in range(100):
            neighbour = await client.post(f"/v2/models/good{turn % 2}/infer", content=BODY)
            assert neighbour.status_code == 200, neighbour.text
    stop.set()
    tally = await load
    assert tally.failed == 0, tally.reasons
    assert tally.answers > 0


def test_a_model_that_raises_says_what_and_goes_on(running: Mesh, tmp_path: Path):
    (tmp_path / "model.py").write_text(CRASHES)
    msm = msm_command(running.data)
    done = msm("deploy", "raises", str(tmp_path), "--trusted")
    assert done.code == 0, done.err
    bad = httpx.post(running.gateway + "/v2/models/raises/infer", content=body(668), timeout=30)
    assert bad.status_code == 500
    assert "ValueError: the third kind of evil" in bad.json()["error"]
    assert str(tmp_path) not in bad.text
    assert httpx.post(running.gateway + "/v2/models/raises/infer", content=body(3)).status_code == 200


def test_a_killed_envoy_comes_back(own_mesh: Mesh, network: Path):
    own_mesh.apply([manifest("m", network, minimum=1)])
    own_mesh.wait_ready(1, within_s=30)
    before = own_mesh.node()["gateway"]["pid"]
    os.kill(before, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while True:
        try:
            if httpx.post(own_mesh.gateway + "/v2/models/m/infer", content=BODY).status_code == 200:
                break
        except httpx.TransportError:
            pass
        assert time.monotonic() < deadline, "the gateway did not come back"
        time.sleep(0.05)
    assert own_mesh.node()["gateway"]["pid"] != before


def test_a_restart_on_the_same_data_has_everything_back(own_mesh: Mesh, network: Path):
    own_mesh.apply([manifest("kept", network, minimum=1), manifest("lazy", network)])
    own_mesh.wait_valid(within_s=30)
    own_mesh.wait_ready(1, within_s=30)
    children = own_mesh.worker_pids().values()
    own_mesh.process.send_signal(signal.SIGINT)
    assert own_mesh.process.wait(timeout=30) == 0
    assert not any(psutil.pid_exists(pid) for pid in children), "a worker outlived an orderly stop"
    own_mesh.start()
    assert {model["metadata"]["name"] for model in own_mesh.models()} == {"kept", "lazy"}
    for name in ("kept", "lazy"):
        assert httpx.post(f"{own_mesh.gateway}/v2/models/{name}/infer", content=BODY, timeout=30).status_code == 200


def test_a_second_node_on_the_same_data_or_port_is_refused_with_the_reason(running: Mesh, tmp_path: Path):
    same_data = msm_command(running.data)("up", "--data-dir", str(running.data), "--gateway-port", "0")
    assert same_data.code != 0
    assert str(running.process.pid) in same_data.err
    port = running.gateway.rsplit(":", 1)[1]
    taken = msm_command(tmp_path)("up", "--data-dir", str(tmp_path / "d"), "--gateway-port", port, "--api-port", "0")
    assert taken.code != 0
    assert port in taken.err
    assert "envoy" in taken.err
    assert "Traceback" not in taken.err + same_data.err
