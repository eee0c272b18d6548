"""Cold versions become ready because requests wait for them."""

from __future__ import annotations

import asyncio
import statistics
import time
from pathlib import Path

import pytest

from msm.kit.errors import LoadFailed, NotFound, Overloaded, Unavailable
from msm.resources.serving import VersionKey
from tests.component.node.conftest import Write
from tests.support.eventually import eventually
from tests.support.nodes import Node, gather_all, infer

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_cold_models_of_real_formats_are_tried_loaded_and_answer(node: Node, models: Path):
    await node.declare("iris", (models / "iris.skops").as_uri())
    await node.declare("net", (models / "net.onnx").as_uri())
    iris, net = await asyncio.gather(node.activate("iris", deadline_s=60.0), node.activate("net", deadline_s=60.0))
    answer = await infer(iris, [[5.1, 3.5, 1.4, 0.2]], tensor="input-0")
    assert (answer.status_code, answer.json()["outputs"][0]["data"]) == (200, [0])
    assert (await infer(net, [[1.0, 2.0, 3.0, 4.0]])).json()["outputs"][0]["data"] == [1.0, 2.0, 3.0]
    status = node.view.by_service("iris").status.versions["v1"]
    assert (status.phase, status.format) == ("Valid", "sklearn")
    assert status.memory_bytes > 0
    assert status.digest.startswith("sha256:")
    assert node.routed("iris") == tuple(worker for worker, state in node.copies("iris") if state == "Ready")


async def test_two_hundred_waiting_requests_cause_one_load_and_little_overhead(node: Node, write_model: Write):
    await node.declare("herd", write_model("herd", load_seconds=0.5), trusted=True)
    assert await node.settled("herd") == "Valid"
    waits: list[float] = []

    async def caller() -> str:
        began = time.monotonic()
        activated = await node.activate("herd")
        waits.append(time.monotonic() - began)
        return activated.target

    targets = await asyncio.gather(*(caller() for _ in range(200)))
    assert targets == ["default/herd/v1"] * 200
    assert len(node.told("Loading", "herd")) == 1
    own = node.told("CopyLoaded", "herd")[0].data["load_seconds"]
    assert own >= 0.5
    # Generous: the figure itself (below 50 ms) belongs to the benchmarks.
    assert statistics.median(waits) - own < 0.5


async def test_a_version_that_nobody_tested_yet_is_hurried_for_a_waiting_request(node: Node, write_model: Write):
    for number in range(8):
        await node.declare(f"bulk{number}", write_model(f"bulk{number}", load_seconds=0.3), trusted=True)
    await node.declare("urgent", write_model("urgent"), trusted=True)
    await node.activate("urgent")
    behind = [number for number in range(8) if not node.told("VersionValid", f"bulk{number}")]
    assert behind, "the urgent version overtook none of those declared before it"
    for number in range(8):
        assert await node.settled(f"bulk{number}") == "Valid"


async def test_unknown_names_are_answered_with_what_there_is(node: Node, models: Path):
    await node.declare("flower", (models / "iris.skops").as_uri())
    with pytest.raises(NotFound, match="flower") as unknown:
        await node.activate("flowr")
    assert unknown.value.nearest[0] == "flower"
    with pytest.raises(NotFound, match="no version or alias 'v9'; it has v1"):
        await node.activate("flower", "v9")
    with pytest.raises(NotFound):
        await node.agent.rescue("default/flower/v9", 0)


async def test_a_version_that_failed_its_trial_answers_with_the_reason_at_once(node: Node, tmp_path: Path):
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"\x08\x07this is no network")
    await node.declare("broken", broken.as_uri(), format="onnx")
    assert await node.settled("broken") == "Failed"
    began = time.monotonic()
    with pytest.raises(LoadFailed, match="broken version v1 cannot be used"):
        await node.activate("broken")
    assert time.monotonic() - began < 0.5
    assert node.copies("broken") == []


async def test_a_full_queue_is_refused_and_a_cancelled_wait_leaves_the_queue(node: Node, write_model: Write):
    await node.declare("queue", write_model("queue", load_seconds=1.0), trusted=True, max_queue=3)
    assert await node.settled("queue") == "Valid"
    waiting = [asyncio.create_task(node.activate("queue")) for _ in range(3)]
    await eventually(lambda: node.agent.snapshot().queued == 3)
    with pytest.raises(Overloaded, match="3 requests wait for model queue") as full:
        await node.activate("queue")
    assert full.value.retry_after_s >= 1.0
    waiting[0].cancel()
    await eventually(lambda: node.agent.snapshot().queued == 2)
    results = await gather_all(*waiting)
    assert isinstance(results[0], asyncio.CancelledError)
    assert [result.target for result in results[1:]] == ["default/queue/v1"] * 2
    assert node.agent.snapshot().queued == 0


async def test_a_wait_ends_at_its_deadline_and_the_load_goes_on(node: Node, write_model: Write):
    await node.declare("slow", write_model("slow", load_seconds=1.0), trusted=True)
    assert await node.settled("slow") == "Valid"
    with pytest.raises(Unavailable, match=r"slow version v1 was not ready within 0\.2 s: it is still loading"):
        await node.activate("slow", deadline_s=0.2)
    await eventually(lambda: "Ready" in dict(node.copies("slow")).values())


async def test_a_failed_load_is_remembered_and_a_new_version_is_not_hurt_by_it(
    node: Node, write_model: Write, tmp_path: Path
):
    fail_file = tmp_path / "fail"
    await node.declare("moody", write_model("moody", fail_file=fail_file), trusted=True)
    assert await node.settled("moody") == "Valid"
    fail_file.touch()
    with pytest.raises(LoadFailed, match="the weights do not fit"):
        await node.activate("moody")
    tries = len(node.told("Loading", "moody"))
    assert tries == 2, "each of the two workers is tried once"
    with pytest.raises(LoadFailed, match="the weights do not fit"):
        await node.activate("moody")
    assert len(node.told("Loading", "moody")) == tries
    explanation = node.agent.explain(node.view.by_service("moody").key)
    assert explanation.rejected[0].about == "load_failed"


async def test_a_request_whose_copy_was_lost_is_rescued(node: Node, models: Path):
    await node.declare("lost", (models / "net.onnx").as_uri())
    activated = await node.activate("lost", deadline_s=60.0)
    behind = node.worker(node.copies("lost")[0][0])
    await behind.unload(VersionKey.parse(activated.target), drain_s=0.0)
    await behind.close()
    assert (await infer(activated, [[1.0, 2.0, 3.0, 4.0]])).status_code == 503
    socket = await node.agent.rescue(activated.target, 0)
    assert node.told("CopyLost", "lost")
    assert socket.endswith(".sock")
    assert node.routed("lost")


async def test_idle_copies_go_and_come_back(node: Node, models: Path):
    await node.declare("idle", (models / "net.onnx").as_uri(), scaling={"idle_seconds": 1.0})
    await node.activate("idle", deadline_s=60.0)
    await eventually(lambda: node.copies("idle") == [], within_s=10.0)
    assert node.routed("idle") == ()
    assert (await infer(await node.activate("idle"), [[1.0, 2.0, 3.0, 4.0]])).status_code == 200


async def test_a_deleted_model_is_unloaded(node: Node, models: Path):
    key = await node.declare("gone", (models / "net.onnx").as_uri(), scaling={"min": 1})
    await eventually(lambda: dict(node.copies("gone")).values() and node.routed("gone"), within_s=30.0)
    await node.catalog.delete(key, who="test")
    await eventually(lambda: node.copies("gone") == [])
    with pytest.raises(NotFound):
        await node.activate("gone")
