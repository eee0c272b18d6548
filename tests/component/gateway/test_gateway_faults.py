"""Workers die, lose versions or hang: where a copy is left or can be made again, no request is lost."""

from __future__ import annotations

import asyncio

import pytest

from msm.kit.errors import LoadFailed
from tests.component.gateway.clients import Load, grpc_client, infer, named, rest
from tests.component.gateway.harness import now, plan, target
from tests.support.eventually import eventually

pytestmark = pytest.mark.envoy


async def test_a_worker_killed_under_load_costs_nothing_while_another_copy_lives(mesh):
    await mesh.warm("iris", "v1")
    async with Load(mesh, "iris") as load:
        for _ in range(5):
            before = load.total
            await eventually(lambda before=before: load.total > before + 50)
            mesh.workers["w1"].kill()
            await asyncio.sleep(0.3)
            mesh.worker("w1", target("iris"))
    assert load.bad == []
    assert mesh.activator.rescues == []  # a healthy copy was left all the time


async def test_the_only_worker_killed_under_load_costs_nothing(mesh):
    """200 requests are in flight in the worker that dies; all of them are replayed by the rescue proxy."""
    await mesh.warm("solo", "v1", on=["w0"])
    async with rest(mesh) as client, grpc_client(mesh) as calls:
        slow = {"test-delay": "0.5"}
        sent = [asyncio.create_task(infer(client, "solo", headers=slow)) for _ in range(100)]
        sent += [asyncio.create_task(calls.infer("solo", metadata=tuple(slow.items()))) for _ in range(100)]
        await asyncio.sleep(0.3)
        mesh.workers["w0"].kill()
        answers = await asyncio.gather(*sent)
        later = await infer(client, "solo")
    assert [a for a in answers[:100] if a.status_code != 200] == []
    assert [a for a in answers[100:] if a.status != "OK"] == []
    assert later.headers["x-msm-worker"] == "w1"
    assert mesh.rescue.rescued >= 200
    assert "x-msm-target" not in later.headers


async def test_the_only_worker_dying_again_and_again_under_load_costs_nothing(mesh):
    await mesh.warm("solo", "v1", on=["w0"])
    async with Load(mesh, "solo") as load:
        for round_ in range(4):
            victim, heir = ("w0", "w1") if round_ % 2 == 0 else ("w1", "w0")
            before = load.total
            await eventually(lambda before=before: load.total > before + 50)
            mesh.workers[victim].kill()
            await asyncio.sleep(0.2)
            mesh.worker(victim)
            await mesh.warm("solo", "v1", on=[heir])
    assert load.bad == []


async def test_after_a_rescue_traffic_returns_to_copies(mesh):
    await mesh.warm("solo", "v1", on=["w0"])
    mesh.workers["w0"].kill()
    async with rest(mesh) as client:
        assert (await infer(client, "solo")).status_code == 200
        await mesh.warm("solo", "v1", on=["w1"])
        rescues = len(mesh.activator.rescues)
        for _ in range(20):
            assert (await infer(client, "solo")).headers["x-msm-worker"] == "w1"
    assert len(mesh.activator.rescues) == rescues


async def test_a_large_request_is_replayed_whole(mesh):
    await mesh.warm("solo", "v1", on=["w0"])
    body = b"x" * 5_000_000
    message = named("solo", padding=5_000_000)
    mesh.workers["w0"].kill()
    async with rest(mesh) as client, grpc_client(mesh) as calls:
        answer = await client.post("/v2/models/solo/infer", content=body)
        called = await calls.call(message)
    assert (answer.status_code, answer.json()["bytes"]) == (200, len(body))
    assert (called.status, called.json["bytes"]) == ("OK", len(message) + 5)


async def test_a_rescue_that_fails_tells_its_own_error(mesh):
    await mesh.warm("solo", "v1", on=["w0"])
    mesh.activator.rescue_failure = LoadFailed("version v1 of solo cannot be loaded: 100 % broken “file”")
    mesh.workers["w0"].kill()
    async with rest(mesh) as client, grpc_client(mesh) as calls:
        answer, called = await infer(client, "solo"), await calls.infer("solo")
    sentence = "version v1 of solo cannot be loaded: 100 % broken “file”"
    assert (answer.status_code, answer.json()) == (503, {"error": sentence, "code": "load_failed"})
    assert answer.headers["retry-after"] == "1"
    assert (called.status, called.text) == ("UNAVAILABLE", sentence)
    assert mesh.rescue.failed == 2


