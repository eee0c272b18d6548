"""100,000 registered services, 2,000 of them hot: one service's change live in Envoy, and Envoy's memory."""

from __future__ import annotations

import asyncio
import random
import time
from pathlib import Path

import psutil

from bench._gateway import Gateway, gateway, plan, run_folder, upstream
from bench._load import Connection, quantile
from bench.figures import Figure
from msm.xds.names import CDS, EDS
from msm.xds.snapshot import Change, versioned

MIB = 2**20


def resident(running: Gateway) -> float:
    """Envoy's resident memory in MiB."""
    assert running.envoy.pid is not None
    return float(psutil.Process(running.envoy.pid).memory_info().rss) / MIB


async def clusters_only(running: Gateway, hot: list[str], socket: str) -> None:
    """The hot services' clusters and endpoints without any route: what they cost by themselves."""
    made = [r for name in hot for r in versioned(running.translator.service(plan(name, socket)))]
    for kind in (CDS, EDS):
        change = Change(tuple(resource for resource in made if resource.type_url == kind))
        running.ads.apply(change)
    outcome = await running.ads.wait_acked([r.key for r in made if r.type_url == EDS], 120)
    assert outcome.complete, outcome


async def revision_live(running: Gateway, connection: Connection, name: str, socket: str, revision: int) -> float:
    """Seconds from the call that changes a hot service to the first answer by the new table."""
    began = time.perf_counter()
    publishing = asyncio.create_task(running.publisher.publish(plan(name, socket, revision=revision)))
    while True:
        answer = await connection.post(f"/v2/models/{name}/infer", b"{}")
        assert answer.status == 200, answer
        if answer.headers["x-msm-revision"] == str(revision):
            took = time.perf_counter() - began
            await publishing
            return took


async def warmed(running: Gateway, connection: Connection, name: str, socket: str) -> float:
    """Seconds in which a cold service becomes hot: a new cluster, its endpoints, its table."""
    began = time.perf_counter()
    await running.publisher.publish(plan(name, socket))
    took = time.perf_counter() - began
    assert (await connection.post(f"/v2/models/{name}/infer", b"{}")).status == 200
    await running.publisher.publish(plan(name, None))
    return took


async def measure(folder: Path, socket: str, registered: int, hot_count: int, changes: int) -> list[Figure]:
    names = [f"s{number}" for number in range(registered)]
    hot, cold = names[:hot_count], names[hot_count:]
    async with gateway(folder, set(range(psutil.cpu_count() or 1))) as running:
        empty = resident(running)
        await clusters_only(running, hot, socket)
        clusters = resident(running) - empty
        began = time.perf_counter()
        await running.publisher.publish_many([plan(n, socket) for n in hot] + [plan(n, None) for n in cold])
        start_s = time.perf_counter() - began
        connection = Connection(f"http://127.0.0.1:{running.config.port}")
        chosen = random.Random(1)  # which services change, the same in every run
        changed = [
            await revision_live(running, connection, chosen.choice(hot), socket, revision)
            for revision in range(2, changes + 2)
        ]
        flips = [await warmed(running, connection, chosen.choice(cold), socket) for _ in range(changes)]
        await running.publisher.sweep()
        beyond = resident(running) - clusters
        connection.close()
        assert running.events == [], running.events
    change_p99, flip_p99 = (quantile(times, 0.99) * 1000 for times in (changed, flips))
    return [
        Figure("registered services", registered, "services", "", None),
        Figure("hot services with clusters of their own", hot_count, "services", "", None),
        Figure("all services, publish to accepted", start_s, "s", "", None),
        Figure("one service's change to its effect, median", quantile(changed, 0.5) * 1000, "ms", "", None),
        Figure("one service's change to its effect, p99", change_p99, "ms", "<= 30", change_p99 <= 30),
        Figure("cold to hot, published and accepted, p99", flip_p99, "ms", "<= 30", flip_p99 <= 30),
        Figure("Envoy's memory for the clusters", clusters, "MiB", "", None),
        Figure("Envoy's memory beyond its clusters", beyond, "MiB", "<= 350", beyond <= 350),
    ]


def run(quick: bool) -> list[Figure]:
    registered, hot, changes = (10_000, 500, 100) if quick else (100_000, 2_000, 500)
    with run_folder() as folder, upstream(folder) as (socket, _):
        return asyncio.run(measure(folder, socket, registered, hot, changes))
