"""What the full configuration of Envoy costs against a bare Envoy router before the same upstream."""

from __future__ import annotations

import asyncio
import contextlib
import re
import statistics
from dataclasses import dataclass, replace
from pathlib import Path

from bench._gateway import (
    accepts,
    envoy_of,
    free_port,
    gateway,
    plan,
    run_command,
    run_folder,
    simple_envoy,
    upstream,
    wait_for,
)
from bench._processor import on_cores, processor_time
from bench.figures import Figure

PLAIN = "/v2/models/iris/infer"
BY_VERSION = "/v2/models/iris/versions/v1/infer"  # needs the extraction script, as gRPC and OpenAI-style calls do
BODY = '{"inputs":[{"name":"x","shape":[1,4],"datatype":"FP32","data":[5.1,3.5,1.4,0.2]}]}'
SCRIPT = f"""
wrk.method = "POST"
wrk.headers["content-type"] = "application/json"
wrk.body = '{BODY}'
"""
PROXY_CORE, OTHER_CORE = {1}, {0}  # the proxy under test alone on one core; load and upstream on the other


def bare_router(port: int, socket: str) -> dict:
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


@dataclass(frozen=True)
class Proxy:
    """What is put under load."""

    port: int
    pid: int
    path: str = PLAIN


async def throughput(proxy: Proxy, script: Path, seconds: int) -> Rate:
    """One run of load; raises when any answer is not a success."""
    before = processor_time([proxy.pid])
    url = f"http://127.0.0.1:{proxy.port}{proxy.path}"
    with on_cores(OTHER_CORE):
        said = await run_command("wrk", "-t1", "-c32", f"-d{seconds}s", "-s", str(script), url)
    if "Non-2xx" in said or "Socket errors" in said:
        raise RuntimeError(f"not every request succeeded: {said}")
    rate, count = re.search(r"Requests/sec:\s+([\d.]+)", said), re.search(r"(\d+) requests in", said)
    assert rate is not None
    assert count is not None
    return Rate(float(rate.group(1)), (processor_time([proxy.pid]) - before) / int(count.group(1)) * 1e6)


async def measure(folder: Path, rounds: int, seconds: int) -> list[tuple[Rate, Rate, Rate]]:
    """Rounds of runs (bare, full, full through the script), measured in turn, the order changing each round."""
    script = folder / "post.lua"
    script.write_text(SCRIPT)
    port = free_port()
    with contextlib.ExitStack() as running:
        with on_cores(OTHER_CORE):
            socket, _ = running.enter_context(upstream(folder))
        with on_cores(PROXY_CORE):
            pid = running.enter_context(envoy_of(bare_router(port, socket), "bare", folder))
        async with gateway(folder, PROXY_CORE) as full:
            await full.publisher.publish(plan("iris", socket, weights=(90, 10)))
            wait_for(lambda: accepts(port))
            assert full.envoy.pid is not None
            plain = Proxy(full.config.port, full.envoy.pid)
            proxies = [Proxy(port, pid), plain, replace(plain, path=BY_VERSION)]
            for proxy in proxies:
                await throughput(proxy, script, 1)  # warm connections and code
            return [await _round(proxies, script, seconds, number) for number in range(rounds)]


async def _round(proxies: list[Proxy], script: Path, seconds: int, number: int) -> tuple[Rate, Rate, Rate]:
    order = proxies if number % 2 == 0 else proxies[::-1]
    rates = {proxy: await throughput(proxy, script, seconds) for proxy in order}
    plain, full, scripted = (rates[proxy] for proxy in proxies)
    return plain, full, scripted


def run(quick: bool) -> list[Figure]:
    rounds, seconds = (5, 1) if quick else (15, 2)
    with run_folder() as folder:
        results = asyncio.run(measure(folder, rounds, seconds))
    median = statistics.median
    ratio = median(full.per_second / bare.per_second for bare, full, _ in results)
    work = median(bare.cpu_us / full.cpu_us for bare, full, _ in results)
    scripted = median(script.per_second / bare.per_second for bare, _, script in results)
    scripted_work = median(bare.cpu_us / script.cpu_us for bare, _, script in results)
    return [
        Figure("bare Envoy router", median(bare.per_second for bare, _, _ in results), "req/s", "", None),
        Figure("full configuration", median(full.per_second for _, full, _ in results), "req/s", "", None),
        Figure("bare Envoy router, processor", median(bare.cpu_us for bare, _, _ in results), "us/req", "", None),
        Figure("full configuration, processor", median(full.cpu_us for _, full, _ in results), "us/req", "", None),
        Figure("full / bare, median of pairs", ratio, "ratio", ">= 0.70", ratio >= 0.70),
        Figure("the same by processor time", work, "ratio", "", None),
        Figure("full / bare for a request that needs the script", scripted, "ratio", "", None),
        Figure("the same by processor time, with the script", scripted_work, "ratio", "", None),
    ]
