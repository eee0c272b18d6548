"""A small closed-loop HTTP client that keeps every answer's status, time and headers: for counting failures exactly.

For raw throughput the benchmarks use wrk instead.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import urlsplit


@dataclass(slots=True)
class Answer:
    """One answer with its moment and duration in seconds."""

    status: int
    headers: dict[str, str]
    body: bytes
    at: float
    took_s: float


@dataclass(slots=True)
class Tally:
    """What a run of requests came to."""

    answers: int = 0
    failed: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    latencies_s: list[float] = field(default_factory=list)

    def add(self, answer: Answer | str) -> None:
        self.answers += 1
        if isinstance(answer, str):
            self.failed += 1
            self.reasons[answer] += 1
            return
        self.latencies_s.append(answer.took_s)
        if answer.status != 200:
            self.failed += 1
            self.reasons[f"{answer.status} {answer.body[:120]!r}"] += 1


class Connection:
    """One keep-alive connection; reopened after an error."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def post(self, path: str, body: bytes, headers: dict[str, str] | None = None) -> Answer:
        """Send one request and read its answer. Raises OSError or asyncio.IncompleteReadError when the line breaks."""
        began = time.perf_counter()
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection(self._host, self._port)
        assert self._reader is not None
        extra = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
        head = (
            f"POST {path} HTTP/1.1\r\nhost: {self._host}:{self._port}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\n{extra}\r\n"
        )
        try:
            self._writer.write(head.encode() + body)
            status, fields = _parse_head(await self._reader.readuntil(b"\r\n\r\n"))
            content = await self._reader.readexactly(int(fields.get("content-length", "0")))
        except BaseException:
            self.close()
            raise
        if fields.get("connection") == "close":
            self.close()
        now = time.perf_counter()
        return Answer(status, fields, content, now, now - began)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer = None


def _parse_head(head: bytes) -> tuple[int, dict[str, str]]:
    lines = head.decode("latin1").split("\r\n")
    fields = dict(line.split(": ", 1) for line in lines[1:] if line)
    return int(lines[0].split()[1]), {name.lower(): value for name, value in fields.items()}


async def ask(connection: Connection, path: str, body: bytes) -> Answer | str:
    """One request; a broken connection is an answer in words."""
    try:
        return await connection.post(path, body)
    except (OSError, asyncio.IncompleteReadError) as error:
        return type(error).__name__


async def closed_loop(url: str, pick: Callable[[], tuple[str, bytes]], *, callers: int, stop: asyncio.Event) -> Tally:
    """`callers` ask one request after another until `stop` is set; `pick` gives path and body of the next."""
    tally = Tally()

    async def caller() -> None:
        connection = Connection(url)
        while not stop.is_set():
            path, body = pick()
            tally.add(await ask(connection, path, body))
        connection.close()

    async with asyncio.TaskGroup() as group:
        for _ in range(callers):
            group.create_task(caller())
    return tally


def quantile(values: list[float], share: float) -> float:
    """The value below which `share` of the sorted values lie (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
