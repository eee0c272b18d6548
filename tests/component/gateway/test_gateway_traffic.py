"""Splits, sticky units, mirrors, versions and aliases, as Envoy really follows them."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter

import pytest
import pytest_asyncio

from msm.xds.names import SRDS
from tests.component.gateway.clients import grpc_client, infer, rest
from tests.component.gateway.harness import plan, target
from tests.support.eventually import eventually

pytestmark = [pytest.mark.envoy, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mesh(shared_mesh):
    return shared_mesh


async def versions_of(mesh, service: str, count: int) -> Counter[str]:
    async with rest(mesh) as client:
        answers = [await infer(client, service) for _ in range(count)]
    return Counter(answer.headers["x-msm-version"] for answer in answers)


async def units(mesh, service: str, count: int = 300) -> dict[int, str]:
    """Which version each unit gets, asked for over REST and gRPC, which must agree."""
    async with rest(mesh) as client, grpc_client(mesh) as calls:
        first = [(await infer(client, service, headers={"x-user": f"u{i}"})) for i in range(count)]
        second = [(await calls.infer(service, metadata=(("x-user", f"u{i}"),))) for i in range(count)]
    found = {i: answer.headers["x-msm-version"] for i, answer in enumerate(first)}
    assert found == {i: answer.headers["x-msm-version"] for i, answer in enumerate(second)}
    return found


async def test_the_split_is_followed(mesh):
    await mesh.warm("split", "v1", "v2", split={"v1": 80, "v2": 20})
    counted = await versions_of(mesh, "split", 500)
    assert 60 <= counted["v2"] <= 145  # 100 expected; five standard deviations are 45


async def test_requests_spread_over_the_copies(mesh):
    await mesh.warm("spread", "v1")
    async with rest(mesh) as client:
        answers = await asyncio.gather(*(infer(client, "spread") for _ in range(50)))
    assert set(Counter(answer.headers["x-msm-worker"] for answer in answers)) == {"w0", "w1"}


async def test_a_unit_never_leaves_the_version_whose_weight_grows(mesh):
    seen = []
    for weight in (10, 40, 70):
        split = {"v1": 100 - weight, "v2": weight}
        await mesh.warm("sticky", "v1", "v2", split=split, sticky="x-user")
        seen.append(await units(mesh, "sticky"))
    for before, after in itertools.pairwise(seen):
        assert all(after[unit] == "v2" for unit, version in before.items() if version == "v2")
    shares = [Counter(found.values())["v2"] / 300 for found in seen]
    assert shares == sorted(shares)
    assert abs(shares[1] - 0.4) < 0.15


async def test_services_assign_units_independently(mesh):
    for service in ("salt-a", "salt-b"):
        await mesh.warm(service, "v1", "v2", split={"v1": 50, "v2": 50}, sticky="x-user")
    first, second = await units(mesh, "salt-a", 100), await units(mesh, "salt-b", 100)
    assert 20 < sum(first[i] == second[i] for i in first) < 80


async def test_requests_without_the_sticky_key_follow_the_split(mesh):
    await mesh.warm("keyless", "v1", "v2", split={"v1": 50, "v2": 50}, sticky="x-user")
    assert min((await versions_of(mesh, "keyless", 100)).values()) > 20


async def test_a_mirror_gets_its_own_version_and_the_client_never_hears_of_it(mesh):
    await mesh.warm("shadow", "v1", "v2", split={"v1": 100}, mirror=("v2", 100))
    assert await versions_of(mesh, "shadow", 20) == {"v1": 20}

    async def mirrored() -> bool:
        seen = Counter([t for worker in mesh.workers.values() for t in await worker.post("/seen")])
        return seen[target("shadow", "v2")] == 20 and seen[target("shadow", "v1")] == 20

    await eventually(mirrored)


async def test_a_warm_version_stays_direct_while_another_of_the_split_is_cold(mesh):
    await mesh.warm("half", "v1")
    worker = mesh.workers["w0"]
    await mesh.publisher.publish(plan("half", {"v1": [worker.socket], "v2": []}, {"v1": 90, "v2": 10}))
    mesh.activator.recipes["half"] = None  # whoever asks the activator gets an error
    asked = len(mesh.activator.requests)
    async with rest(mesh) as client:
        assert (await infer(client, "half:v1")).status_code == 200
        assert len(mesh.activator.requests) == asked
        assert (await infer(client, "half:v2")).status_code == 500
        assert (await infer(client, "half")).status_code == 500
    assert [request.version for request in mesh.activator.requests[asked:]] == ["v2", None]


async def test_an_alias_moves_at_once(mesh):
    await mesh.warm("alias", "v1", "v2", aliases={"stable": "v1"})
    async with rest(mesh) as client:
        assert (await infer(client, "alias:stable")).headers["x-msm-version"] == "v1"
        await mesh.warm("alias", "v1", "v2", aliases={"stable": "v2"})
        assert (await infer(client, "alias:stable")).headers["x-msm-version"] == "v2"


async def test_a_removed_service_is_not_found(mesh):
    await mesh.warm("gone", "v1")
    await mesh.publisher.remove("gone")
    async with rest(mesh) as client:
        assert (await infer(client, "gone")).status_code == 404
    assert "gone" not in mesh.ads.world.of(SRDS)


async def test_a_service_can_be_told_its_time_limit(mesh):
    await mesh.warm("slow", "v1", timeout_s=0.2)
    async with rest(mesh) as client, grpc_client(mesh) as calls:
        answer = await infer(client, "slow", headers={"test-delay": "2"})
        called = await calls.infer("slow", metadata=(("test-delay", "2"),))
    sentence = "the model did not answer within the time limit of the service"
    assert (answer.status_code, answer.json()) == (504, {"error": sentence, "code": "deadline_exceeded"})
    assert (called.status, called.text) == ("DEADLINE_EXCEEDED", sentence)


async def test_publishing_the_same_plan_again_sends_nothing(mesh):
    made = await mesh.warm("same", "v1")
    before = await mesh.envoy.stats("control_plane|update_success")
    await mesh.publisher.publish(made)
    assert await mesh.envoy.stats("control_plane|update_success") == before
