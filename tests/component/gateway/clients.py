"""Clients of the gateway: REST over one connection, raw HTTP/1.1, gRPC without generated code, closed-loop load."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from dataclasses import dataclass, field

import grpc
import httpx

SERVICE = "/inference.GRPCInferenceService/"
BODY = b'{"inputs":[]}'


@dataclass(frozen=True)
class Answer:
    status: str
    text: str
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def json(self) -> dict:
        return json.loads(self.text)


def named(model: str, version: str = "", padding: int = 0) -> bytes:
    """A ModelInferRequest-like message: fields 1 and 2, and `padding` bytes in field 7."""

    def part(tag: int, data: bytes) -> bytes:
        length, out = len(data), bytearray([tag])
        while length > 127:
            out.append(length & 127 | 128)
            length >>= 7
        return bytes(out) + bytes([length]) + data

    message = part(10, model.encode())
    if version:
        message += part(18, version.encode())
    return message + (part(58, bytes(padding)) if padding else b"")


class Grpc:
    """Calls by name with messages as bytes."""

    def __init__(self, port: int) -> None:
        self.channel = grpc.aio.insecure_channel(
            f"127.0.0.1:{port}", options=[("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
        )

    async def call(
        self, message: bytes, *, call: str = "ModelInfer", timeout: float = 30.0, metadata=(), **more
    ) -> Answer:
        method = self.channel.unary_unary(SERVICE + call, request_serializer=bytes, response_deserializer=bytes)
        pending = method(message, timeout=timeout, metadata=metadata, **more)
        try:
            body = await pending
        except grpc.aio.AioRpcError as error:
            return Answer(error.code().name, error.details() or "", dict(error.initial_metadata() or ()))
        return Answer("OK", body.decode(), dict(await pending.initial_metadata()))

    async def infer(self, model: str, version: str = "", **more) -> Answer:
        return await self.call(named(model, version), **more)

    async def close(self) -> None:
        await self.channel.close()


@contextlib.asynccontextmanager
async def rest(mesh, **more):
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(base_url=mesh.url, timeout=30, limits=limits, **more) as client:
        yield client


async def infer(client: httpx.AsyncClient, model: str, **more) -> httpx.Response:
    return await client.post(f"/v2/models/{model}/infer", content=BODY, **more)


@contextlib.asynccontextmanager
async def grpc_client(mesh):
    client = Grpc(mesh.config.port)
    try:
        yield client
    finally:
        await client.close()


class Load:
    """REST and gRPC callers in a closed loop until told to stop; `answers` counts statuses, `bad` keeps failures."""

    def __init__(self, mesh, model: str, *, callers: int = 8, headers: dict[str, str] | None = None) -> None:
        self.mesh, self.model, self.callers, self.headers = mesh, model, callers, headers or {}
        self.answers: Counter[str] = Counter()
        self.bad: list[str] = []
        self.total = 0
        self._stop = False

    async def __aenter__(self) -> Load:
        self._tasks = [asyncio.create_task(self._rest()) for _ in range(self.callers)]
        self._tasks += [asyncio.create_task(self._grpc()) for _ in range(self.callers)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stop = True
        await asyncio.gather(*self._tasks)

    def _count(self, status: str, text: str) -> None:
        self.total += 1
        self.answers[status] += 1
        if status not in ("200", "OK"):
            self.bad.append(f"{status} {text[:200]}")

    async def _rest(self) -> None:
        async with rest(self.mesh) as client:
            while not self._stop:
                try:
                    answer = await infer(client, self.model, headers=self.headers)
                    self._count(str(answer.status_code), answer.text)
                except httpx.HTTPError as error:
                    self._count("broken", repr(error))

    async def _grpc(self) -> None:
        async with grpc_client(self.mesh) as client:
            while not self._stop:
                answer = await client.infer(self.model, metadata=tuple(self.headers.items()))
                self._count(answer.status, answer.text)


async def raw(mesh, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """Send bytes as they are; the status, the headers and the body of the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", mesh.config.port)
    try:
        writer.write(request)
        head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)).decode()
        lines = head.split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines[1:] if ": " in line)
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        return int(lines[0].split()[1]), headers, body
    finally:
        writer.close()
