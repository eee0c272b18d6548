"""The process of a node: start, say where, wait for a signal, stop in order."""

from __future__ import annotations

import asyncio
import signal
import sys

import uvloop

from msm.kit.errors import MsmError
from msm.observe.logs import configure_logs
from msm.resources.wire import NodeFile
from msm.settings import Settings
from msm.wiring.node import Node


def run_node(settings: Settings) -> int:
    """Run a node until SIGINT or SIGTERM; returns the exit code. Raises MsmError when it cannot start."""
    person = sys.stderr.isatty()
    configure_logs(json=settings.json_logs if settings.json_logs is not None else not person)
    code: int = uvloop.run(_run(settings))
    return code


async def _run(settings: Settings) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    node = Node(settings)
    starting = loop.create_task(node.start(), name="start the node")
    stopping = loop.create_task(stop.wait(), name="wait for a signal")
    await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        starting.cancel()
        await asyncio.wait((starting,))
        return 0
    if starting.exception() is not None:
        stopping.cancel()
    addresses = starting.result()
    _greet(settings, node, addresses)
    await stopping
    print("stopping …", file=sys.stderr, flush=True)
    try:
        await node.stop()
    except MsmError as error:
        print(error.message, file=sys.stderr)
        return 1
    return 0


def _greet(settings: Settings, node: Node, addresses: NodeFile) -> None:
    adopted = []
    if node.adopted_workers:
        adopted.append(f"{node.adopted_workers} workers")
    if node.adopted_gateway:
        adopted.append("the gateway")
    lines = [
        f"Inference   {addresses.gateway}   (REST and gRPC, Open Inference Protocol)",
        f"API, status {addresses.api}   (token: msm token --show)",
        f"Data        {settings.data_dir}",
    ]
    if adopted:
        lines.append(f"Adopted     {' and '.join(adopted)} of the node process before, nothing was loaded again")
    print("\n".join(lines), flush=True)
