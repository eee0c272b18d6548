"""Real worker and probation processes on sockets in a temporary folder, and plain HTTP/1.1 exchanges with them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

START_S = 60.0


@dataclass(frozen=True)
class Answer:
    """One HTTP answer. Header and trailer names are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes
    trailers: dict[str, str] = field(default_factory=dict)

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def grpc(self) -> tuple[int, str]:
        """Status and message of a gRPC call, wherever they came."""
        both = self.headers | self.trailers
        return int(both["grpc-status"]), both.get("grpc-message", "")


class Channel:
    """One connection to a unix socket, which is kept between requests."""

    def __init__(self, path: Path, timeout_s: float = 30.0, receive_buffer: int | None = None) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        if receive_buffer is not None:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self._socket.settimeout(timeout_s)
        try:
            self._socket.connect(str(path))
        except OSError:
            self._socket.close()
            raise
        self._file = self._socket.makefile("rb")

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def receive(self) -> Answer:
        """The next answer. Raises ConnectionError when the peer closes before there is one."""
        line = self._file.readline()
        if not line:
            raise ConnectionError("closed without an answer")
        status = int(line.split()[1])
        headers = self._lines()
        if headers.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(self._file.readline(), 16):
                body += self._file.read(size)
                self._file.readline()
            return Answer(status, headers, body, self._lines())
        return Answer(status, headers, self._file.read(int(headers.get("content-length", 0))))

    def head(self) -> Answer:
        """The status and headers of an answer that comes in chunks."""
        line = self._file.readline()
        if not line:
            raise ConnectionError("closed without an answer")
        return Answer(int(line.split()[1]), self._lines(), b"")

    def chunk(self) -> bytes:
        """The next chunk, empty at the end of the body. Raises ConnectionError when the peer breaks off."""
        line = self._file.readline()
        if not line:
            raise ConnectionError("broken off")
        data = self._file.read(int(line, 16))
        if data:
            self._file.readline()
        return data

    def trailers(self) -> dict[str, str]:
        """What follows the last chunk."""
        return self._lines()

    def _lines(self) -> dict[str, str]:
        found = {}
        while line := self._file.readline().strip():
            name, _, value = line.decode("latin-1").partition(":")
            found[name.lower()] = value.strip()
        return found

    def closed(self) -> bool:
        """Whether the peer closes the connection now."""
        return self._file.read(1) == b""

    def close(self) -> None:
        self._file.close()
        self._socket.close()


def request_bytes(method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> bytes:
    """A request with a content-length."""
    lines = {"host": "worker", "content-length": str(len(body)), **(headers or {})}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + body


def call(path: Path, method: str, url: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Answer:
    """One request on a connection of its own."""
    channel = Channel(path)
    try:
        channel.send(request_bytes(method, url, body, headers))
        return channel.receive()
    finally:
        channel.close()


def tensor(name: str, datatype: str, shape: list[int], data: Any) -> dict[str, Any]:
    """An input in JSON."""
    return {"name": name, "datatype": datatype, "shape": shape, "data": data}


@dataclass
class WorkerProcess:
    """A worker. `stop` ends it in good order, `kill` does not."""

    process: subprocess.Popen[bytes]
    folder: Path
    id: str = "w0"

    @property
    def data(self) -> Path:
        return self.folder / f"{self.id}.sock"

    @property
    def control(self) -> Path:
        return self.folder / f"{self.id}.ctl.sock"

    @property
    def blackbox(self) -> Path:
        return self.folder / f"{self.id}.box"

    @property
    def log(self) -> str:
        return (self.folder / f"{self.id}.log").read_text()

    def load(self, target: str, path: Path, **parameters: Any) -> Answer:
        """The control call `load`. `target` is namespace/model/version."""
        body = json.dumps({"parameters": {"path": str(path), **parameters}}).encode()
        return call(self.control, "POST", f"/v2/repository/models/{quote(target, safe='')}/load", body)

    def unload(self, target: str, drain_s: float = 10.0) -> Answer:
        """The control call `unload`."""
        body = json.dumps({"drain_s": drain_s}).encode()
        return call(self.control, "POST", f"/v2/repository/models/{quote(target, safe='')}/unload", body)

    def index(self) -> dict[str, dict[str, Any]]:
        """The control call `index`, by target."""
        entries = call(self.control, "POST", "/v2/repository/index").json()
        return {entry["name"]: entry for entry in entries}

    def infer(self, target: str, *inputs: Mapping[str, Any], **members: Any) -> Answer:
        """A REST inference in JSON."""
        return call(
            self.data, "POST", f"/v2/models/{target.split('/')[1]}/infer",
            json.dumps({"inputs": inputs, **members}).encode(),
            {"content-type": "application/json", "x-msm-target": target},
        )  # fmt: skip

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)

    def kill(self) -> None:
        """End it without a word."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)


def _wait_for(path: Path, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while True:
        if process.poll() is not None:
            raise AssertionError(f"the process ended with {process.returncode}: {log.read_text()}")
        with contextlib.suppress(OSError):  # not listening yet, which the deadline bounds
            if path.exists() and call(path, "GET", "/v2/health/live").status == 200:
                return
        assert time.monotonic() < deadline, f"not ready within {START_S} s: {log.read_text()}"
        time.sleep(0.02)


def start_worker(folder: Path, worker: str = "w0", *options: str) -> WorkerProcess:
    """A worker that answers. Its log goes to a file, as a worker must not depend on its parent's pipes."""
    log = folder / f"{worker}.log"
    with log.open("ab") as stderr:
        process = subprocess.Popen(
            [
                sys.executable, "-m", "msm.runtime", "--id", worker, "--data", str(folder / f"{worker}.sock"),
                "--control", str(folder / f"{worker}.ctl.sock"), "--blackbox", str(folder / f"{worker}.box"), *options,
            ],
            stdin=subprocess.DEVNULL, stdout=stderr, stderr=stderr, start_new_session=True,
        )  # fmt: skip
    _wait_for(folder / f"{worker}.ctl.sock", process, log)
    return WorkerProcess(process, folder, worker)


@contextmanager
def running_worker(folder: Path, worker: str = "w0", *options: str) -> Iterator[WorkerProcess]:
    """A worker that ends with the block."""
    started = start_worker(folder, worker, *options)
    try:
        yield started
    finally:
        started.kill()


@contextmanager
def running_probation(folder: Path, *options: str) -> Iterator[Path]:
    """A probation process that ends with the block; its socket."""
    path, log = folder / "probe.sock", folder / "probe.log"
    with log.open("ab") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "msm.runtime.probation", "--socket", str(path), *options],
            stdin=subprocess.DEVNULL, stdout=stderr, stderr=stderr, start_new_session=True,
        )  # fmt: skip
    try:
        _wait_for(path, process, log)
        yield path
    finally:
        process.kill()
        process.wait(10)


def probe(path: Path, artifact: Path, **members: Any) -> Answer:
    """The call `POST /probe`."""
    body = {
        "path": str(artifact), "format": None, "trusted": False, "parameters": {}, "signature": None,
        "timeout_s": 60, "memory_limit_bytes": 1024**3, **members,
    }  # fmt: skip
    return call(path, "POST", "/probe", json.dumps(body).encode())


def alive(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        os.kill(pid, 0)
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (ProcessLookupError, FileNotFoundError):
        return False
