"""A small real worker: HTTP/1.1 on a unix socket, gRPC as HTTP/1.1 with trailers, easy to make misbehave.

    python worker_process.py SOCKET ID [TARGET ...]

Holds the given targets; `POST /hold/TARGET` and `POST /drop/TARGET` change that. Answers tell who answered. The request
header `test-delay` (seconds) delays the answer, `test-die` ends the process before it.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys

import httptools
import uvloop

HELD: set[str] = set()
SEEN: list[str] = []


class Connection(asyncio.Protocol):
    def __init__(self, name: str) -> None:
        self.name = name
        self.reset()

    def reset(self) -> None:
        self.parser = httptools.HttpRequestParser(self)
        self.headers: dict[str, str] = {}
        self.url = ""
        self.size = 0

    def connection_made(self, transport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self.url += url.decode()

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode().lower()] = value.decode()

    def on_body(self, body: bytes) -> None:
        self.size += len(body)

    def on_message_complete(self) -> None:
        url, headers, size = self.url, self.headers, self.size
        self.reset()
        if url.startswith(("/hold/", "/drop/")):
            target = url[6:]
            HELD.add(target) if url.startswith("/hold/") else HELD.discard(target)
            self.json(200, {})
            return
        if url in ("/held", "/seen"):
            self.json(200, sorted(HELD) if url == "/held" else SEEN)
            return
        if "test-die" in headers:
            os._exit(9)
        delay = float(headers.get("test-delay", 0))
        if delay:
            asyncio.get_running_loop().call_later(delay, self.answer, url, headers, size)
        else:
            self.answer(url, headers, size)

    def answer(self, url: str, headers: dict[str, str], size: int) -> None:
        if self.transport.is_closing():
            return
        grpc = headers.get("content-type", "").startswith("application/grpc")
        target = headers.get("x-msm-target", "")
        SEEN.append(target)
        internal = {k: v for k, v in headers.items() if k.startswith(("x-msm-", "x-envoy-"))}
        facts = {"worker": self.name, "target": target, "path": url, "bytes": size, "headers": internal}
        if target and target not in HELD:
            self.refuse(grpc, f"{self.name} does not hold {target}")
        elif grpc:
            self.grpc(json.dumps(facts).encode(), target)
        else:
            self.json(200, facts, target)

    def identity(self, target: str) -> str:
        model, _, version = target.rpartition("/")
        names = {"worker": self.name, "model": model, "version": version, "target": target}
        return "".join(f"x-msm-{name}: {value}\r\n" for name, value in names.items())

    def json(self, status: int, value: object, target: str = "", extra: str = "") -> None:
        body = json.dumps(value).encode()
        head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        self.transport.write((head + self.identity(target) + extra + "\r\n").encode() + body)

    def refuse(self, grpc: bool, message: str) -> None:
        if not grpc:
            self.json(503, {"error": message}, extra="x-msm-retriable: true\r\n")
            return
        head = "HTTP/1.1 200 OK\r\ncontent-type: application/grpc\r\ncontent-length: 0\r\nx-msm-retriable: true\r\n"
        self.transport.write(f"{head}grpc-status: 14\r\ngrpc-message: {message}\r\n\r\n".encode())

    def grpc(self, message: bytes, target: str) -> None:
        frame = b"\0" + len(message).to_bytes(4, "big") + message
        head = "HTTP/1.1 200 OK\r\ncontent-type: application/grpc\r\ntransfer-encoding: chunked\r\n"
        chunk = b"%x\r\n%s\r\n" % (len(frame), frame)
        self.transport.write((head + self.identity(target) + "\r\n").encode() + chunk + b"0\r\ngrpc-status: 0\r\n\r\n")


async def main() -> None:
    path, name, *held = sys.argv[1:]
    HELD.update(held)
    server = await asyncio.get_running_loop().create_unix_server(lambda: Connection(name), path, backlog=4096)
    print("ready", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
