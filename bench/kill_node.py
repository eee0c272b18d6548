"""kill -9 of the node process under load: no failed request, nothing loaded again."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from bench._load import Tally, closed_loop, quantile
from bench._mesh import Mesh, mesh
from bench._models import BODY, manifest, write_networks
from bench.figures import Figure

MODELS = 20
CALLERS = 16


async def under_load(running: Mesh, kills: int) -> tuple[Tally, int]:
    """Kill the node process and start it again; count the loads that began meanwhile, and the copies that moved."""
    names = [f"m{i}" for i in range(MODELS)]
    turn = 0

    def pick() -> tuple[str, bytes]:
        nonlocal turn
        turn += 1
        return f"/v2/models/{names[turn % MODELS]}/infer", BODY

    stop = asyncio.Event()
    load = asyncio.create_task(closed_loop(running.gateway, pick, callers=CALLERS, stop=stop))
    reloads = -await asyncio.to_thread(loads, running)
    for _ in range(kills):
        await asyncio.sleep(0.7)
        before = await asyncio.to_thread(loaded, running)
        await asyncio.to_thread(running.kill_node_process)
        await asyncio.sleep(0.5)
        await asyncio.to_thread(running.start)
        after = await asyncio.to_thread(loaded, running)
        reloads += len(before - after)
    reloads += await asyncio.to_thread(loads, running)
    stop.set()
    return await load, reloads


def loaded(running: Mesh) -> set[tuple[str, str, int]]:
    """Every ready copy with its worker and that worker's process."""
    status = running.node()
    pids = {worker["id"]: worker["pid"] for worker in status["workers"]}
    return {(c["version"], c["worker"], pids[c["worker"]]) for c in status["copies"] if c["state"] == "Ready"}


def loads(running: Mesh) -> int:
    """How many loads the mesh ever began, by its own event log, which outlives the process."""
    events = running.call("GET", "/events", params={"limit": 4000}).json()
    return sum(event["reason"] == "Loading" for event in events)


def run(quick: bool) -> list[Figure]:
    kills = 3 if quick else 10
    with tempfile.TemporaryDirectory() as folder, mesh() as running:
        networks = write_networks(Path(folder), MODELS)
        running.apply([manifest(f"m{i}", path, minimum=1) for i, path in enumerate(networks)])
        running.wait_ready(MODELS, within_s=60)
        tally, reloads = asyncio.run(under_load(running, kills))
    for reason, count in tally.reasons.most_common(5):
        print(f"  {count} x {reason}")
    return [
        Figure("node processes killed", kills, "kills", "", None),
        Figure("requests", tally.answers, "requests", "", None),
        Figure("failed requests", tally.failed, "requests", "= 0", tally.failed == 0),
        Figure("copies loaded again", reloads, "loads", "= 0", reloads == 0),
        Figure("slowest request", quantile(tally.latencies_s, 1.0) * 1000, "ms", "", None),
    ]
