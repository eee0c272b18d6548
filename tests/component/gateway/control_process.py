"""The node process's part of the gateway as a process of its own, to be killed.

    python control_process.py RUN_DIR PORT WORKERS LOAD_SECONDS SERVICE ...

Rebuilds its routes from what the workers hold, as a node does, before it lets Envoy connect.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import uvloop

from tests.component.gateway.harness import Mesh, Recipe, Worker, plan, target


async def main() -> None:
    run_dir, port, workers, load_s, *services = sys.argv[1:]
    mesh = Mesh(Path(run_dir), port=int(port))
    for name in workers.split(","):
        mesh.workers[name] = Worker(mesh.run_dir, name)
        mesh.workers[name].foreign = True
    held = {worker.socket: await worker.post("/held") for worker in mesh.workers.values()}
    plans = []
    for service in services:
        mesh.activator.recipes[service] = Recipe(load_s=float(load_s))
        plans.append(plan(service, {"v1": [s for s, targets in held.items() if target(service) in targets]}))
    await mesh.publisher.publish_many(plans)
    await mesh.workers_changed()
    await mesh.start_control()
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main())
