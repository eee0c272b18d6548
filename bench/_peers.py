"""Model servers that the project is compared with, started from the environments that `scripts/bench-peers` makes.

Each runs on the server's core with the models of `bench._cases`, by the settings that serve it best on one core.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bench._cases import IMAGE, IMAGE_SHAPE, IRIS, TINY
from bench._gateway import free_port
from bench._processor import SERVER_CORE, on_cores, tree

ENVIRONMENTS = Path(__file__).parent.parent / ".peers"
FILES = Path(__file__).parent / "_peer_files"
START_S = 120.0
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


@dataclass(slots=True)
class Server:
    """A running server: its addresses, the workloads it can't do, and how it takes one more model of a file."""

    name: str
    rest: str
    grpc: str | None
    pids: Callable[[], list[int]]
    lacks: tuple[str, ...] = ()
    prepare: Callable[[str, Path], None] | None = None  # puts the model where the server finds it
    extra: int = 0  # how many further models are worth waiting for

    def load(self, name: str) -> float:
        """Seconds that the load call of a prepared model takes. Raises OSError when it is refused."""
        began = time.perf_counter()
        request = urllib.request.Request(f"{self.rest}/v2/repository/models/{name}/load", b"{}", method="POST")
        request.add_header("content-type", "application/json")
        with urllib.request.urlopen(request, timeout=120) as answer:
            answer.read()
        return time.perf_counter() - began


def environment(name: str) -> Path:
    """Where a peer is installed. Raises RuntimeError saying how to install it."""
    path = ENVIRONMENTS / name
    if not (path / ".installed").is_file():
        raise RuntimeError(f"{name} is not installed in {path}: run make bench-peers")
    return path


@contextlib.contextmanager
def _process(command: list[str], log: Path, url: str, **variables: str) -> Iterator[int]:
    """A server process on the server's core, from ready to stopped."""
    with on_cores(SERVER_CORE), log.open("wb") as output:
        given = {**os.environ, **ONE_THREAD, **variables}
        process = subprocess.Popen(command, stdout=output, stderr=output, env=given, cwd=log.parent)
    try:
        deadline = time.monotonic() + START_S
        while not _ready(url):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command[0]} did not start: {log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.1)
        yield process.pid
    finally:
        left = tree(process.pid) if process.poll() is None else []
        process.terminate()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for pid in left:  # what it did not end itself
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)


def _ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False


@contextlib.contextmanager
def fastapi(folder: Path, models: Path) -> Iterator[Server]:
    """A server written by hand, one event loop."""
    port = free_port()
    command = [str(environment("fastapi") / "bin" / "python"), str(FILES / "fastapi_server.py"), str(models), str(port)]
    rest = f"http://127.0.0.1:{port}"
    with _process(command, folder / "fastapi.log", f"{rest}/v2/health/ready") as pid:
        yield Server("FastAPI by hand", rest, None, lambda: tree(pid), ("gRPC", "REST binary"))


@contextlib.contextmanager
def mlserver(folder: Path, models: Path) -> Iterator[Server]:
    """MLServer in one process (`parallel_workers` 0 is its fastest on one core)."""
    place, http, grpc = folder / "mlserver", free_port(), free_port()
    place.mkdir()
    settings = {"host": "127.0.0.1", "http_port": http, "grpc_port": grpc, "metrics_port": free_port(), "debug": False}
    (place / "settings.json").write_text(json.dumps({**settings, "parallel_workers": 0, "grpc_max_message_length": -1}))

    def prepare(name: str, path: Path) -> None:
        kind = {".joblib": "mlserver_sklearn.SKLearnModel", "": "mlserver_models.Echo"}
        implementation = kind.get(path.suffix, "mlserver_models.Onnx")
        model = {"name": name, "implementation": implementation, "parameters": {"uri": str(path)}}
        (place / name).mkdir()
        (place / name / "model-settings.json").write_text(json.dumps(model))

    prepare(TINY, models / "tiny.onnx")
    prepare(IRIS, models / "iris.joblib")
    prepare(IMAGE, models / "none")
    program, rest = environment("mlserver") / "bin" / "mlserver", f"http://127.0.0.1:{http}"
    command = [str(program), "start", str(place)]
    path = os.pathsep.join((str(program.parent), os.environ["PATH"]))
    with _process(command, folder / "mlserver.log", f"{rest}/v2/health/ready", PYTHONPATH=str(FILES), PATH=path) as pid:
        lacks = ("REST binary",)
        yield Server("MLServer", rest, f"http://127.0.0.1:{grpc}", lambda: tree(pid), lacks, prepare, 50)


