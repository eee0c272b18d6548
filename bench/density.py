"""1,000 small ONNX networks resident in one node: memory each beyond the model itself, and speed of the hot path."""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench._load import closed_loop
from bench._mesh import Mesh, mesh, rss_mib
from bench._models import BODY, manifest, write_networks
from bench.figures import Figure

BARE = """
import sys, pathlib, psutil, numpy as np, onnxruntime as ort
def options():
    o = ort.SessionOptions(); o.intra_op_num_threads = 1; o.inter_op_num_threads = 1; o.enable_cpu_mem_arena = False
    return o
def load(path):
    s = ort.InferenceSession(path, options(), providers=["CPUExecutionProvider"])
    s.run(None, {"x": np.zeros((1, 4), np.float32)})
    return s
paths = sorted(pathlib.Path(sys.argv[1]).glob("*.onnx"))
kept = [load(p) for p in paths[:20]]
before = psutil.Process().memory_info().rss
kept += [load(p) for p in paths[20:]]
print((psutil.Process().memory_info().rss - before) / (len(paths) - 20) / 2**20)
"""


def bare_mib(folder: Path) -> float:
    """What one such network takes in a process that does nothing else, in MiB."""
    done = subprocess.run([sys.executable, "-c", BARE, str(folder)], capture_output=True, text=True, check=True)
    return float(done.stdout)


def mesh_mib(running: Mesh) -> float:
    """Resident memory of all processes of the node: node process, Envoy, workers."""
    status = running.node()
    pids = [running.process.pid, status["gateway"]["pid"], *(w["pid"] for w in status["workers"])]
    return sum(map(rss_mib, pids))


async def rate(running: Mesh, seconds: float, name: str) -> float:
    """Answers per second of the hot model by 16 callers."""
    stop = asyncio.Event()
    load = asyncio.create_task(
        closed_loop(running.gateway, lambda: (f"/v2/models/{name}/infer", BODY), callers=16, stop=stop)
    )
    await asyncio.sleep(seconds)
    stop.set()
    tally = await load
    if tally.failed:
        raise RuntimeError(f"{tally.failed} requests failed: {tally.reasons}")
    return tally.answers / seconds


def run(quick: bool) -> list[Figure]:
    models, rounds = (100, 2) if quick else (1000, 5)
    with tempfile.TemporaryDirectory() as folder, mesh() as full, mesh() as alone:
        networks = write_networks(Path(folder), models)
        bare = bare_mib(Path(folder))
        for running in (full, alone):
            running.apply([manifest("hot", networks[0], minimum=1)])
            running.wait_ready(1, within_s=60)
            asyncio.run(rate(running, 1.0, "hot"))
        before = mesh_mib(full)
        full.apply([manifest(f"m{i}", path, minimum=1) for i, path in enumerate(networks[1:])])
        full.wait_ready(models, within_s=600)
        time.sleep(2)
        each = (mesh_mib(full) - before) / (models - 1)
        # Both meshes run side by side; the pairs are interleaved so that the machine's mood hits both alike.
        ratios = [asyncio.run(rate(full, 2.0, "hot")) / asyncio.run(rate(alone, 2.0, "hot")) for _ in range(rounds)]
        asked = asyncio.run(all_answer(full, models))
    beyond = each - bare
    ratio = statistics.median(ratios)
    return [
        Figure("models resident", models, "models", "", None),
        Figure("models that answered", asked, "models", f"= {models}", asked == models),
        Figure("memory per model, all processes", each, "MiB", "", None),
        Figure("the model itself, in a bare process", bare, "MiB", "", None),
        Figure("memory per model beyond the model itself", beyond, "MiB", "<= 0.5", beyond <= 0.5),
        Figure("hot-path throughput against one model alone", ratio, "ratio", ">= 0.9", ratio >= 0.9),
    ]


async def all_answer(running: Mesh, models: int) -> int:
    """How many of the models answer when each is asked once."""
    from bench._load import Connection

    connection = Connection(running.gateway)
    right = 0
    for name in ["hot", *(f"m{i}" for i in range(models - 1))]:
        answer = await connection.post(f"/v2/models/{name}/infer", BODY)
        right += answer.status == 200 and json.loads(answer.body)["model_name"] == name
    return right
