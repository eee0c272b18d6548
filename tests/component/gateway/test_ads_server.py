"""The ADS server and the publisher over a real gRPC stream, with a client that can be slow, silent or picky."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from tempfile import TemporaryDirectory

import grpc
import pytest
from envoy.service.discovery.v3 import discovery_pb2

from msm.control.publisher import LINGER_S, Publisher
from msm.gateway.control_server import ControlServer
from msm.kit.clock import ManualClock
from msm.kit.errors import Internal
from msm.xds.names import CDS, EDS, RDS, SRDS
from msm.xds.server import SERVICE, AdsServer
from msm.xds.snapshot import Change, World, versioned
from msm.xds.translate import Shared, Translator
from tests.component.gateway.harness import now, plan
from tests.support.eventually import eventually

SHORT = {CDS: "C", EDS: "E", SRDS: "S", RDS: "R"}


class Client:
    """A proxy by hand: subscribes as Envoy does, follows clusters with their endpoints, logs what it gets."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.log: list[str] = []
        self.silent = False
        self.refuses: set[str] = set()

    async def __aenter__(self) -> Client:
        self.channel = grpc.aio.insecure_channel(f"unix:{self.path}")
        self.call = self.channel.stream_stream(
            f"/{SERVICE}/DeltaAggregatedResources",
            request_serializer=discovery_pb2.DeltaDiscoveryRequest.SerializeToString,
            response_deserializer=discovery_pb2.DeltaDiscoveryResponse.FromString,
        )()
        self.task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self.call.cancel()
        self.task.cancel()
        await asyncio.wait((self.task,))
        await self.channel.close()

    async def send(self, kind: str, **fields: object) -> None:
        await self.call.write(discovery_pb2.DeltaDiscoveryRequest(type_url=kind, **fields))

    async def _run(self) -> None:
        await self.send(CDS)
        await self.send(SRDS)
        await self.send(RDS, resource_names_subscribe=["~cold"])
        with contextlib.suppress(grpc.aio.AioRpcError):
            while (response := await self.call.read()) is not grpc.aio.EOF:
                await self._take(response)

    async def _take(self, response) -> None:
        kind = response.type_url
        names = sorted(resource.name for resource in response.resources)
        self.log += [f"+{SHORT[kind]} {name}" for name in names]
        self.log += [f"-{SHORT[kind]} {name}" for name in response.removed_resources]
        if self.silent:
            return
        if kind == CDS and names:
            await self.send(EDS, resource_names_subscribe=names)
        answer = discovery_pb2.DeltaDiscoveryRequest(type_url=kind, response_nonce=response.nonce)
        if bad := self.refuses & set(names):
            answer.error_detail.message = f"{bad} refused"
        await self.call.write(answer)


class Node:
    def __init__(self, run_dir: Path) -> None:
        self.refusals: list = []
        self.events: list = []
        self.connections: list[bool] = []
        self.path = run_dir / "xds.sock"
        self.ads = AdsServer(
            World(),
            on_refusal=lambda key, reason: self.refusals.append((key, reason)),
            on_connection=self.connections.append,
        )
        self.clock = ManualClock()
        translator = Translator(Shared("/run/rescue.sock"))
        self.publisher = Publisher(
            self.ads, translator, lambda *event: self.events.append(event), self.clock, deadline_s=0.3
        )
        self.server = ControlServer(self.path, self.ads)


@pytest.fixture
async def node():
    with TemporaryDirectory(prefix="msm-ads-") as folder:
        made = Node(Path(folder))
        made.path.touch()  # what a dead process left behind
        await made.server.start()
        yield made
        await made.server.stop()


@contextlib.asynccontextmanager
async def connected(node: Node):
    async with Client(node.path) as client:
        await eventually(lambda: node.ads.connected)
        everything = [(kind, name) for kind in (CDS, EDS, SRDS) for name in node.ads.world.of(kind)]
        assert (await node.ads.wait_acked([*everything, (RDS, "~cold")], 5)).complete
        client.log.clear()
        yield client


async def test_a_service_becomes_warm_clusters_first_and_cold_scope_first(node):
    async with connected(node) as client:
        await node.publisher.publish(plan("iris", {"v1": ["/a"], "v2": ["/b"]}))
        assert client.log == [
            "+C default/iris/v1", "+C default/iris/v2", "+E default/iris/v1", "+E default/iris/v2", "+S iris",
        ]  # fmt: skip
        client.log.clear()
        await node.publisher.publish(plan("iris", {"v1": ["/a"], "v2": []}))
        assert client.log == ["+S iris", "+E default/iris/v2"]  # no copies: what is replayed in there is rescued
        client.log.clear()
        await node.publisher.publish(plan("iris", {"v1": ["/c"], "v2": []}))
        assert client.log == ["+E default/iris/v1"]
        client.log.clear()
        await node.publisher.remove("iris")
        assert client.log == ["-S iris", "+E default/iris/v1"]
    assert node.events == []


