"""From a store write to its effect on traffic, with 2,000 ready models."""

from __future__ import annotations

import asyncio
import json
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


async def switch(traffic: Connection, api: tuple[Connection, str], manifest_text: bytes, to: str) -> float:
    """Seconds from just before the write is sent to the first answer by the new version."""
    writer, token = api
    path = f"/v2/models/{SWITCHED}/infer"
    began = time.perf_counter()
    write = asyncio.create_task(writer.post("/api/v1/apply", manifest_text, {"authorization": f"Bearer {token}"}))
    while True:
        answer = await traffic.post(path, BODY)
        if answer.headers["x-msm-version"] == to:
            took = time.perf_counter() - began
            if (written := await write).status != 200:
                raise RuntimeError(f"the write failed: {written.status} {written.body[:200]!r}")
            return took
        if time.perf_counter() - began > 10:
            raise TimeoutError(f"no answer by {to} within 10 s")


async def switches(running: Mesh, networks: list[Path], count: int) -> list[float]:
    traffic, writer = Connection(running.gateway), Connection(running.api)
    texts = {to: json.dumps(switching(networks, to)).encode() for to in ("v1", "v2")}
    order = ["v2" if turn % 2 == 0 else "v1" for turn in range(count)]
    times = [await switch(traffic, (writer, running.token), texts[to], to) for to in order]
    traffic.close()
    writer.close()
    return times


def run(quick: bool) -> list[Figure]:
    models, count = (100, 20) if quick else (2000, 200)
    with tempfile.TemporaryDirectory() as folder, mesh() as running:
        networks = write_networks(Path(folder), models + 2)
        running.apply([manifest(f"m{i}", path, minimum=1) for i, path in enumerate(networks[2:])])
        running.apply([switching(networks, "v1")])
        running.wait_ready(models + 1, within_s=900)
        asyncio.run(switches(running, networks, 2))  # both versions are loaded now
        times = asyncio.run(switches(running, networks, count))
    p50, p99 = (quantile(times, share) * 1000 for share in (0.5, 0.99))
    return [
        Figure("ready models", models, "models", "", None),
        Figure("write to effect, median", p50, "ms", "", None),
        Figure("write to effect, 99th percentile", p99, "ms", "<= 100", p99 <= 100),
    ]
