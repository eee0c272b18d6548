"""What the full configuration of Envoy costs against a bare Envoy router before the same upstream."""

from __future__ import annotations

import asyncio
import contextlib
import re
import statistics
from pathlib import Path

from bench._gateway import (
    accepts,
    envoy_of,
    free_port,
    gateway,
    on_cores,
    plan,
    run_command,
    run_folder,
    simple_envoy,
    upstream,
    wait_for,
)
from bench.figures import Figure

PATH = "/v2/models/iris/infer"
BODY = '{"inputs":[{"name":"x","shape":[1,4],"datatype":"FP32","data":[5.1,3.5,1.4,0.2]}]}'
SCRIPT = f"""
wrk.method = "POST"
wrk.headers["content-type"] = "application/json"
wrk.body = '{BODY}'
"""
PROXY_CORE, OTHER_CORE = {1}, {0}  # the proxy under test alone on one core; load and upstream on the other


def bare(port: int, socket: str) -> dict:
    """Listener, static route, static cluster, router."""
    endpoint = {"endpoint": {"address": {"pipe": {"path": socket}}}}
    cluster = {
        "name": "up",
        "type": "STATIC",
        "load_assignment": {"cluster_name": "up", "endpoints": [{"lb_endpoints": [endpoint]}]},
    }
    address = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
    return simple_envoy(address, {"route": {"cluster": "up"}}, [cluster])


async def throughput(port: int, script: Path, seconds: int) -> float:
    """Requests per second; raises when any answer is not a success."""
    with on_cores(OTHER_CORE):
        said = await run_command(
            "wrk", "-t1", "-c32", f"-d{seconds}s", "-s", str(script), f"http://127.0.0.1:{port}{PATH}"
        )
    if "Non-2xx" in said or "Socket errors" in said:
        raise RuntimeError(f"not every request succeeded: {said}")
    found = re.search(r"Requests/sec:\s+([\d.]+)", said)
    assert found is not None
    return float(found.group(1))


async def measure(folder: Path, pairs: int, seconds: int) -> list[tuple[float, float]]:
    """Pairs of requests per second (bare, full), measured in turn, the order changing from pair to pair."""
    script = folder / "post.lua"
    script.write_text(SCRIPT)
    port = free_port()
    with contextlib.ExitStack() as running:
        with on_cores(OTHER_CORE):
            socket = running.enter_context(upstream(folder))
        with on_cores(PROXY_CORE):
            running.enter_context(envoy_of(bare(port, socket), "bare", folder))
        async with gateway(folder, PROXY_CORE) as full:
            await full.publisher.publish(plan("iris", socket, weights=(90, 10)))
            wait_for(lambda: accepts(port))
            return await _pairs((port, full.config.port), script, pairs, seconds)


async def _pairs(ports: tuple[int, int], script: Path, pairs: int, seconds: int) -> list[tuple[float, float]]:
    for port in ports:
        await throughput(port, script, 1)  # warm connections and code
    results = []
    for number in range(pairs):
        order = ports if number % 2 == 0 else ports[::-1]
        rates = {port: await throughput(port, script, seconds) for port in order}
        results.append((rates[ports[0]], rates[ports[1]]))
    return results


def run(quick: bool) -> list[Figure]:
    pairs, seconds = (3, 1) if quick else (9, 3)
    with run_folder() as folder:
        results = asyncio.run(measure(folder, pairs, seconds))
    ratio = statistics.median(full / plain for plain, full in results)
    return [
        Figure("bare Envoy router", statistics.median(plain for plain, _ in results), "req/s", "", None),
        Figure("Envoy, full configuration", statistics.median(full for _, full in results), "req/s", "", None),
        Figure("full / bare, median of pairs", ratio, "ratio", ">= 0.70", ratio >= 0.70),
    ]
