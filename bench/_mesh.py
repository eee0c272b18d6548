"""A mesh of its own for a benchmark: `msm up` as a process on free ports and a fresh data directory."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

START_S = 60.0


@dataclass(slots=True)
class Mesh:
    """A running node, seen from outside."""

    data: Path
    arguments: tuple[str, ...]
    process: subprocess.Popen[bytes]
    gateway: str = ""
    api: str = ""

    @property
    def token(self) -> str:
        return (self.data / "admin.token").read_text().strip()

    def call(self, method: str, path: str, **more: Any) -> httpx.Response:
        """One API call; raises for an error status."""
        headers = {"authorization": f"Bearer {self.token}", **more.pop("headers", {})}
        answer = httpx.request(method, f"{self.api}/api/v1{path}", headers=headers, timeout=120, **more)
        if answer.status_code >= 400:
            raise RuntimeError(f"{method} {path}: {answer.status_code} {answer.text[:500]}")
        return answer

    def apply(self, manifests: Sequence[dict[str, Any]]) -> None:
        """Declare models, several hundred a call."""
        for at in range(0, len(manifests), 250):
            body = "\n---\n".join(json.dumps(manifest) for manifest in manifests[at : at + 250])
            self.call("POST", "/apply", content=body, headers={"content-type": "application/yaml"})

    def node(self) -> dict[str, Any]:
        """What the node tells about itself."""
        status: dict[str, Any] = self.call("GET", "/node").json()
        return status

    def models(self) -> list[dict[str, Any]]:
        listed = self.call("GET", "/models").json()
        return listed["items"] if isinstance(listed, dict) else listed

    def wait_valid(self, *, within_s: float, of: str | None = None) -> None:
        """Until every version of every model (or of one) was fetched and measured; fails when one did not pass."""
        deadline = time.monotonic() + within_s
        while True:
            models = [model for model in self.models() if of in (None, model["metadata"]["name"])]
            found = [(model.get("status") or {}).get("versions", {}) for model in models]
            phases = [version["phase"] for versions in found for version in versions.values()]
            if "Failed" in phases:
                raise RuntimeError("a version failed")
            declared = sum(len(model["spec"]["versions"]) for model in models)
            if len(phases) >= declared and all(phase == "Valid" for phase in phases):
                return
            if time.monotonic() > deadline:
                raise TimeoutError(f"{phases.count('Valid')} of {len(phases)} versions are valid after {within_s} s")
            time.sleep(0.25)

    def wait_ready(self, copies: int, *, within_s: float) -> None:
        """Until that many copies are ready."""
        deadline = time.monotonic() + within_s
        while (ready := self.ready_copies()) < copies:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{ready} of {copies} copies are ready after {within_s} s")
            time.sleep(0.25)

    def ready_copies(self) -> int:
        return sum(copy["state"] == "Ready" for copy in self.node().get("copies", ()))

    def worker_pids(self) -> dict[str, int]:
        return {w["id"]: w["pid"] for w in self.node().get("workers", ()) if w.get("pid")}

    def parts(self) -> dict[str, list[int]]:
        """The process numbers of the node by what they are."""
        status = self.node()
        envoy, workers = [status["gateway"]["pid"]], [w["pid"] for w in status["workers"] if w.get("pid")]
        children = psutil.Process(self.process.pid).children(recursive=True)
        others = {self.process.pid, *(child.pid for child in children)} - {*envoy, *workers}
        return {"Envoy": envoy, "worker": workers, "node process": sorted(others)}

    def start(self) -> None:
        """Start the node process and wait until it answers."""
        (self.data / "node.json").unlink(missing_ok=True)
        with (self.data / "up.log").open("ab") as log:
            self.process = subprocess.Popen(self.arguments, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + START_S
        while not (self.data / "node.json").exists():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the mesh did not start: {(self.data / 'up.log').read_text()[-2000:]}")
            time.sleep(0.02)
        addresses = json.loads((self.data / "node.json").read_text())
        self.gateway, self.api = addresses["gateway"], addresses["api"]

    def kill_node_process(self) -> None:
        self.process.kill()
        self.process.wait()


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def mesh(*options: str) -> Iterator[Mesh]:
    """A mesh that is stopped, and its data removed, at the end."""
    data = Path(tempfile.mkdtemp(prefix="msm-bench-"))
    msm = str(Path(sys.executable).parent / "msm")
    ports = ("--gateway-port", str(free_port()), "--api-port", str(free_port()))
    arguments = (msm, "up", "--data-dir", str(data), *ports, *options)
    running = Mesh(data, arguments, None)  # type: ignore[arg-type]  # set by start
    try:
        running.start()
        yield running
    except BaseException:
        print((data / "up.log").read_text()[-3000:], file=sys.stderr)
        raise
    finally:
        if running.process is not None and running.process.poll() is None:
            running.process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                running.process.wait(timeout=60)
        subprocess.run([msm, "down", "--data-dir", str(data)], capture_output=True, check=False, env=os.environ)
        shutil.rmtree(data, ignore_errors=True)


def rss_mib(pid: int) -> float:
    """Resident memory of a process in MiB."""
    return psutil.Process(pid).memory_info().rss / 2**20


def cpu_share(pid: int, seconds: float) -> float:
    """The share of one core that a process used over that time."""
    process = psutil.Process(pid)
    before = sum(process.cpu_times()[:2])
    time.sleep(seconds)
    return (sum(process.cpu_times()[:2]) - before) / seconds
