"""What a killed node left running on purpose (its Envoy and workers), ended on request: `msm down`."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import msgspec

from msm.gateway.envoy import recorded
from msm.node.process import Process
from msm.node.worker_records import read_records
from msm.resources.wire import NODE_FILE, NodeFile
from msm.wiring.places import run_dir_of

PATIENCE_S = 15.0


def stop_leftovers(data_dir: Path) -> list[str]:
    """End the node process of a data directory, or what it left behind; returns what was ended, in words."""
    return asyncio.run(_stop(data_dir))


async def _stop(data_dir: Path) -> list[str]:
    ended: list[str] = []
    node = _node_process(data_dir)
    if node is not None:
        await _end(node, signal.SIGTERM)
        ended.append(f"the node process (pid {node.pid}) with its gateway and workers")
    run_dir = run_dir_of(data_dir)
    gateway = recorded(run_dir)
    if gateway is not None and (process := Process.open(gateway.pid)) is not None:
        await _end(process, signal.SIGTERM)
        ended.append(f"the gateway (pid {gateway.pid})")
    for record in read_records(run_dir / "workers.json"):
        worker = Process.open(record.pid, record.start_ticks)
        if worker is not None:
            await _end(worker, signal.SIGTERM)
            ended.append(f"worker {record.id} (pid {record.pid})")
    return ended


def _node_process(data_dir: Path) -> Process | None:
    try:
        node = msgspec.json.decode((data_dir / NODE_FILE).read_bytes(), type=NodeFile)
    except (OSError, msgspec.DecodeError):
        return None
    command = Path(f"/proc/{node.pid}/cmdline")
    try:
        is_ours = b"msm" in command.read_bytes()  # the number may belong to another process by now
    except OSError:
        return None
    return Process.open(node.pid) if is_ours else None


async def _end(process: Process, number: signal.Signals) -> None:
    process.signal(number)
    try:
        async with asyncio.timeout(PATIENCE_S):
            await process.died.wait()
    except TimeoutError:
        process.signal(signal.SIGKILL)
        await process.died.wait()
