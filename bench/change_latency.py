"""From a store write to its effect on traffic, with 2,000 ready models."""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path
from typing import Any

from bench._load import Connection, quantile
from bench._mesh import Mesh, mesh
from bench._models import BODY, manifest, write_networks
from bench.figures import Figure

SWITCHED = "switched"


def switching(networks: list[Path], to: str) -> dict[str, Any]:
    """The model whose traffic goes back and forth between its two versions."""
    declared = manifest(SWITCHED, networks[0], minimum=1)
    spec: Any = declared["spec"]
    spec["versions"].append({"name": "v2", "uri": networks[1].as_uri(), "format": "onnx"})
    spec["traffic"] = {"split": [{"version": to, "weight": 100}]}
    return declared


async def switch(running: Mesh, networks: list[Path], to: str) -> float:
    """Seconds from just before the write is sent to the first answer by the new version."""
    connection = Connection(running.gateway)
    path = f"/v2/models/{SWITCHED}/infer"
    write = asyncio.create_task(asyncio.to_thread(running.apply, [switching(networks, to)]))
    began = time.perf_counter()
    while True:
        answer = await connection.post(path, BODY)
        if answer.headers["x-msm-version"] == to:
            took = time.perf_counter() - began
            await write
            connection.close()
            return took
        if time.perf_counter() - began > 10:
            raise TimeoutError(f"no answer by {to} within 10 s")


async def switches(running: Mesh, networks: list[Path], count: int) -> list[float]:
    return [await switch(running, networks, "v2" if i % 2 == 0 else "v1") for i in range(count)]


def run(quick: bool) -> list[Figure]:
    models, count = (100, 20) if quick else (2000, 200)
    with tempfile.TemporaryDirectory() as folder, mesh() as running:
        networks = write_networks(Path(folder), models + 2)
        running.apply([manifest(f"m{i}", path, minimum=1) for i, path in enumerate(networks[2:])])
        running.apply([switching(networks, "v1")])
        running.wait_ready(models + 2, within_s=600)
        times = asyncio.run(switches(running, networks, count))
    p50, p99 = (quantile(times, share) * 1000 for share in (0.5, 0.99))
    return [
        Figure("ready models", models, "models", "", None),
        Figure("write to effect, median", p50, "ms", "", None),
        Figure("write to effect, 99th percentile", p99, "ms", "<= 100", p99 <= 100),
    ]
