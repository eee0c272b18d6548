"""What the full configuration of Envoy costs against a bare Envoy router before the same upstream."""

from __future__ import annotations

import asyncio
import contextlib
import re
import statistics
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Rate:
    """What one run of load came to: requests per second, and the proxy's processor time per request in µs."""

    per_second: float
    cpu_us: float


def processor_time(pid: int) -> float:
    """Seconds that all threads of a process have run."""
    times = (task / "schedstat" for task in Path(f"/proc/{pid}/task").iterdir())
    return sum(int(path.read_text().split()[0]) for path in times) / 1e9


async def throughput(port: int, pid: int, script: Path, seconds: int) -> Rate:
    """One run of load on the proxy `pid` at `port`; raises when any answer is not a success."""
    before = processor_time(pid)
    with on_cores(OTHER_CORE):
        said = await run_command(
            "wrk", "-t1", "-c32", f"-d{seconds}s", "-s", str(script), f"http://127.0.0.1:{port}{PATH}"
        )
    if "Non-2xx" in said or "Socket errors" in said:
        raise RuntimeError(f"not every request succeeded: {said}")
    rate, count = re.search(r"Requests/sec:\s+([\d.]+)", said), re.search(r"(\d+) requests in", said)
    assert rate is not None
    assert count is not None
    return Rate(float(rate.group(1)), (processor_time(pid) - before) / int(count.group(1)) * 1e6)


async def measure(folder: Path, pairs: int, seconds: int) -> list[tuple[Rate, Rate]]:
    """Pairs of runs (bare, full), measured in turn, the order changing from pair to pair."""
    script = folder / "post.lua"
    script.write_text(SCRIPT)
    port = free_port()
    with contextlib.ExitStack() as running:
        with on_cores(OTHER_CORE):
            socket = running.enter_context(upstream(folder))
        with on_cores(PROXY_CORE):
            pid = running.enter_context(envoy_of(bare(port, socket), "bare", folder))
        async with gateway(folder, PROXY_CORE) as full:
            await full.publisher.publish(plan("iris", socket, weights=(90, 10)))
            wait_for(lambda: accepts(port))
            assert full.envoy.pid is not None
            return await _pairs(((port, pid), (full.config.port, full.envoy.pid)), script, pairs, seconds)


async def _pairs(
    proxies: tuple[tuple[int, int], tuple[int, int]], script: Path, pairs: int, seconds: int
) -> list[tuple[Rate, Rate]]:
    for proxy in proxies:
        await throughput(*proxy, script, 1)  # warm connections and code
    results = []
    for number in range(pairs):
        order = proxies if number % 2 == 0 else proxies[::-1]
        rates = {proxy: await throughput(*proxy, script, seconds) for proxy in order}
        results.append((rates[proxies[0]], rates[proxies[1]]))
    return results


def run(quick: bool) -> list[Figure]:
    pairs, seconds = (5, 1) if quick else (15, 2)
    with run_folder() as folder:
        results = asyncio.run(measure(folder, pairs, seconds))
    ratio = statistics.median(full.per_second / plain.per_second for plain, full in results)
    work = statistics.median(plain.cpu_us / full.cpu_us for plain, full in results)
    return [
        Figure("bare Envoy router", statistics.median(plain.per_second for plain, _ in results), "req/s", "", None),
        Figure(
            "Envoy, full configuration", statistics.median(full.per_second for _, full in results), "req/s", "", None
        ),
        Figure(
            "bare Envoy router, processor", statistics.median(plain.cpu_us for plain, _ in results), "us/req", "", None
        ),
        Figure(
            "full configuration, processor", statistics.median(full.cpu_us for _, full in results), "us/req", "", None
        ),
        Figure("bare / full, processor, median of pairs", work, "ratio", "", None),
        Figure("full / bare, requests per second, median of pairs", ratio, "ratio", ">= 0.70", ratio >= 0.70),
    ]
