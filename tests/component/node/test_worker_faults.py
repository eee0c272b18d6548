"""Workers die and hang; what they held comes back, and the guilty are kept apart."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import httpx
import pytest

from msm.kit.errors import Unavailable
from tests.component.node.conftest import Write
from tests.support.eventually import eventually
from tests.support.nodes import Node, infer

pytestmark = pytest.mark.asyncio(loop_scope="module")

POISON = [[666.0, 0.0, 0.0, 0.0]]
HANG = [[667.0, 0.0, 0.0, 0.0]]
GOOD = [[1.0, 2.0, 3.0, 4.0]]


@pytest.fixture(autouse=True)
def only_new_events(node: Node) -> None:
    """Each test looks at the events that it caused."""
    node.events.clear()


async def crash(node: Node, name: str) -> None:
    """Send the request that kills the worker, and wait until the node has seen the death."""
    activated = await node.activate(name)
    deaths = len(node.told("WorkerLost"))
    with pytest.raises(httpx.HTTPError):
        await infer(activated, POISON)
    await eventually(lambda: len(node.told("WorkerLost")) > deaths)


async def test_a_killed_worker_is_replaced_and_its_copies_come_back_within_three_seconds(node: Node, models: Path):
    names = ["a", "b", "c"]
    for name in names:
        await node.declare(name, (models / "net.onnx").as_uri(), scaling={"min": 1})
    await eventually(lambda: all(node.routed(name) for name in names), within_s=60.0)
    await node.all_ready()
    victim = node.routed("a")[0]
    lost = [name for name in names if node.routed(name) == (victim,)]
    began = time.monotonic()
    os.kill(node.pid(victim), signal.SIGKILL)
    await eventually(lambda: node.told("WorkerLost", victim), within_s=3.0)
    assert all(victim not in dict(node.copies(name)) for name in lost), "copies of a dead worker are gone at once"
    await eventually(lambda: all(node.routed(name) for name in lost), within_s=3.0)
    await eventually(lambda: all("Ready" in dict(node.copies(name)).values() for name in names), within_s=3.0)
    assert time.monotonic() - began < 3.0
    await node.all_ready()
    assert (await infer(await node.activate("a"), GOOD)).status_code == 200


async def test_a_copy_that_was_in_use_is_loaded_again_though_nobody_waits(node: Node, models: Path):
    await node.declare("used", (models / "net.onnx").as_uri())
    await node.activate("used", deadline_s=60.0)
    (worker,) = node.routed("used")
    os.kill(node.pid(worker), signal.SIGKILL)
    await eventually(lambda: len(node.told("CopyLoaded", "used")) == 2 and node.routed("used"), within_s=5.0)
    await node.all_ready()


async def test_a_version_that_kills_its_workers_gets_its_own_process_and_then_no_traffic(
    node: Node, write_model: Write
):
    await node.declare("killer", write_model("killer"), trusted=True)
    assert await node.settled("killer") == "Valid"
    await crash(node, "killer")
    assert "default/killer/v1" in node.told("WorkerLost")[-1].message
    await crash(node, "killer")
    await eventually(lambda: node.told("Isolated", "killer"))
    activated = await node.activate("killer")
    (alone,) = node.routed("killer")
    assert alone.startswith("d")
    assert (await infer(activated, GOOD)).status_code == 200
    await node.all_ready()  # the one that it ended last is replaced
    shared = [node.pid("w0"), node.pid("w1")]
    for _ in range(3):
        await crash(node, "killer")
    await eventually(lambda: node.told("CrashLoop", "killer"))
    with pytest.raises(Unavailable, match="takes no traffic") as refused:
        await node.activate("killer")
    assert refused.value.reason == "crash_loop"
    assert refused.value.retry_after_s > 60
    assert [node.pid("w0"), node.pid("w1")] == shared, "neighbours live on once it is alone"
    await eventually(lambda: all(not status.id.startswith("d") for status in node.agent.snapshot().workers))


async def test_a_stopped_worker_is_replaced_within_three_seconds(node: Node, models: Path):
    await node.declare("frozen", (models / "net.onnx").as_uri(), scaling={"min": 1})
    await eventually(lambda: node.routed("frozen"), within_s=60.0)
    await node.all_ready()
    (worker,) = node.routed("frozen")
    pid = node.pid(worker)
    began = time.monotonic()
    os.kill(pid, signal.SIGSTOP)
    await eventually(lambda: node.told("WorkerHangs", worker), within_s=3.0)
    await eventually(lambda: node.routed("frozen") and "Ready" in dict(node.copies("frozen")).values(), within_s=4.0)
    assert time.monotonic() - began < 4.0
    await node.all_ready()
    assert node.pid(worker) != pid


async def test_a_call_that_never_ends_costs_its_worker_and_blames_the_version(node: Node, write_model: Write):
    await node.declare("stuck", write_model("stuck"), trusted=True, timeout_seconds=1.0)
    activated = await node.activate("stuck", deadline_s=60.0)
    (worker,) = node.routed("stuck")
    pid = node.pid(worker)
    request = asyncio.create_task(infer(activated, HANG))
    await eventually(lambda: [e for e in node.told("WorkerLost", worker) if "stuck" in e.message], within_s=8.0)
    await asyncio.gather(request, return_exceptions=True)
    await node.all_ready()
    assert node.pid(worker) != pid
