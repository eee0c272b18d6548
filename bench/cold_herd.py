"""200 concurrent first requests for a cold model: one load, 200 answers, little added to the model's own load."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
from pathlib import Path

from bench._load import Answer, Connection, ask
from bench._mesh import Mesh, mesh
from bench._models import BODY, manifest, write_networks
from bench.figures import Figure

CALLERS = 200


async def herd(url: str, name: str) -> list[Answer | str]:
    """All callers connect first, then ask at once."""
    connections = [Connection(url) for _ in range(CALLERS)]
    await asyncio.gather(*(ask(c, "/v2/models/warm/infer", BODY) for c in connections))
    answers = await asyncio.gather(*(ask(c, f"/v2/models/{name}/infer", BODY) for c in connections))
    for connection in connections:
        connection.close()
    return list(answers)


def load_seconds(running: Mesh, name: str) -> tuple[int, float]:
    """How many copies the model has, and how long its load took by the worker's own count."""
    copies = [c for c in running.node()["copies"] if c["version"] == f"default/{name}/v1"]
    return len(copies), copies[0]["loadSeconds"]


def run(quick: bool) -> list[Figure]:
    rounds = 3 if quick else 20
    with tempfile.TemporaryDirectory() as folder, mesh() as running:
        networks = write_networks(Path(folder), rounds + 1)
        names = ["warm", *(f"cold-{i}" for i in range(rounds))]
        running.apply([manifest(name, path) for name, path in zip(names, networks, strict=True)])
        running.wait_valid(within_s=60)
        overheads_ms, loads, failed = [], 0, 0
        for name in names[1:]:
            answers = asyncio.run(herd(running.gateway, name))
            failed += sum(isinstance(a, str) or a.status != 200 for a in answers)
            times = [a.took_s for a in answers if not isinstance(a, str)]
            copies, load_s = load_seconds(running, name)
            loads += copies
            overheads_ms.append((statistics.median(times) - load_s) * 1000)
    overhead = statistics.median(overheads_ms)
    return [
        Figure("loads per cold model", loads / rounds, "loads", "= 1", loads == rounds),
        Figure(f"failed of {rounds * CALLERS} first requests", failed, "requests", "= 0", failed == 0),
        Figure("median overhead over the model's own load", overhead, "ms", "<= 50", overhead <= 50),
    ]
