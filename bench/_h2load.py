"""Closed-loop load by h2load, which speaks HTTP/1.1 and gRPC's HTTP/2, over TCP and over unix sockets.

One request at a time on each connection. Every run is checked: all answers have status 200, and the size of the one
that was looked at before.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench._load import quantile
from bench._processor import CLIENT_CORE, on_cores, processor_time

_SPARE_S = 60


@dataclass(frozen=True, slots=True)
class Ask:
    """A request to send again and again: `body` is a file. `http2`: as gRPC clients do, else HTTP/1.1."""

    path: str
    body: Path
    headers: tuple[tuple[str, str], ...] = ()
    http2: bool = False


@dataclass(frozen=True, slots=True)
class Run:
    """What a run came to. `cpu_us`: processor time of the server per request; the times are of single requests."""

    requests: int
    per_second: float
    cpu_us: float
    p50_ms: float
    p99_ms: float
    answer_bytes: float


def load(address: str, ask: Ask, *, connections: int, seconds: float, pids: Sequence[int]) -> Run:
    """Ask `address` ("unix:PATH" or "http://HOST:PORT") for some seconds, from the client's core.

    Raises RuntimeError when an answer was none or not a success.
    """
    log = ask.body.with_suffix(".log")
    log.unlink(missing_ok=True)
    command = ["h2load", "-t1", f"-c{connections}", "-m1", f"-D{round(seconds * 1000)}ms"]
    command += [f"--log-file={log}", "-d", str(ask.body)]
    command += [] if ask.http2 else ["--h1"]
    for name, value in ask.headers:
        command += ["-H", f"{name}: {value}"]
    unix = address.startswith("unix:")
    command += ["-B", address] if unix else []
    command.append(("http://worker" if unix else address) + ask.path)
    before = processor_time(pids)
    with on_cores(CLIENT_CORE):
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + _SPARE_S, check=False)
    used = processor_time(pids) - before
    said = done.stdout + done.stderr
    good, bad = _count(said, r"status codes: (\d+) 2xx"), _failures(said)
    if done.returncode or not good or bad:
        raise RuntimeError(f"{ask.path} at {address}: {good} answers, {bad} failures:\n{said[-1500:]}")
    # Requests that had not ended with the time are in the log only.
    times = [int(line.rpartition("\t")[2]) / 1000 for line in log.read_text().splitlines()]
    log.unlink()
    size = _count(said, r"\((\d+)\) data") / good
    return Run(good, good / seconds, used / good * 1e6, quantile(times, 0.5), quantile(times, 0.99), size)


def _count(said: str, pattern: str) -> int:
    found = re.search(pattern, said)
    return int(found[1]) if found else 0


def _failures(said: str) -> int:
    return sum(_count(said, rf"(\d+) {what}") for what in ("failed", "errored", "timeout", "3xx", "4xx", "5xx"))
