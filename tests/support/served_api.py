"""A node's API on a loopback port, served from a thread, with a gateway that echoes: for clients that block."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec

from msm.api import ApiDeps, HttpServer, TokenFile, bind_tcp, create_app
from msm.kit.clock import SystemClock
from msm.resources.wire import NODE_FILE, NodeFile
from msm.store import MEMORY, Catalog, SqliteStore
from msm.store.events import EventLog
from tests.support.fake_node import FakeNode


class _Gateway(BaseHTTPRequestHandler):
    """Answers an inference with the tensors it was sent; a model named "broken" answers with the status in its body."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        parts = self.path.split("/")
        head = int(self.headers.get("inference-header-content-length", len(body)))
        inputs = json.loads(body[:head])["inputs"]
        if parts[3] == "broken":
            self._send(inputs[0]["data"][0], {"error": "the model \x1b[31mraised"})
            return
        version = parts[5] if parts[4] == "versions" else "v1"
        outputs = [{**tensor, "data": tensor.get("data", list(body[head:]))} for tensor in inputs]
        headers = {"x-msm-model": parts[3], "x-msm-version": version, "x-msm-worker": "w0"}
        self._send(200, {"outputs": outputs, "header": self.headers.get("x-user")}, headers)

    def _send(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        for name, text in {**(headers or {}), "content-length": str(len(content))}.items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Nobody reads it."""


@dataclass
class ServedApi:
    """What is being served, and `run` for what has to happen in its event loop."""

    data_dir: Path
    loop: asyncio.AbstractEventLoop
    deps: ApiDeps
    node: FakeNode
    url: str
    serving: asyncio.Task[None] = field(repr=False)

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine in the server's event loop and return what it returns."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    def call(self, work: Callable[[], Any]) -> None:
        """Call a plain function in the server's event loop."""
        self.loop.call_soon_threadsafe(work)


@contextmanager
def served_api(data_dir: Path) -> Iterator[ServedApi]:
    """Serve a node's API with everything real but the node, and write how to reach it into `data_dir`."""
    gateway = ThreadingHTTPServer(("127.0.0.1", 0), _Gateway)
    loop = asyncio.new_event_loop()
    threads = [threading.Thread(target=gateway.serve_forever, kwargs={"poll_interval": 0.02})]
    threads.append(threading.Thread(target=loop.run_forever))
    for thread in threads:
        thread.start()
    address = f"http://127.0.0.1:{gateway.server_address[1]}"

    async def start() -> tuple[ServedApi, SqliteStore]:
        store = await SqliteStore.open(MEMORY, SystemClock())
        node = FakeNode(data_dir, gateway=address)
        events = EventLog(store, SystemClock())
        deps = ApiDeps(Catalog(store, SystemClock()), events, node, TokenFile.open(data_dir))
        server = HttpServer(create_app(deps), bind_tcp("127.0.0.1", 0))
        serving = asyncio.create_task(server.run())
        return ServedApi(data_dir, loop, deps, node, server.address, serving), store

    async def stop(served: ServedApi, store: SqliteStore) -> None:
        served.serving.cancel()
        await asyncio.wait({served.serving})
        await store.close()
        await loop.shutdown_default_executor()

    served, store = asyncio.run_coroutine_threadsafe(start(), loop).result(30)
    node_file = NodeFile(api=served.url, gateway=address, pid=1)
    (data_dir / NODE_FILE).write_bytes(msgspec.json.encode(node_file))
    try:
        yield served
    finally:
        served.run(stop(served, store))
        gateway.shutdown()
        gateway.server_close()
        loop.call_soon_threadsafe(loop.stop)
        for thread in threads:
            thread.join(10)
        loop.close()
