"""5,000 registered networks, room for 500, Zipf traffic: no error, a small node process, quiet when idle."""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path

import numpy as np

from bench._load import Tally, closed_loop, quantile
from bench._mesh import Mesh, cpu_share, mesh, rss_mib
from bench._models import BODY, manifest, write_networks
from bench.figures import Figure

EXPONENT = 1.1
CALLERS = 16


async def traffic(running: Mesh, models: int, seconds: float) -> Tally:
    """Ask models by a Zipf law until the time is over."""
    ranks = np.arange(1, models + 1) ** -EXPONENT
    drawn = iter(np.random.default_rng(5).choice(models, size=2_000_000, p=ranks / ranks.sum()))
    stop = asyncio.Event()
    load = asyncio.create_task(
        closed_loop(running.gateway, lambda: (f"/v2/models/m{next(drawn)}/infer", BODY), callers=CALLERS, stop=stop)
    )
    await asyncio.sleep(seconds)
    stop.set()
    return await load


def measured_bytes(running: Mesh) -> float:
    """The mean cost of a model as the mesh measured it."""
    costs = [v["memoryBytes"] for m in running.models() for v in m["status"]["versions"].values()]
    return sum(costs) / len(costs)


def run(quick: bool) -> list[Figure]:
    models, resident, seconds = (300, 30, 10) if quick else (5000, 500, 90)
    with tempfile.TemporaryDirectory() as folder:
        networks = write_networks(Path(folder), models)
        with mesh() as sizing:
            sizing.apply([manifest(f"m{i}", path) for i, path in enumerate(networks[:50])])
            sizing.wait_valid(within_s=120)
            each = measured_bytes(sizing)
        with mesh("--capacity", str(int(each * resident))) as running:
            running.apply([manifest(f"m{i}", path) for i, path in enumerate(networks)])
            running.wait_valid(within_s=2400)
            tally = asyncio.run(traffic(running, models, seconds))
            ready = running.ready_copies()
            time.sleep(3)
            idle = cpu_share(running.process.pid, 5 if quick else 20)
            rss = rss_mib(running.process.pid)
    for reason, count in tally.reasons.most_common(5):
        print(f"  {count} x {reason}")
    return [
        Figure("registered models", models, "models", "", None),
        Figure("resident at the end", ready, "models", "", None),
        Figure("requests", tally.answers, "requests", "", None),
        Figure("failed requests", tally.failed, "requests", "= 0", tally.failed == 0),
        Figure("99th percentile", quantile(tally.latencies_s, 0.99) * 1000, "ms", "", None),
        Figure("node process, resident memory", rss, "MiB", "<= 500", rss <= 500),
        Figure("node process, idle CPU", idle * 100, "% of core", "<= 5", idle <= 0.05),
    ]
