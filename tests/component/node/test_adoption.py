"""A node process comes and goes; its workers go on serving."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import psutil

from tests.component.node.conftest import Start, Write
from tests.support.eventually import eventually
from tests.support.nodes import infer

GOOD = [[1.0, 2.0, 3.0, 4.0]]


async def test_the_next_node_process_adopts_the_workers_and_reloads_nothing(
    start: Start, models: Path, write_model: Write
):
    node = await start()
    await node.all_ready()
    kept = await node.declare("kept", (models / "net.onnx").as_uri())
    gone = await node.declare("gone", write_model("gone"), trusted=True)
    await node.activate("kept", deadline_s=60.0)
    await node.activate("gone", deadline_s=60.0)
    pids = [node.pid("w0"), node.pid("w1")]
    before = node.copies("kept")
    await node.stop(stop_workers=False)
    assert all(psutil.pid_exists(pid) for pid in pids)
    await node.catalog.delete(gone, who="test")
    node.events.clear()

    await node.start()
    assert [node.pid("w0"), node.pid("w1")] == pids
    assert node.agent.snapshot().adopted_workers == 2
    assert node.copies("kept") == before
    assert node.routed("kept") == (before[0][0],), "published when start returns"
    assert (await infer(await node.activate("kept"), GOOD)).status_code == 200
    assert node.told("Loading") == []
    assert node.told("VersionValid") == [], "nothing is tried again"
    await eventually(lambda: node.told("StrayCopy"))
    assert node.agent.copies_of(gone) == {}
    assert node.agent.copies_of(kept)


async def test_a_worker_that_died_while_no_node_process_ran_is_replaced(start: Start, models: Path):
    node = await start()
    await node.all_ready()
    await node.declare("kept", (models / "net.onnx").as_uri(), scaling={"min": 1})
    await eventually(lambda: node.routed("kept"), within_s=60.0)
    pids = {"w0": node.pid("w0"), "w1": node.pid("w1")}
    (holder,) = node.routed("kept")
    await node.stop(stop_workers=False)
    os.kill(pids[holder], signal.SIGKILL)
    # What init does for the children of a node process that is gone.
    await asyncio.to_thread(os.waitpid, pids[holder], 0)
    await node.start()
    await node.all_ready()
    assert node.agent.snapshot().adopted_workers == 1
    assert node.pid(holder) != pids[holder]
    await eventually(lambda: node.routed("kept"))


async def test_processes_that_are_not_ours_are_left_alone(start: Start):
    node = await start(workers=1)
    await node.all_ready()
    pid = node.pid("w0")
    await node.stop()
    assert not psutil.pid_exists(pid)
    stranger = os.getpid()
    record = f'[{{"id": "w0", "pid": {stranger}, "start_ticks": 1}}]'
    (node.settings.run_dir / "workers.json").write_text(record)
    await node.start()
    await node.all_ready()
    assert node.agent.snapshot().adopted_workers == 0
    assert node.pid("w0") != stranger


async def test_fewer_workers_than_before_end_the_surplus(start: Start, short_folder: Path):
    node = await start(workers=2)
    await node.all_ready()
    surplus = node.pid("w1")
    await node.stop(stop_workers=False)
    node.settings = type(node.settings)(
        data_dir=node.settings.data_dir, run_dir=node.settings.run_dir, workers=1, capacity_bytes=1 << 30
    )
    await node.start()
    await eventually(lambda: not psutil.pid_exists(surplus), within_s=15.0)
    assert [status.id for status in node.agent.snapshot().workers] == ["w0"]
