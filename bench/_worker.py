"""A worker of its own for a benchmark: `python -m msm.runtime` on the server's core, without a node or an Envoy."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from bench._processor import SERVER_CORE, on_cores

START_S = 30.0


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket, kept open."""

    def __init__(self, path: Path) -> None:
        super().__init__("worker", timeout=120)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))

    def post(self, path: str, body: bytes, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
        """One call: status and body."""
        self.request("POST", path, body, headers or {})
        answer = self.getresponse()
        return answer.status, answer.read()


@dataclass(slots=True)
class Worker:
    """A running worker. `address` is what `bench._h2load.load` asks."""

    pid: int
    data: Path
    control: UnixConnection

    @property
    def address(self) -> str:
        return f"unix:{self.data}"

    @property
    def pids(self) -> list[int]:
        return [self.pid]

    def load(self, name: str, path: Path, **more: Any) -> float:
        """Load version v1 of a model; gives the seconds until it was there. Raises RuntimeError when it fails."""
        spec = {"path": str(path), "trusted": True, "predict_s": 1e-4, **more}
        return self._change(name, "load", {"parameters": spec})

    def unload(self, name: str) -> float:
        """Unload it; gives the seconds until it had gone."""
        return self._change(name, "unload", {})

    def _change(self, name: str, verb: str, body: dict[str, Any]) -> float:
        target = quote(f"default/{name}/v1", safe="")
        began = time.perf_counter()
        status, said = self.control.post(f"/v2/repository/models/{target}/{verb}", json.dumps(body).encode())
        took = time.perf_counter() - began
        if status != 200:
            raise RuntimeError(f"{verb} {name}: {status} {said.decode()}")
        return took


@contextlib.contextmanager
def worker(folder: Path, name: str = "w0") -> Iterator[Worker]:
    """A worker that lives inside the block; `folder` must have a path short enough for unix sockets."""
    data, control = folder / f"{name}.data", folder / f"{name}.control"
    command = [sys.executable, "-m", "msm.runtime", "--id", name, "--data", str(data), "--control", str(control)]
    with on_cores(SERVER_CORE), (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen([*command, "--blackbox", str(folder / f"{name}.box")], stderr=log, stdout=log)
    connection = UnixConnection(control)
    try:
        _wait(process, connection, folder / f"{name}.log")
        yield Worker(process.pid, data, connection)
    finally:
        connection.close()
        process.terminate()
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(process: subprocess.Popen[bytes], connection: UnixConnection, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            connection.connect()
        except OSError:
            connection.close()
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the worker did not start: {log.read_text()[-2000:]}") from None
            time.sleep(0.02)
        else:
            return