TRITON_MODEL = """
name: "{name}"
backend: "python"
max_batch_size: 64
input [{{ name: "{input}", data_type: TYPE_FP32, dims: {dims} }}]
output [{{ name: "y", data_type: {gives}, dims: {out} }}]
instance_group [{{ kind: KIND_CPU, count: 1 }}]
parameters [{{ key: "kind", value: {{ string_value: "{kind}" }} }},
            {{ key: "path", value: {{ string_value: "{path}" }} }}]
{batching}
"""


@contextlib.contextmanager
def triton(folder: Path, models: Path, *, batching: bool = False) -> Iterator[Server]:
    """Triton's native server with its Python backend, the only one in the wheel."""
    place, http, grpc = folder / ("triton-batching" if batching else "triton"), free_port(), free_port()
    place.mkdir()
    home = environment("triton")
    packages = next((home / "lib").glob("python3*")) / "site-packages"
    server = packages / "pytriton" / "tritonserver"
    kinds = {
        TINY: ("x", "[4]", "TYPE_FP32", "[3]"),
        IRIS: ("input-0", "[4]", "TYPE_INT64", "[-1]"),
        IMAGE: ("x", str(list(IMAGE_SHAPE)), "TYPE_FP32", str(list(IMAGE_SHAPE))),
    }

    def prepare(name: str, path: Path) -> None:
        kind = {".joblib": IRIS, "": IMAGE}.get(path.suffix, TINY)
        takes, dims, gives, out = kinds[kind]
        (place / name / "1").mkdir(parents=True)
        (place / name / "config.pbtxt").write_text(
            TRITON_MODEL.format(
                name=name, input=takes, dims=dims, gives=gives, out=out, kind=kind, path=path,
                batching="dynamic_batching { }" if batching else "",
            )
        )  # fmt: skip
        shutil.copy(FILES / "triton_model.py", place / name / "1" / "model.py")

    prepare(TINY, models / "tiny.onnx")
    prepare(IRIS, models / "iris.joblib")
    prepare(IMAGE, models / "none")
    command = [
        str(server / "bin" / "tritonserver"), f"--model-repository={place}", "--model-control-mode=explicit",
        "--load-model=*", f"--backend-directory={server / 'backends'}", "--http-address=127.0.0.1",
        f"--http-port={http}", "--grpc-address=127.0.0.1", f"--grpc-port={grpc}", "--allow-metrics=false",
        f"--backend-config=python,shm-region-prefix-name=bench{os.getpid()}{batching:d}",
    ]  # fmt: skip
    variables = {
        "LD_LIBRARY_PATH": str(packages / "nvidia_pytriton.libs"),
        "PATH": os.pathsep.join((str(home / "bin"), os.environ["PATH"])),
        "PYTHONPATH": str(packages),
        "VIRTUAL_ENV": str(home),
    }
    rest = f"http://127.0.0.1:{http}"
    with _process(command, folder / f"{place.name}.log", f"{rest}/v2/health/ready", **variables) as pid:
        name = "Triton, dynamic batching" if batching else "Triton"
        yield Server(name, rest, f"http://127.0.0.1:{grpc}", lambda: tree(pid), (), prepare, 3)