async def test_a_client_that_hangs_up_ends_its_rescue(mesh):
    await mesh.warm("solo", "v1", on=["w0"])
    mesh.activator.rescue_load_s = 30
    mesh.workers["w0"].kill()
    async with grpc_client(mesh) as calls:
        assert (await calls.infer("solo", timeout=0.5)).status == "DEADLINE_EXCEEDED"
    await eventually(lambda: not mesh.rescue._connections)


async def test_a_request_that_kills_its_worker_kills_at_most_one_more(mesh):
    await mesh.warm("solo", "v1", on=["w0"])
    async with rest(mesh) as client:
        answer = await infer(client, "solo", headers={"test-die": "1"})
    assert answer.status_code == 503
    assert "died over this request again" in answer.json()["error"]
    await eventually(lambda: not any(worker.alive for worker in mesh.workers.values()))


async def test_a_request_that_is_not_idempotent_is_not_sent_twice(mesh):
    await mesh.warm("once", "v1", idempotent=False)
    async with rest(mesh) as client:
        sentence = "the process that should answer cannot be reached or broke off"
        answer = await infer(client, "once", headers={"test-die": "1"})
        assert (answer.status_code, answer.json()) == (503, {"error": sentence, "code": "unavailable"})
        await eventually(lambda: not all(worker.alive for worker in mesh.workers.values()))
        for _ in range(20):  # nothing was sent to the dead one: trying the other is no second time
            assert (await infer(client, "once")).status_code == 200
    assert any(worker.alive for worker in mesh.workers.values())


async def test_a_worker_that_lost_a_version_hands_the_request_on(mesh):
    await mesh.warm("iris", "v1")
    await mesh.workers["w0"].post(f"/drop/{target('iris')}")
    async with rest(mesh) as client, grpc_client(mesh) as calls:
        for _ in range(50):
            answer, called = await infer(client, "iris"), await calls.infer("iris")
            assert (answer.status_code, called.status) == (200, "OK")
            assert answer.headers["x-msm-worker"] == "w1"
    assert mesh.activator.rescues == []


async def test_a_version_that_no_worker_holds_any_more_is_rescued(mesh):
    await mesh.warm("iris", "v1")
    for worker in mesh.workers.values():
        await worker.post(f"/drop/{target('iris')}")
    async with rest(mesh) as client, grpc_client(mesh) as calls:
        assert (await infer(client, "iris")).status_code == 200
        assert (await calls.infer("iris")).status == "OK"


async def test_a_worker_that_dies_right_after_an_activation_costs_nothing(mesh):
    """The route isn't flipped yet and the endpoint that the activator named is gone: the rescue proxy is next."""
    await mesh.cold("lazy")
    worker = mesh.workers["w0"]

    async def activated(service, recipe):
        await worker.post(f"/hold/{target(service)}")
        worker.kill()
        return worker

    mesh.activator.load = activated
    async with rest(mesh) as client:
        answer = await infer(client, "lazy")
    assert (answer.status_code, answer.headers["x-msm-worker"]) == (200, "w1")


async def test_with_no_worker_at_all_the_answer_says_so_and_is_quick(mesh):
    for worker in mesh.workers.values():
        worker.kill()
    await mesh.workers_changed()
    started = now()
    async with rest(mesh) as client, grpc_client(mesh) as calls:
        answer, called = await client.get("/v2/health/ready"), await calls.call(b"", call="ServerReady")
    sentence = "no worker of this node is ready"
    assert (answer.status_code, answer.json()) == (503, {"error": sentence, "code": "unavailable"})
    assert (called.status, called.text) == ("UNAVAILABLE", sentence)
    assert now() - started < 2


async def test_endpoints_come_and_go_under_load(mesh):
    both = [worker.socket for worker in mesh.workers.values()]
    await mesh.warm("iris", "v1")
    async with Load(mesh, "iris", callers=4) as load:
        for round_ in range(30):
            await mesh.publisher.publish(plan("iris", {"v1": both if round_ % 2 else both[:1]}))
            await asyncio.sleep(0.005)
    assert load.bad == []
    assert mesh.events == []
