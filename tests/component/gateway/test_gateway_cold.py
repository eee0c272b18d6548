"""Requests for cold versions are held, never lost: over flips, hang-ups and the death of the node process."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections import Counter

import pytest

from tests.component.gateway.clients import BODY, Load, grpc_client, infer, rest
from tests.component.gateway.harness import HERE, Recipe, now, plan
from tests.support.eventually import eventually

pytestmark = pytest.mark.envoy
HELD = 200


async def held_requests(mesh, rest_service: str, grpc_service: str, count: int = HELD) -> Counter[str]:
    """`count` REST and `count` gRPC requests at once; their statuses."""
    async with rest(mesh) as client, grpc_client(mesh) as calls:
        answers = await asyncio.gather(
            *(infer(client, rest_service) for _ in range(count)), *(calls.infer(grpc_service) for _ in range(count))
        )
    return Counter(str(getattr(answer, "status_code", None) or answer.status) for answer in answers)


@pytest.mark.parametrize("publish", [True, False], ids=["through the new table", "straight to the endpoint"])
async def test_held_requests_survive_the_flip_with_one_load_each(mesh, publish):
    await mesh.cold("one", "two", recipe=Recipe(load_s=1.0, publish=publish))
    started = now()
    assert await held_requests(mesh, "one", "two") == {"200": HELD, "OK": HELD}
    assert sorted(mesh.activator.loads) == ["one", "two"]
    assert len(mesh.activator.requests) == 2 * HELD
    assert mesh.activator.cancelled == 0
    assert now() - started < 8
    assert mesh.activation.holding == 0


async def test_a_held_request_with_a_large_body_arrives_whole(mesh):
    await mesh.cold("lazy", recipe=Recipe(load_s=0.5))
    body = b"x" * 3_000_000
    async with rest(mesh) as client:
        answers = await asyncio.gather(*(client.post("/v2/models/lazy/infer", content=body) for _ in range(8)))
    assert [(a.status_code, a.json()["bytes"]) for a in answers] == [(200, len(body))] * 8


async def test_flips_under_load_lose_nothing(mesh):
    """100 times cold and hot again, clusters removed and made anew, while requests, some of them long, go on."""
    warm = await mesh.warm("flip", "v1")
    cold = plan("flip", {"v1": []})
    async with Load(mesh, "flip") as load, Load(mesh, "flip", callers=2, headers={"test-delay": "0.1"}) as long:
        for _ in range(100):
            await mesh.publisher.publish(cold)
            await asyncio.sleep(0.005)
            await mesh.publisher.publish(warm)
            await asyncio.sleep(0.005)
    assert (load.bad, long.bad) == ([], [])
    assert load.total > 500
    assert mesh.events == []


async def test_a_client_that_hangs_up_cancels_its_wait(mesh):
    await mesh.cold("lazy", recipe=Recipe(load_s=30))
    async with grpc_client(mesh) as calls:
        waiting = [asyncio.create_task(calls.infer("lazy")) for _ in range(25)]
        for _ in range(25):
            reader, writer = await asyncio.open_connection("127.0.0.1", mesh.config.port)
            writer.write(b"POST /v2/models/lazy/infer HTTP/1.1\r\nhost: h\r\ncontent-length: 2\r\n\r\n" + BODY[:2])
            waiting.append((reader, writer))
        await eventually(lambda: mesh.activation.holding == 50)
        for waiter in waiting:
            if isinstance(waiter, asyncio.Task):
                waiter.cancel()
            else:
                waiter[1].close()
        await eventually(lambda: mesh.activator.cancelled == 50)
    assert mesh.activation.holding == 0
    assert len(mesh.activator.requests) == 50


async def test_the_deadline_of_a_grpc_client_ends_its_wait(mesh):
    await mesh.cold("lazy", recipe=Recipe(load_s=30))
    async with grpc_client(mesh) as calls:
        assert (await calls.infer("lazy", timeout=0.3)).status == "DEADLINE_EXCEEDED"
    await eventually(lambda: mesh.activator.cancelled == 1)


async def test_held_requests_survive_the_death_of_the_node_process(mesh):
    """Killed while 100 REST and 100 gRPC requests are held, back after a second: all held ones are answered."""
    await mesh.workers["w0"].post("/hold/default/hot/v1")
    await mesh.stop_control()
    services = ["hot", "rest-cold", "grpc-cold"]

    def start_node() -> subprocess.Popen[str]:
        command = [sys.executable, str(HERE / "control_process.py"), str(mesh.run_dir), str(mesh.config.port)]
        command += ["w0,w1", "1.0", *services]
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, cwd=HERE.parents[2], env={"PYTHONPATH": "."}
        )

    async def ready(process: subprocess.Popen[str]) -> subprocess.Popen[str]:
        assert await asyncio.to_thread(process.stdout.readline) == "ready\n"
        return process

    node = await ready(start_node())
    try:
        async with rest(mesh) as client:

            async def live() -> bool:
                return (await infer(client, "hot")).status_code == 200

            await eventually(live)
        async with Load(mesh, "hot", callers=4) as load:
            held = asyncio.create_task(held_requests(mesh, "rest-cold", "grpc-cold", 100))
            await eventually(lambda: load.total > 50)
            await asyncio.sleep(0.3)
            node.kill()
            node.wait()
            node.stdout.close()
            await asyncio.sleep(0.8)
            node = await ready(start_node())
            assert await held == {"200": 100, "OK": 100}
        assert load.bad == []
    finally:
        node.kill()
        node.wait()
        node.stdout.close()


async def test_without_a_node_process_hot_services_answer_and_cold_ones_say_why(mesh):
    await mesh.warm("hot", "v1")
    await mesh.cold("lazy")
    await mesh.stop_control()
    async with rest(mesh) as client, grpc_client(mesh) as calls:
        assert (await infer(client, "hot")).status_code == 200
        assert (await calls.infer("hot")).status == "OK"
        waiting = asyncio.create_task(infer(client, "lazy"))
        mesh.new_control()  # a new node process knows nothing yet: it must publish before Envoy may connect
        await mesh.cold("lazy")
        await mesh.warm("hot", "v1")
        await mesh.workers_changed()
        await mesh.start_control()
        assert (await waiting).status_code == 200


async def test_publishing_never_waits_for_an_absent_envoy(mesh):
    await mesh.envoy.stop(drain_s=0)
    await eventually(lambda: not mesh.ads.connected)
    started = now()
    for number in range(100):
        await mesh.publisher.publish(plan(f"s{number}", {"v1": [mesh.workers["w0"].socket]}))
    assert now() - started < 0.5


async def test_publishing_waits_for_a_silent_envoy_no_longer_than_its_deadline(mesh):
    import signal

    await mesh.warm("iris", "v1")
    process = mesh.envoy._process
    process.send_signal(signal.SIGSTOP)
    try:
        started = now()
        await mesh.publisher.publish(plan("iris", {"v1": [mesh.workers["w0"].socket]}, revision=2))
        assert 3 < now() - started < 5  # the endpoints and the scope, two seconds each
        assert {reason for _, reason, _ in mesh.events} == {"RouteLate"}
    finally:
        process.send_signal(signal.SIGCONT)

    async def live() -> bool:
        async with rest(mesh) as client:
            return (await infer(client, "iris")).headers["x-msm-revision"] == "2"

    await eventually(live)