async def test_clusters_that_nothing_names_linger_and_then_go(node):
    async with connected(node) as client:
        await node.publisher.publish(plan("iris", {"v1": ["/a"]}))
        await node.publisher.publish(plan("iris", {"v1": []}))
        client.log.clear()
        await node.clock.advance(LINGER_S - 1)
        await node.publisher.sweep()
        assert client.log == []
        await node.clock.advance(1)
        await node.publisher.sweep()
        assert client.log == ["-C default/iris/v1"]


async def test_a_cluster_that_is_wanted_again_while_it_lingers_stays(node):
    async with connected(node) as client:
        await node.publisher.publish(plan("iris", {"v1": ["/a"]}))
        await node.publisher.publish(plan("iris", {"v1": []}))
        client.log.clear()
        await node.publisher.publish(plan("iris", {"v1": ["/a"]}))
        await node.clock.advance(2 * LINGER_S)
        await node.publisher.sweep()
        assert client.log == ["+E default/iris/v1", "+S iris"]


async def test_one_change_sends_nothing_of_other_services(node):
    await node.publisher.publish_many([plan(f"s{i}", {"v1": ["/a"] if i % 2 else []}) for i in range(200)])
    async with connected(node) as client:
        await node.publisher.publish(plan("s7", {"v1": ["/a"]}, revision=2))
        assert client.log == ["+S s7"]


async def test_many_services_are_one_batch(node):
    async with connected(node) as client:
        await node.publisher.publish_many([plan(f"s{i}", {"v1": ["/a"]}) for i in range(50)])
        kinds = [entry[:2] for entry in client.log]
        assert kinds == ["+C"] * 50 + ["+E"] * 50 + ["+S"] * 50


async def test_without_a_proxy_nothing_is_waited_for_and_it_gets_everything_later(node):
    started = now()
    await node.publisher.publish(plan("iris", {"v1": ["/a"]}))
    assert now() - started < 0.2
    async with Client(node.path) as client:
        await eventually(lambda: "+S iris" in client.log)
        assert client.log.index("+E default/iris/v1") < client.log.index("+S iris")


async def test_a_silent_proxy_costs_the_deadline_and_is_reported(node):
    async with connected(node) as client:
        client.silent = True
        started = now()
        await node.publisher.publish(plan("iris", {"v1": ["/a"]}))
        assert 0.5 < now() - started < 1.5  # two steps
    assert [reason for _, reason, _ in node.events] == ["RouteLate", "RouteLate"]


async def test_a_proxy_that_goes_away_ends_the_wait(node):
    async with Client(node.path) as client:
        await eventually(lambda: "+E workers" in client.log)
        client.silent = True
        node.ads.apply(Change(versioned({CDS: {"never": b""}})))
        waiting = asyncio.create_task(node.ads.wait_acked([(CDS, "never")], 30))
        await eventually(lambda: node.ads._waiters)
    await asyncio.wait_for(waiting, 5)
    await eventually(lambda: node.connections == [True, False])


async def test_a_refused_scope_is_reported_at_once_and_the_next_publish_goes_through(node):
    async with connected(node) as client:
        client.refuses = {"iris"}
        started = now()
        await node.publisher.publish(plan("iris", {"v1": ["/a"]}))
        assert now() - started < 0.3
        assert node.refusals == [((SRDS, "iris"), "{'iris'} refused")]
        assert [(subject, reason) for subject, reason, _ in node.events] == [("route/iris", "RouteRefused")]
        client.refuses = set()
        await node.publisher.publish(plan("iris", {"v1": ["/a"]}, revision=2))
        assert len(node.events) == 1


async def test_services_are_published_in_parallel_and_one_service_in_turn(node):
    async with connected(node) as client:
        plans = [plan(f"s{i % 5}", {"v1": ["/a"]}, revision=i) for i in range(50)]
        await asyncio.gather(*(node.publisher.publish(made) for made in plans))
        assert client.log.count("+S s3") == 10
    assert node.publisher._turns == {}
    assert node.ads._waiters == {}


async def test_an_interrupted_publish_leaves_no_orphan(node):
    async with connected(node) as client:
        client.silent = True
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await node.publisher.publish(plan("iris", {"v1": ["/a"]}))
        await node.publisher.remove("iris")
    await node.clock.advance(60)
    await node.publisher.sweep()
    assert "default/iris/v1" not in node.ads.world.of(CDS)
    assert "default/iris/v1" not in node.ads.world.of(EDS)
    assert node.ads.world.problems() == []


async def test_an_inconsistent_plan_is_refused_before_it_is_sent(node):
    made = plan("iris", {"v1": ["/a"]})
    resources = node.publisher._translator.service(made)
    node.publisher._translator.service = lambda _: {SRDS: resources[SRDS]}
    async with connected(node) as client:
        with pytest.raises(Internal, match="iris refers to Cluster"):
            await node.publisher.publish(made)
        assert client.log == []
