"""kill -9 of a worker under load, with two copies of the model: no failed request."""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
from pathlib import Path

from bench._load import Tally, closed_loop, quantile
from bench._mesh import Mesh, mesh
from bench._models import BODY, manifest, write_network
from bench.figures import Figure

CALLERS = 16


async def under_load(running: Mesh, kills: int) -> Tally:
    """Kill one worker after the other, each time after both copies are ready again."""
    stop = asyncio.Event()
    load = asyncio.create_task(
        closed_loop(running.gateway, lambda: ("/v2/models/m/infer", BODY), callers=CALLERS, stop=stop)
    )
    for number in range(kills):
        await asyncio.to_thread(running.wait_ready, 2, within_s=30)
        await asyncio.sleep(0.5)
        pids = sorted((await asyncio.to_thread(running.worker_pids)).items())
        os.kill(pids[number % len(pids)][1], signal.SIGKILL)
        await asyncio.sleep(0.3)
    await asyncio.to_thread(running.wait_ready, 2, within_s=30)
    stop.set()
    return await load


def run(quick: bool) -> list[Figure]:
    kills = 4 if quick else 20
    with tempfile.TemporaryDirectory() as folder, mesh("--workers", "2") as running:
        network = write_network(Path(folder) / "m.onnx", 1)
        running.apply([manifest("m", network, minimum=2, maximum=2)])
        running.wait_ready(2, within_s=60)
        tally = asyncio.run(under_load(running, kills))
    for reason, count in tally.reasons.most_common(5):
        print(f"  {count} x {reason}")
    return [
        Figure("workers killed", kills, "kills", "", None),
        Figure("requests", tally.answers, "requests", "", None),
        Figure("failed requests", tally.failed, "requests", "= 0", tally.failed == 0),
        Figure("slowest request", quantile(tally.latencies_s, 1.0) * 1000, "ms", "", None),
    ]
